"""Model files: written whole or not at all, refused in one line."""

import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_chargen.files import replacing
from keras_chargen.model import CharRNN

_REGISTERED = keras.saving.get_registered_name(CharRNN)
_MEMBERS = {"config.json", "metadata.json", "model.weights.h5"}


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
        with replacing(path) as beside:
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
        ValueError: The file is none, is damaged, or holds another model.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory, not a .keras file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix != ".keras":
        raise ValueError(f"{path} is not a .keras file; HDF5 is not read")
    try:
        with zipfile.ZipFile(path) as archive:
            missing = _MEMBERS.difference(archive.namelist())
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"{path} is not a .keras file, or it is cut off: {error}"
        ) from error
    if missing or damaged:
        what = f"has no {min(missing)}" if missing else f"{damaged} is damaged"
        raise ValueError(f"{path} is not a whole .keras file: {what}")
    try:
        with keras.saving.custom_object_scope({_REGISTERED: _Undrawn}):
            model = keras.saving.load_model(
                path, compile=compile, safe_mode=True
            )
    except NotImplementedError as error:
        raise ValueError(
            f"the {keras.backend.backend()} backend cannot run {path}: {error}"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} cannot be loaded: {reason[0]}") from error
    if not isinstance(model, CharRNN):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, not a CharRNN"
        )
    return model


class _Undrawn:
    """A `CharRNN` for a file whose weights follow.

    Drawing weights that are replaced at once takes longer than all the rest
    of loading where each operation is compiled first.
    """

    @staticmethod
    def from_config(config):
        # Variables made in this scope get their values when it ends.
        with keras.StatelessScope():
            model = CharRNN.from_config(config)
            for variable in model.weights:
                variable._initializer = _zeros
        return model


def _zeros(shape, dtype):
    return np.zeros(shape, dtype)
