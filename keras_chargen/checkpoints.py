"""Checkpoints: a run that was stopped, or killed, goes on as if it were not.

A checkpoint is one file, in this order: a line that names the format, the
length of the header (8 bytes, little-endian), the header (JSON), the bytes of
the arrays that it lists, and a SHA-256 of all before. Nothing in it is code,
and nothing is believed before the checksum and the sizes are right.
"""

import contextlib
import csv
import functools
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_chargen.callbacks import StopOnSignal, TimeBudget, synchronize
from keras_chargen.checks import check_integer, check_positive
from keras_chargen.compilation import random_state, set_random_state
from keras_chargen.files import replacing
from keras_chargen.tokenizer import blocks
from keras_chargen.version import __version__

_FORMAT = b"keras-chargen checkpoint "
_MAGIC = _FORMAT + b"1\n"
_NAME = re.compile(r"checkpoint-(\d+)\.ckpt")
_DIGEST = 32  # bytes of SHA-256
_CHUNK = 1 << 20
_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64"),
)
_HEADER = {
    "backend": str,
    "epoch": int,
    "batch": int,
    "step": int,
    "stopped": bool,
    "model": dict,
    "settings": dict,
    "callbacks": list,
}
# What Keras's own callbacks learn during training.
_LEARNED = {
    keras.callbacks.EarlyStopping: (
        *("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
    ),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
}


class Saved(NamedTuple):
    """A checkpoint in memory.

    Attributes:
        path: `Path` of its file.
        header: Dict: the place in training, the settings of the run, the
            states of callbacks.
        arrays: Dict of NumPy arrays by name.
    """

    path: Path
    header: dict
    arrays: dict


class Checkpoint(keras.callbacks.Callback):
    """Saves all that training depends on, so that it can be resumed exactly.

    That is: weights, carried states and seed generators (which no file format
    of Keras holds), the optimizer with its moving averages and its schedule's
    place, the place in the data, the metrics of the epoch so far, and the
    states of other callbacks. On a CPU a run that was resumed ends with the
    same bytes in all of them as one that was not stopped, but where the clock
    has a say (`TimeBudget`).

    It saves at ends of batches and epochs, before training ends, and when it
    is stopped by `StopOnSignal`. Nothing is saved that is not finite. Where a
    file cannot be written it says so on standard error, the older ones stay,
    and training goes on.

    Args:
        directory: str or path of a folder, made where it is missing, for the
            checkpoints of one run.
        data: `tf.data.Dataset` from `lines`, `windows` or `streams`, to train
            on.
        callbacks: The other callbacks of `fit`. Kept are the states of
            Keras's `EarlyStopping`, `ReduceLROnPlateau` and `CSVLogger`, and
            of those that have `get_state()`, which returns nested dicts and
            lists of numbers, str and NumPy arrays, and `set_state(state)`.
        seconds: Positive number, the time between two checkpoints.
        batches: Optional positive integer, batches between two checkpoints;
            it takes the place of `seconds`.
        keep: Positive integer, how many checkpoints are kept.
        settings: Optional dict for JSON, given back in `Saved.header`.
        resume: Optional `Saved`, as `newest` gives it, to go on from.
        write: Function of one str that tells of a file that is not written;
            by default to standard error.

    Attributes:
        callbacks: List for `fit`: the others, and what must come before and
            after them.
        initial_epoch: Integer for `fit`.
        path: `Path` of the last good checkpoint, or None.
        failure: The `OSError` of the last attempt, or None if it succeeded.

    Raises:
        ValueError: The folder holds the checkpoints of another run, the model
            is another than the one saved, or the data are of another source.
        OSError: The folder cannot be written.

    Example:
    >>> saved = checkpoints.newest("run") if goes_on else None
    >>> watching = [keras.callbacks.EarlyStopping("val_loss", patience=3)]
    >>> checkpoint = Checkpoint("run", data, watching, resume=saved)
    >>> model.fit(
    ...     data,
    ...     initial_epoch=checkpoint.initial_epoch,
    ...     callbacks=checkpoint.callbacks,
    ...     epochs=10,
    ...     validation_data=held_out,
    ...     shuffle=False,
    ... )
    """

    def __init__(
        self,
        directory,
        data,
        callbacks=(),
        *,
        seconds=300,
        batches=None,
        keep=3,
        settings=None,
        resume=None,
        write=None,
    ):
        super().__init__()
        from keras_chargen.pipeline import seek

        if batches is not None:
            batches = check_integer("batches", batches, 1)
        self.seconds = check_positive("seconds", seconds)
        self.batches = batches
        self.keep = check_integer("keep", keep, 1)
        self.settings = settings or {}
        self.directory = check_directory(directory, resume)
        self._write = write or _to_standard_error
        self._others = list(callbacks)
        self.callbacks = [_Beginning(self), *self._others, self]
        self._resume = resume
        self._seek = functools.partial(seek, data)
        self._spec = data.element_spec
        self._seek(0)
        self.path = None
        self.failure = None
        self.initial_epoch = 0
        self._first_batch = self._step = 0
        self._random: dict = {}
        if resume is not None:
            header = resume.header
            self.path = resume.path
            self._first_batch, self._step = header["batch"], header["step"]
            # Training that has come to its end trains no epoch more.
            self.initial_epoch = (
                sys.maxsize if header["stopped"] else header["epoch"]
            )
        # Whether Keras is told to stop, so that it leaves an epoch.
        self.leaving = False

    def on_train_begin(self, logs=None):
        for left in self.directory.glob(".checkpoint-*.ckpt"):
            # What a process that was killed had begun to write.
            left.unlink(missing_ok=True)
        # Keras makes the variables of metrics and optimizer late.
        self.model._symbolic_build(data_batch=self._spec)
        if self._resume is not None:
            self._restore(self._resume)
        self._mark()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._batch = epoch, 0
        if self._resume is not None:
            # Again: Keras and the callbacks have begun the epoch anew.
            self._restore(self._resume)
            self._batch = self._first_batch
            self._resume = None
            if not self._batch:
                # What was saved are the metrics of the epoch before.
                self.model.reset_metrics()
        else:
            self._first_batch = 0
        self._seek(epoch, self._batch)

    def on_train_batch_begin(self, batch, logs=None):
        set_random_state(self._random)
        self._random = {}

    def on_train_batch_end(self, batch, logs=None):
        self._batch += 1
        self._step += 1
        stopping = self.model.stop_training
        if self._batch == self.params["steps"]:
            # Keras draws from it where it begins to iterate, and how often
            # depends on where an epoch began.
            self._random = random_state()
        if self._batch < self.params["steps"]:
            if self._is_due() or stopping:
                self._save(self._epoch, self._batch, logs)
        elif self._first_batch and not stopping:
            # Keras would ask for as many batches as a whole epoch has, and
            # TensorFlow counts iterations up before it finds none.
            self.leaving = self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        over = any(
            isinstance(other, TimeBudget) and other.share() >= 1
            for other in self._others
        )
        if self._batch < self.params["steps"] and not over:
            return  # Stopped within it, and saved there.
        stopping = self.model.stop_training
        # A signal interrupts training, anything else ends it.
        signalled = any(
            isinstance(other, StopOnSignal) and other.received is not None
            for other in self._others
        )
        early = any(
            getattr(other, "stopped_epoch", 0) == epoch > 0
            for other in self._others
        )
        if stopping or self._is_due() or epoch + 1 == self.params["epochs"]:
            stopped = stopping and (over or early or not signalled)
            self._save(epoch + 1, 0, logs, stopped)

    def _is_due(self):
        if self.batches is not None:
            return self._step - self._last_step >= self.batches
        return time.monotonic() - self._last_time >= self.seconds

    def _mark(self):
        self._last_step, self._last_time = self._step, time.monotonic()

    def _save(self, epoch, batch, logs, stopped=False):
        self._mark()
        synchronize(self.model)
        arrays = {
            name: np.asarray(keras.ops.convert_to_numpy(variable))
            for name, variable in _variables(self.model).items()
        }
        for name, array in (self._random or random_state()).items():
            arrays[f"random/{name}"] = array
        states = [
            [type(other).__name__, _get_state(other, epoch)]
            for other in self._others
        ]
        header = {
            "version": __version__,
            "backend": keras.backend.backend(),
            "epoch": epoch,
            "batch": batch,
            "step": self._step,
            "stopped": stopped,
            "model": _config(self.model),
            "settings": self.settings,
            "callbacks": _packed(states, arrays),
        }
        loss = float((logs or {}).get("loss", 0.0))
        if not (math.isfinite(loss) and all(map(_is_finite, arrays.values()))):
            return
        path = self.directory / f"checkpoint-{self._step:010d}.ckpt"
        try:
            write(path, header, arrays)
        except OSError as error:
            self.failure = error
            last = f"{self.path} is the last" if self.path else "there is none"
            self._write(f"{error}; training goes on, {last}")
            return
        self.failure, self.path = None, path
        for old in _paths(self.directory)[self.keep :]:
            if old != path:
                with contextlib.suppress(OSError):
                    old.unlink()

    def _restore(self, saved):
        where, header = saved.path, saved.header
        if header["model"] != _config(self.model):
            raise ValueError(f"{where} is of another model than this one")
        variables = _variables(self.model)
        names = {
            name
            for name in saved.arrays
            if not name.startswith(("state/", "random/"))
        }
        if names != set(variables):
            raise ValueError(f"{where} is of another optimizer, or of metrics")
        for name, variable in variables.items():
            array = saved.arrays[name]
            dtype = keras.backend.standardize_dtype(variable.dtype)
            if (tuple(variable.shape), dtype) != (
                array.shape,
                str(array.dtype),
            ):
                raise ValueError(
                    f"{where} has {array.dtype} {array.shape} for "
                    f"{variable.path}, which is {dtype} {variable.shape}"
                )
        states = _unpacked(header["callbacks"], saved.arrays)
        kinds = [type(other).__name__ for other in self._others]
        if kinds != [state[0] for state in states]:
            raise ValueError(f"{where} was saved beside other callbacks")
        for name, variable in variables.items():
            variable.assign(saved.arrays[name])
        self._random = {
            name.removeprefix("random/"): array
            for name, array in saved.arrays.items()
            if name.startswith("random/")
        }
        for other, (_, state) in zip(self._others, states, strict=True):
            if state is not None:
                _set_state(other, state)


class _Beginning(keras.callbacks.Callback):
    """What comes before all other callbacks, with `Checkpoint` after them."""

    def __init__(self, checkpoint):
        super().__init__()
        self._checkpoint = checkpoint

    def on_test_begin(self, logs=None):
        self._go_on()

    def on_epoch_end(self, epoch, logs=None):
        self._go_on()

    def _go_on(self):
        if self._checkpoint.leaving:
            self._checkpoint.leaving = self.model.stop_training = False


class Fingerprint:
    """Tells texts from others as they pass by."""

    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=16)

    def watch(self, texts):
        """Yields the texts, an iterable of str."""
        for block in blocks(texts):
            joined = "\0".join([*block, ""])
            self._hash.update(joined.encode("utf-8", "surrogatepass"))
            yield from block

    def digest(self):
        """Returns a str that depends on all texts so far, and their order."""
        return self._hash.hexdigest()


