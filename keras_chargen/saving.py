"""Model files: written whole or not at all, refused in one line."""

import math
import tempfile
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras.src.backend.common import global_state

from keras_chargen.compilation import one_device
from keras_chargen.files import replacing
from keras_chargen.inspection import check_fit, inspect
from keras_chargen.model import CharRNN

_REGISTERED = keras.saving.get_registered_name(CharRNN)
_UNUSED_OPTIMIZER = r"Skipping .* the saved optimizer has [0-3] variables"


def check_target(path, force=False):
    """Checks that a model can be written, before any slow work.

    Args:
        path: str or path that ends in `.keras`.
        force: Whether a file that is there may be replaced.

    Returns:
        `path` as a `Path`.

    Raises:
        ValueError: Another suffix, a folder, or a file that must stay.
        OSError: The folder is missing or not writable.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"a model file must end in .keras. Received: {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a directory; name a file in it")
    if path.exists() and not force:
        raise ValueError(f"{path} exists; --force replaces it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}")
    try:
        # The one sure test, for quotas and read-only file systems too.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            f"{path.parent} is not writable: {error.strerror}"
        ) from error
    return path


def save_model(model, path):
    """Writes a `.keras` file beside the target, flushes it and renames it.

    A file that was there stays whole until the new one is.

    Args:
        model: `CharRNN`.
        path: str or path that ends in `.keras`.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    try:
        with replacing(path) as beside, one_device():
            model.save(beside)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {path}: {reason}") from error


def load_model(path, compile=False):
    """Loads a model that this library wrote, in safe mode.

    Args:
        path: str or path of a `.keras` file.
        compile: Whether to restore the optimizer too, to train on.

    Returns:
        `CharRNN`.

    Raises:
        ValueError: The file is none, is damaged, or holds another model or
            more than a model: see `inspection.inspect`.
        OSError: There is no such file, or it may not be read.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory, not a .keras file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix != ".keras":
        raise ValueError(f"{path} is not a .keras file; HDF5 is not read")
    with open(path, "rb") as file:
        try:
            numbers = inspect(file)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(
                f"{path} is not a .keras file, or it is cut off: {error}"
            ) from error
        except Exception as error:
            raise ValueError(_refusal(path, error)) from error
    try:
        with (
            keras.saving.custom_object_scope({_REGISTERED: _Undrawn(numbers)}),
            warnings.catch_warnings(),
        ):
            # What Keras warns of is weights that stay as they were made. An
            # optimizer that never saw a gradient has none but its counters.
            warnings.filterwarnings("error", "Skipping ")
            warnings.filterwarnings("ignore", _UNUSED_OPTIMIZER)
            return keras.saving.load_model(
                path, compile=compile, safe_mode=True
            )
    except NotImplementedError as error:
        backend = keras.backend.backend()
        raise ValueError(
            _refusal(path, error, f"does not run under the {backend} backend")
        ) from error
    except Exception as error:
        raise ValueError(_refusal(path, error)) from error


def _refusal(path, error, what="cannot be loaded"):
    # The words of a stranger may be in it, and those of Keras are many.
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = "".join(c if c.isprintable() else "?" for c in reason[:300])
    return f"{path} {what}: {reason}"


class _Undrawn:
    """A `CharRNN` for a file whose weights follow.

    Drawing weights that are replaced at once takes longer than all the rest
    of loading where each operation is compiled first.

    Args:
        numbers: Integer, how many weights there are for it.
    """

    def __init__(self, numbers):
        self._numbers = numbers

    def from_config(self, config):
        waiting = global_state.get_global_attribute(
            "uninitialized_variables", [], set_to_default=True
        )
        try:
            with keras.StatelessScope(initialize_variables=False) as scope:
                model = CharRNN.from_config(config)
                count = sum(math.prod(weight.shape) for weight in model.weights)
                check_fit("weights", count, "numbers", self._numbers)
                if not keras.backend.is_float_dtype(model.compute_dtype):
                    raise ValueError(
                        "its dtype must be of floats. Received: "
                        f"{model.compute_dtype}"
                    )
                for variable in model.weights:
                    variable._initializer = _zeros
                # Variables made in this scope get their values when it ends.
                scope.initialize_variables = True
        except Exception as error:
            # Keras would give them values, and memory, in its next scope.
            waiting.clear()
            if isinstance(error, TypeError):
                # Keras would wrap it in many words.
                raise ValueError(str(error)) from error
            raise
        return model


def _zeros(shape, dtype):
    return np.zeros(shape, dtype)
