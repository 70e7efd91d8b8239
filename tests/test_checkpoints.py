"""A run that was stopped, or killed, ends as one that was not."""

import csv
import functools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_chargen import CharRNN, CharTokenizer, Checkpoint, checkpoints
from keras_chargen.callbacks import (
    SampleText,
    StopOnNonFinite,
    StopOnSignal,
    TimeBudget,
    synchronize,
)
from keras_chargen.checkpoints import Fingerprint, newest, read, write
from keras_chargen.optimizers import Muon

BACKEND = keras.backend.backend()
TEXTS = [f"day {i} of {i * i}" for i in range(60)]
HEADER = {
    "backend": BACKEND,
    "epoch": 1,
    "batch": 2,
    "step": 9,
    "stopped": False,
    "model": {},
    "settings": {},
    "callbacks": [],
}
ARRAYS = {
    "a": np.arange(6, dtype="float32").reshape(2, 3),
    "b": np.array(7, "int64"),
    "c": np.zeros((0, 2), "uint8"),
}


def trains(function):
    """Marks a test that trains by the pipeline."""
    return pytest.mark.trains(pytest.mark.needs_tensorflow(function))


class Stop(StopOnSignal):
    """Stops training, as a signal does, after so many batches of this `fit`."""

    def __init__(self, after=None):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        if self.left is not None:
            self.left -= 1
            if not self.left:
                self.received = signal.SIGTERM
        super().on_train_batch_end(batch, logs)


def tokenizer():
    found = CharTokenizer()
    found.adapt(TEXTS)
    return found


@functools.cache
def make_data(mode="lines", batch_size=8, **arguments):
    from keras_chargen import pipeline

    # One width: each is compiled.
    arguments |= (
        {"buckets": [16]} if mode == "lines" else {"sequence_length": 12}
    )
    texts = TEXTS[8:] if arguments.get("training", True) else TEXTS[:8]
    make = getattr(pipeline, mode)
    return make(texts, tokenizer(), batch_size, **arguments)


def make_model(optimizer="adam", carry=None, units=4, **arguments):
    from keras_chargen.scoring import BitsPerCharacter

    keras.utils.set_random_seed(0)
    model = CharRNN(tokenizer(), units=units, **arguments)
    optimizer = {
        "adam": lambda: keras.optimizers.Adam(0.05, global_clipnorm=1.0),
        "schedule": lambda: keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(0.05, 20, warmup_steps=3),
            use_ema=True,
            ema_momentum=0.9,
        ),
        "muon": lambda: Muon(0.05),
    }[optimizer]()
    model.compile(optimizer=optimizer, weighted_metrics=[BitsPerCharacter()])
    model.carry_state(carry)
    return model


def fit(
    folder,
    *callbacks,
    model=None,
    data=None,
    epochs=3,
    resume=None,
    validation=False,
    **settings,
):
    """Trains with checkpoints: the model, its logs and the `Checkpoint`."""
    data = make_data() if data is None else data
    model = model or make_model()
    checkpoint = Checkpoint(folder, data, callbacks, resume=resume, **settings)
    held_out = make_data(training=False) if validation else None
    logs = model.fit(
        data,
        initial_epoch=checkpoint.initial_epoch,
        callbacks=checkpoint.callbacks,
        validation_data=held_out,
        epochs=epochs,
        shuffle=False,
        verbose=0,
    ).history
    return model, logs, checkpoint


def state(model):
    """The bytes of all that training depends on."""
    return {
        name: keras.ops.convert_to_numpy(variable).tobytes()
        for name, variable in checkpoints._variables(model).items()
        if not name.startswith("metrics")
    }


# ---------------------------------------------------------- exactness

CASES = {
    "lines": lambda: (
        make_data("lines"),
        make_model(dropout=0.3),
    ),
    "windows": lambda: (
        make_data("windows", random_offset=True),
        make_model("schedule", cell="gru", dropout=0.2, input_dropout=0.1),
    ),
    "streams": lambda: (
        make_data("streams", 4),
        make_model(
            "muon", carry=4, weight_dropout=0.2, variational_dropout=True
        ),
    ),
}