def check_directory(directory, resume=None):
    """Checks that checkpoints can be written, before any slow work.

    Args:
        directory: str or path of a folder, made where it is missing.
        resume: None where a new run begins in it.

    Returns:
        `directory` as a `Path`.

    Raises:
        ValueError: There are checkpoints already, and none is resumed.
        OSError: It cannot be made or written.
    """
    directory = Path(directory)
    if resume is None and _paths(directory):
        raise ValueError(
            f"{directory} holds the checkpoints of a run: resume it, or name "
            "another folder"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            f"no checkpoint can be written in {directory}: {error.strerror}"
        ) from error
    return directory


def newest(directory):
    """Reads the newest checkpoint that is whole.

    One that is damaged is named on standard error, and the one before is
    taken.

    Args:
        directory: str or path of a folder.

    Returns:
        `Saved`.

    Raises:
        ValueError: There is none, or it was saved under another backend.
    """
    paths = _paths(Path(directory))
    if not paths:
        raise ValueError(f"{directory} holds no checkpoints")
    problems = []
    for path in paths:
        try:
            saved = read(path)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        for problem in problems:
            _to_standard_error(f"{problem}; the one before is used")
        backend = saved.header["backend"]
        if backend != keras.backend.backend():
            raise ValueError(
                f"{path} was saved under KERAS_BACKEND={backend}, this is "
                f"{keras.backend.backend()}"
            )
        return saved
    raise ValueError(
        f"{directory} holds no checkpoint that can be used; {problems[0]}"
    )


