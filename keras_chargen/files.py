"""Files that are written whole or not at all, and rows of CSV."""

import contextlib
import csv
import io
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """A path beside `path` that takes its place at the end.

    What is written there is flushed to the disk and renamed, so that a file
    that was there stays whole until the new one is. After an exception
    nothing is left behind.

    Args:
        path: str or path of a file.

    Yields:
        `Path` in the same folder, with the same suffix.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        _flush_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _flush_folder(path):
    # A name is on the disk once its folder is; Windows opens no folder.
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def csv_text(rows):
    """Returns iterables of values as lines of CSV, each with its end."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()