@trains
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    case, tmp_path, monkeypatch
):
    # What is shown does not matter here, but when it is.
    monkeypatch.setattr(CharRNN, "generate", lambda *_, **__: ["text"])

    def run(name, after=None, resume=None):
        data, model = CASES[case]()
        return fit(
            tmp_path / name,
            SampleText("T", every=4, max_new_tokens=2, write=shown.append),
            Stop(after),
            keras.callbacks.EarlyStopping(
                "val_bits_per_character",
                patience=1,
                mode="min",
                restore_best_weights=True,
            ),
            keras.callbacks.CSVLogger(tmp_path / f"{name}.csv", append=True),
            data=data,
            model=model,
            resume=resume,
            validation=True,
            batches=10_000,
        )

    shown: list = []
    whole, logs, checkpoint = run("whole")
    whole_shown, shown = shown, []
    steps = checkpoint.params["steps"]
    assert steps >= 6 and len(logs["loss"]) == 3
    draw = random.Random(case)
    first = draw.randrange(1, steps)
    cuts = {
        "lines": [first, steps - first, None],  # the second ends the epoch
        "windows": [steps + first, None],
        "streams": [first, None],
    }[case]
    saved = None
    for cut in cuts:
        model, logs_left, _ = run("cut", cut, saved)
        saved = newest(tmp_path / "cut")
    assert state(model) == state(whole)
    assert {name: values[-1] for name, values in logs_left.items()} == {
        name: values[-1] for name, values in logs.items()
    }
    assert shown == whole_shown
    table = (tmp_path / "whole.csv").read_text()
    assert (tmp_path / "cut.csv").read_text() == table
    assert [row["epoch"] for row in csv.DictReader(table.splitlines())] == [
        *"012"
    ]


@trains
@pytest.mark.skipif(
    BACKEND == "torch", reason="how often Torch draws depends on Keras"
)
def test_checkpoints_change_nothing_in_training(tmp_path):
    from keras_chargen import pipeline

    watched, *_ = fit(
        tmp_path, model=make_model(dropout=0.3), batches=2, epochs=2
    )
    data, model = make_data(), make_model(dropout=0.3)
    seek = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: pipeline.seek(data, epoch)
    )
    model.fit(data, epochs=2, callbacks=[seek], shuffle=False, verbose=0)
    assert state(model) == state(watched)


@trains
def test_early_stopping_is_not_undone_by_a_resume(tmp_path):
    def early():
        # Nothing is better than the first epoch, so the third is the last.
        return keras.callbacks.EarlyStopping("loss", mode="max", patience=2)

    model, logs, _ = fit(tmp_path, early(), epochs=9)
    assert len(logs["loss"]) == 3
    again, logs, _ = fit(tmp_path, early(), epochs=9, resume=newest(tmp_path))
    assert logs == {} and state(again) == state(model)


@trains
def test_a_budget_of_time_goes_on_counting(tmp_path):
    class Clock(keras.callbacks.Callback):
        now = 0.0

        def on_train_batch_end(self, batch, logs=None):
            Clock.now += 1

    def run(after, resume=None):
        Clock.now += 1000
        budget = TimeBudget(20, lambda: Clock.now)
        return fit(
            tmp_path,
            *(Clock(), Stop(after), budget),
            epochs=99,
            resume=resume,
        )[-1]

    before = run(8).params["steps"]
    run(None, newest(tmp_path))
    last = newest(tmp_path)
    assert last.header["step"] == 20 and before < 20
    # All of it is used up: to resume trains no more.
    run(None, last)
    assert newest(tmp_path).header["step"] == 20


@trains
def test_a_signal_saves_where_training_stopped(tmp_path):
    class Press(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)

    *_, checkpoint = fit(tmp_path, Press(), StopOnSignal())
    header = newest(tmp_path).header
    assert (header["epoch"], header["batch"], header["step"]) == (0, 3, 3)
    assert not header["stopped"] and checkpoint.path == newest(tmp_path).path


# ---------------------------------------------------------- what is kept


@trains
def test_the_last_few_are_kept(tmp_path):
    *_, checkpoint = fit(tmp_path, batches=2, keep=2, epochs=1)
    steps = checkpoint.params["steps"]
    names = sorted(path.name for path in tmp_path.iterdir())
    last = [steps - 1, steps] if steps % 2 else [steps - 2, steps]
    assert names == [f"checkpoint-{step:010d}.ckpt" for step in last]


@trains
def test_time_calls_for_a_checkpoint_too(tmp_path, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(ticks))
    fit(tmp_path, seconds=1, keep=99, epochs=1)
    assert len(list(tmp_path.iterdir())) > 2


@trains
def test_what_a_killed_process_left_half_written_goes(tmp_path):
    half = tmp_path / ".checkpoint-0000000001.77.ckpt"
    half.write_bytes(b"half")
    fit(tmp_path, epochs=1)
    assert not half.exists()