def write(path, header, arrays):
    """Writes a checkpoint beside its place, flushes it and renames it.

    Args:
        path: `Path` of the file.
        header: Dict for JSON.
        arrays: Dict of NumPy arrays.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    index = [[name, str(x.dtype), x.shape] for name, x in arrays.items()]
    text = json.dumps({**header, "arrays": index}).encode()
    checksum = hashlib.sha256()
    try:
        with replacing(path) as beside, open(beside, "wb") as file:

            def put(data):
                checksum.update(data)
                file.write(data)

            put(_MAGIC)
            put(len(text).to_bytes(8, "little"))
            put(text)
            for array in arrays.values():
                put(array.tobytes())
            file.write(checksum.digest())
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def read(path):
    """Reads a checkpoint, and believes nothing that is not checked.

    It takes memory for no more than the file's own size.

    Args:
        path: `Path` of the file.

    Returns:
        `Saved`.

    Raises:
        ValueError: It is none, is damaged, or of another format.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size - len(_MAGIC) - 8 - _DIGEST
        magic = file.read(len(_MAGIC))
        if magic.startswith(_FORMAT) and magic != _MAGIC:
            raise ValueError(f"{path} is of another version of keras-chargen")
        if magic != _MAGIC:
            raise ValueError(f"{path} is not a checkpoint")
        if left < 0 or not _checks(file, left + 8 + len(_MAGIC)):
            raise ValueError(f"{path} is damaged: its checksum is wrong")
        file.seek(len(_MAGIC))
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > left:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            index = _check_header(header, left - length)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a checkpoint: {error}") from error
        arrays = {}
        for name, dtype, shape in index:
            array = np.empty(shape, dtype)
            file.readinto(array.reshape(-1).view("uint8").data)
            arrays[name] = array
    return Saved(Path(path), header, arrays)


