"""Compiled programs kept on disk, so that the next process starts at once."""

import contextlib
import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path

import keras

from keras_chargen.compilation import keeper

VARIABLE = "KERAS_CHARGEN_CACHE"
LIMIT = 256_000_000  # bytes


def keep_programs(folder=None):
    """Keeps compiled programs on disk, for this process and later ones.

    Under TensorFlow and JAX; the other backends make none that are slow to
    make. The command line calls it. A program calls it once, before it writes
    or trains: it sets what holds for all of TensorFlow or JAX, and leaves
    alone a cache that the program has set there itself. What is oldest goes
    where all programs take more than 256 MB.

    Whoever can write to the folder can run code in the processes that use it.

    Args:
        folder: str or path. None takes the environment variable
            `KERAS_CHARGEN_CACHE`: a folder, or `off` for none. Without it
            that is `keras_chargen` in the folder of Keras, which is
            `KERAS_HOME` or `~/.keras`.

    Returns:
        The `Path` in it where the programs of this backend, version and
        processor are, or None where none are kept: switched off, not
        writable, another backend.
    """
    keep = keeper()
    if keep is None:
        return None
    if folder is None:
        folder = os.environ.get(VARIABLE)
        if folder == "off":
            return None
    try:
        folder = Path(folder or _default_folder()).absolute()
        place = folder / _kind()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The one sure test, for quotas and read-only file systems too.
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, RuntimeError):  # a user without a home
        return None
    _trim(folder)
    return place if keep(place) else None


def _trim(folder):
    programs = []
    # The folder is the user's choice: only what is ours may go.
    for path in folder.glob(f"*-{16 * '[0-9a-f]'}/*"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            programs.append((stat.st_mtime, stat.st_size, path))
    excess = sum(size for _, size, _ in programs) - LIMIT
    for _, size, path in sorted(programs):
        if excess <= 0:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        excess -= size


def _default_folder():
    home = os.environ.get("KERAS_HOME") or Path("~", ".keras").expanduser()
    return Path(home, "keras_chargen")


def _kind():
    # Programs are machine code: for one version of what made them, and for
    # the instructions of one processor, though homes are shared.
    backend = keras.backend.backend()
    version = sys.modules[backend].__version__
    parts = (version, keras.__version__, _processor())
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    return f"{backend}-{digest[:16]}"


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return line
    except OSError:
        pass
    return platform.processor() or platform.machine()
