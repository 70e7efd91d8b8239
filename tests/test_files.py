"""A file that is replaced is whole at every moment."""

import csv
import io
import os
import stat

import pytest

from keras_chargen import files
from keras_chargen.files import csv_text, replacing


def test_what_was_written_beside_takes_the_place(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_path_beside_keeps_the_suffix(tmp_path):
    with replacing(tmp_path / "a.keras") as beside:
        beside.write_bytes(b"")
        assert (beside.parent, beside.suffix) == (tmp_path, ".keras")


def test_the_new_name_reaches_the_disk_too(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(
        files.os, "fsync", lambda file: flushed.append(os.fstat(file))
    )
    with replacing(tmp_path / "a") as beside:
        beside.write_bytes(b"a")
    kinds = [stat.S_ISDIR(found.st_mode) for found in flushed]
    assert kinds == [False, True]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_old_file_stays_alone(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as beside:
        beside.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_csv_comes_back_as_it_was():
    rows = [["a,b", 'say "x"', "two\nlines"], ["", "é", "1"]]
    assert list(csv.reader(io.StringIO(csv_text(rows)))) == rows
    assert csv_text([[1, None]]) == "1,\n"