def _checks(file, size):
    checksum = hashlib.sha256()
    file.seek(0)
    for begin in range(0, size, _CHUNK):
        checksum.update(file.read(min(_CHUNK, size - begin)))
    return file.read() == checksum.digest()


def _check_header(header, size):
    """Returns what arrays `(name, dtype, shape)` there are in `size` bytes."""
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    kind: Any
    for name, kind in _HEADER.items():
        value: Any = header.get(name)
        if type(value) is not kind or (kind is int and value < 0):
            raise ValueError(f"its header has {name}: {value!r:.40}")
    index = []
    try:
        for name, dtype, shape in header["arrays"]:
            if dtype not in _DTYPES or not all(
                type(n) is int and n >= 0 for n in shape
            ):
                raise TypeError
            index.append((str(name), np.dtype(dtype), tuple(shape)))
            # Before memory is taken, and no array beside the others' bytes.
            size -= math.prod(shape) * index[-1][1].itemsize
            if size < 0 or len(shape) > 32:
                raise TypeError
    except (KeyError, TypeError, ValueError):
        size = -1
    if size != 0:
        raise ValueError("its arrays are not those that its header names")
    return index


def _paths(directory):
    """Returns the checkpoints of a folder, the newest first."""
    found = [(_NAME.fullmatch(p.name), p) for p in directory.glob("*.ckpt")]
    numbered = [(int(match[1]), path) for match, path in found if match]
    return [path for _, path in sorted(numbered, reverse=True)]


def _variables(model):
    """Returns all variables of training by names that any process gives."""
    kinds = {
        "trained": model.trainable_variables,
        "other": model.non_trainable_variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    return {
        f"{kind}/{i}": variable
        for kind, variables in kinds.items()
        for i, variable in enumerate(variables)
    }


def _config(model):
    # As JSON gives it back. A name says how many were made before.
    config = json.loads(json.dumps(model.get_config()))
    for named in (config, config.get("tokenizer", {}).get("config", {})):
        named.pop("name", None)
    return config


def _is_finite(array):
    # NumPy knows bfloat16 not as a float.
    if array.dtype.kind in "biu":
        return True
    return bool(np.isfinite(array).all())


def _get_state(callback, epoch):
    for kind, names in _LEARNED.items():
        if isinstance(callback, kind):
            return {name: getattr(callback, name) for name in names}
    if isinstance(callback, keras.callbacks.CSVLogger):
        return {"size": os.path.getsize(callback.filename), "epoch": epoch}
    if hasattr(callback, "get_state"):
        return callback.get_state()
    return None


def _set_state(callback, state):
    if isinstance(callback, keras.callbacks.CSVLogger):
        _drop_rows(callback, **state)
    elif hasattr(callback, "set_state"):
        callback.set_state(state)
    else:
        for kind, names in _LEARNED.items():
            if isinstance(callback, kind):
                vars(callback).update({name: state[name] for name in names})


def _drop_rows(logger, size, epoch):
    """Takes away the rows of epochs that are trained again."""
    with open(logger.filename, "rb+") as file:
        file.seek(size)
        tail = io.StringIO(file.read().decode("utf-8", "replace"), newline="")
        rows = [row[:1] for row in csv.reader(tail, delimiter=logger.sep)]
        if not size:
            rows = rows[1:]  # the names of the columns
        # Rows of another run that was logged here since are not ours to drop.
        if rows == [[str(epoch + i)] for i in range(len(rows))] and rows:
            file.truncate(size)
            logger.append_header = not size


def _packed(value, arrays):
    """Makes nested values fit for JSON; arrays move to `arrays`."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        name = f"state/{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, list | tuple):
        return [_packed(item, arrays) for item in value]
    if isinstance(value, dict):
        return {key: _packed(item, arrays) for key, item in value.items()}
    return value


def _unpacked(value, arrays) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, arrays) for item in value]
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return arrays[value["array"]]
        return {key: _unpacked(item, arrays) for key, item in value.items()}
    return value


def _to_standard_error(text):
    print(text, file=sys.stderr, flush=True)