@trains
def test_nothing_is_saved_that_is_not_finite(tmp_path):
    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                synchronize(self.model)
                weight = self.model.trainable_variables[0]
                weight.assign(weight * float("nan"))

    with pytest.raises(FloatingPointError, match="nan at batch 5"):
        fit(tmp_path, Break(), StopOnNonFinite(6), batches=1)
    assert newest(tmp_path).header["step"] == 3


@trains
def test_a_batch_is_named_by_its_place_in_the_whole_epoch(tmp_path):
    class Spoil(Stop):
        def on_train_batch_begin(self, batch, logs=None):
            if self.left is None and batch == 1:
                synchronize(self.model)
                weight = self.model.trainable_variables[0]
                weight.assign(weight * float("nan"))

    fit(tmp_path, Spoil(2), StopOnNonFinite(1))
    with pytest.raises(FloatingPointError, match="nan at batch 4 of epoch 1"):
        fit(tmp_path, Spoil(), StopOnNonFinite(1), resume=newest(tmp_path))


# ---------------------------------------------------------- a full disk


@trains
def test_a_full_disk_stops_no_training_and_leaves_the_older_whole(
    tmp_path, capsys
):
    resource = pytest.importorskip("resource")
    fit(tmp_path, Stop(3))
    saved = newest(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        *_, checkpoint = fit(
            tmp_path, Stop(), resume=saved, batches=4, epochs=1
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    said = capsys.readouterr().err
    assert "cannot write" in said and "File too large" in said
    assert f"training goes on, {saved.path} is the last" in said
    assert isinstance(checkpoint.failure, OSError)
    assert os.listdir(tmp_path) == [saved.path.name]
    assert newest(tmp_path).header["step"] == 3


@pytest.mark.parametrize("left", range(0, 501, 50))
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    tmp_path, monkeypatch, left
):
    class Filling:
        def __init__(self, file):
            self.file, self.left = file, left

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.left -= len(data)
            self.file.write(data[: max(0, self.left + len(data))])
            if self.left < 0:
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        checkpoints,
        "open",
        lambda *arguments: Filling(open(*arguments)),  # noqa: SIM115
        raising=False,
    )
    path = tmp_path / "checkpoint-0000000001.ckpt"
    try:
        write(path, HEADER, ARRAYS)
    except OSError as error:
        assert "No space left" in str(error)
        assert not list(tmp_path.iterdir())
    else:
        monkeypatch.undo()
        assert list(read(path).arrays) == list(ARRAYS)


# ---------------------------------------------------------- reading


def put(folder, step, **changes):
    path = folder / f"checkpoint-{step:010d}.ckpt"
    write(path, {**HEADER, "step": step, **changes}, ARRAYS)
    return path


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved = read(put(tmp_path, 5))
    assert saved.header["step"] == 5
    assert list(saved.arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(saved.arrays[name], array)
        assert saved.arrays[name].dtype == array.dtype


def test_bfloat16_comes_back(tmp_path):
    array = keras.ops.convert_to_numpy(keras.ops.ones((2, 3), "bfloat16"))
    path = tmp_path / "a.ckpt"
    write(path, HEADER, {"a": array.astype("bfloat16")})
    found = read(path).arrays["a"]
    assert str(found.dtype) == "bfloat16" and (found == 1).all()


def test_the_newest_is_read(tmp_path):
    for step in (9, 10, 100):
        put(tmp_path, step)
    assert newest(tmp_path).header["step"] == 100


def cut(data):
    return data[:-1]


def flip(data):
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


def other(data):
    return b"PK" + data


def later(data):
    return data.replace(b"checkpoint 1\n", b"checkpoint 2\n")


@pytest.mark.parametrize(
    "spoil, said",
    [
        (cut, "is damaged"),
        (flip, "is damaged"),
        (lambda data: b"", "not a checkpoint"),
        (lambda data: data[:30], "is damaged"),
        (other, "not a checkpoint"),
        (later, "another version"),
    ],
)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(
    spoil, said, tmp_path, capsys
):
    put(tmp_path, 1)
    path = put(tmp_path, 2)
    path.write_bytes(spoil(path.read_bytes()))
    assert newest(tmp_path).header["step"] == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and said in line and "before is used" in line


def test_where_all_are_damaged_one_line_says_so(tmp_path, capsys):
    for step in (1, 2):
        path = put(tmp_path, step)
        path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(ValueError, match="no checkpoint that can be used"):
        newest(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoints"):
        newest(tmp_path)


def test_another_backend_is_refused(tmp_path):
    put(tmp_path, 1, backend="mxnet")
    with pytest.raises(ValueError, match="under KERAS_BACKEND=mxnet, this is"):
        newest(tmp_path)


def forge(path, header, size=100, length=None):
    """A file whose checksum is right, with any header."""
    import hashlib

    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    data = checkpoints._MAGIC + length.to_bytes(8, "little") + text
    data += bytes(size)
    path.write_bytes(data + hashlib.sha256(data).digest())


@pytest.mark.parametrize(
    "header, length",
    [
        pytest.param(b"{", None, id="no JSON"),
        pytest.param(b"[" * 100_000, None, id="deep JSON"),
        pytest.param([], None, id="a list"),
        pytest.param({}, None, id="nothing"),
        pytest.param(HEADER, None, id="no arrays"),
        pytest.param(HEADER, 1 << 60, id="a long header"),
        *(
            pytest.param({**HEADER, "arrays": arrays}, None, id=name)
            for name, arrays in {
                "a bomb": [["a", "float32", [1_000_000_000]]],
                "a bigger bomb": [["a", "float32", [1 << 40, 1 << 40]]],
                "negative": [["a", "uint8", [-1, -100]]],
                "objects": [["a", "object", [1]]],
                "no shape": [["a", "uint8", None]],
                "many axes": [["a", "uint8", [1] * 99 + [100]]],
                "too little": [["a", "uint8", [99]]],
                "no list": 7,
            }.items()
        ),
        *(
            pytest.param({**HEADER, "arrays": [], name: value}, None, id=name)
            for name, value in {
                "epoch": -1,
                "batch": "1",
                "step": True,
                "callbacks": {},
            }.items()
        ),
    ],
)
def test_a_file_from_a_stranger_is_refused(header, length, tmp_path):
    path = tmp_path / "checkpoint-1.ckpt"
    size = 0 if isinstance(header, dict) and not header.get("arrays") else 100
    forge(path, header, size, length)
    with pytest.raises(ValueError, match="is not a checkpoint: "):
        read(path)


# ---------------------------------------------------------- what does not fit


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    fit(folder, epochs=1)
    return folder


@trains
def test_a_folder_of_another_run_is_refused(tmp_path):
    put(tmp_path, 1)
    with pytest.raises(ValueError, match="holds the checkpoints of a run"):
        Checkpoint(tmp_path, make_data())


@trains
def test_other_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must come from `lines`"):
        Checkpoint(tmp_path, make_data().take(2))


@trains
def test_a_folder_that_cannot_be_written_is_told_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="no checkpoint can be written in"):
        Checkpoint(tmp_path / "file" / "folder", make_data())


@trains
@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"seconds": 0}, "seconds"),
        ({"batches": 0}, "batches"),
        ({"keep": 0}, "keep"),
    ],
)
def test_a_number_out_of_range_is_named(arguments, name, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Checkpoint(tmp_path, make_data(), **arguments)


@trains
@pytest.mark.parametrize(
    "others, make, said",
    [
        ([], lambda: make_model(units=5), "of another model"),
        ([], lambda: make_model("schedule"), "another optimizer"),
        ([Stop()], make_model, "other callbacks"),
    ],
)
def test_what_a_checkpoint_does_not_fit_is_refused(
    others, make, said, finished
):
    with pytest.raises(ValueError, match=said):
        fit(finished, *others, model=make(), resume=newest(finished))


def test_texts_are_told_from_others_by_what_they_are_and_their_order():
    def digest(*texts):
        fingerprint = Fingerprint()
        assert list(fingerprint.watch(texts)) == list(texts)
        return fingerprint.digest()

    assert digest("ab", "c") == digest("ab", "c")
    others = [
        ("a", "bc"),
        ("c", "ab"),
        ("ab",),
        ("ab", "c", ""),
        ("ab", "\ud800"),
    ]
    assert len({digest(*texts) for texts in (("ab", "c"), *others)}) == 6


# ---------------------------------------------------------- killed

# How often in all: `KERAS_CHARGEN_KILLS=20` does under every backend what
# Torch, which compiles nothing, does each time.
KILLS = int(
    os.environ.get("KERAS_CHARGEN_KILLS", "20" if BACKEND == "torch" else "3")
)


@pytest.mark.slow
@trains
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bytes(tmp_path):
    script = Path(__file__).with_name("killing.py")
    report = subprocess.run(
        [sys.executable, script, str(tmp_path), str(KILLS), "0"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    print(report.stdout)
    assert report.returncode == 0, report.stdout + report.stderr
    lines = report.stdout.splitlines()
    assert len([line for line in lines if line.startswith("killed")]) == KILLS
    assert lines[-1] == "all the same"
