"""Where text comes from: embedded, files, TFDS; preparing AG News.

A corpus is opened by a short string and gives texts when iterated. Whatever
can be wrong is looked for when it is opened, before any slow work; whatever
can only be seen while reading is said with the file and the line.
"""

import codecs
import contextlib
import csv
import difflib
import gzip
import io
import itertools
import json
import logging
import os
import re
import sys
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from keras_chargen.checks import check_choice, check_integer
from keras_chargen.templates import Template

MODES = ("lines", "windows")
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")

_ACCEPTED = (
    "a corpus is `python-docs`, `tfds:NAME[:SPLIT]` or the path of a "
    f"{', '.join(SUFFIXES)} file, also with .gz"
)
_AG_NEWS = "ag_news_subset"
_HEAD_BYTES = 1 << 16
_UNDECODABLE_SHARE = 0.3
_PIECE_CHARACTERS = 1 << 16
# A line or a csv field beyond this is no text to train on but a file read in
# the wrong way (an unclosed quote, a book without line ends); without a bound
# it would be read into memory whole.
_LINE_CHARACTERS = 1 << 24
_ROWS = 32  # of a table, parsed at once

# UTF-8 never decodes to a surrogate, so one can stand for invalid bytes until
# they are counted; U+FFFD itself may be in the file.
_MARK = "\udc80"
_MARK_ERRORS = "keras_chargen.mark"
_SURROGATES = re.compile("[\ud800-\udfff]")


def _mark_invalid(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _MARK, error.end


codecs.register_error(_MARK_ERRORS, _mark_invalid)


class CorpusError(ValueError):
    """A corpus that cannot be read.

    The message is one line that names the file (and the line in it, where
    one is to blame) and says what is accepted.
    """


class Corpus:
    """Texts from one source, read anew by each iteration.

    Nothing is kept: every `iter` opens the source and streams it, and closes
    it when the iterator ends or is dropped. Invalid UTF-8 is U+FFFD in what
    comes out. Unless `joined`, blank texts are left out.

    Iterating raises `CorpusError` where the source turns out to be damaged,
    and at the end if no text was other than blank.

    Args:
        name: String, how the user called the corpus.
        read: Function without arguments that returns a fresh generator of
            strings.
        joined: Boolean, whether the strings are pieces of one stream.
        limit: Positive integer, texts (or pieces) to give; `None` for all.

    Attributes:
        name: The `name` argument.
        joined: If `False`, each string is a text of its own. If `True`, the
            strings are consecutive pieces of one text: joined with nothing
            between they are that text exactly.
        skipped: Blank texts left out by the last full iteration.
        replaced: Texts of the last full iteration in which something that
            was not valid Unicode became U+FFFD.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Generator[str, None, None]],
        *,
        joined: bool = False,
        limit: int | None = None,
    ) -> None:
        self.name = name
        self.joined = joined
        self.skipped = 0
        self.replaced = 0
        self._read = read
        self._limit = limit

    def __iter__(self) -> Iterator[str]:
        skipped = replaced = given = 0
        only_blank = True
        with contextlib.closing(self._read()) as texts:
            for text in texts:
                blank = not text or text.isspace()
                only_blank = only_blank and blank
                if blank and not self.joined:
                    skipped += 1
                    continue
                if not text.isascii() and _SURROGATES.search(text):
                    text = _SURROGATES.sub("\ufffd", text)
                    replaced += 1
                given += 1
                yield text
                if given == self._limit:
                    break
        self.skipped, self.replaced = skipped, replaced
        if only_blank:
            raise CorpusError(
                f"{self.name}: there is no text in it but blanks; "
                "at least one text must hold more than white space"
            )

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, joined={self.joined})"


class PreparedDataset(NamedTuple):
    """What `prepare_ag_news` built.

    Attributes:
        directory: String, the folder of the prepared dataset.
        examples: Dictionary, the number of examples of each split.
    """

    directory: str
    examples: dict[str, int]


def open_corpus(
    spec: str | os.PathLike[str],
    *,
    field: str | int | None = None,
    mode: str = "lines",
    columns: Sequence[str] | None = None,
    header: bool | None = None,
    limit: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    template: str | None = None,
) -> Corpus:
    r"""Opens a corpus by name or path.

    All files are UTF-8; invalid bytes become U+FFFD and a byte order mark at
    the start is dropped. A text is

    - in a `.txt` file in mode `"lines"`: a line without its ending, `\n` or
      `\r\n` (a lone `\r` and U+2028 end no line). In mode `"windows"` the
      file is one text, given in pieces that end after blank lines; a
      paragraph of more than 65,536 characters is given in several.
    - in a `.csv`, `.tsv` or `.jsonl` file: the field of a row, in both modes,
      line ends included. The quoting of `.tsv` is that of `.csv`.
    - in `python-docs`, the language reference inside CPython: a line, in mode
      `"windows"` a topic.
    - in `tfds:NAME[:SPLIT]`: the field of an example. Data that is prepared
      is read offline; other data is downloaded and prepared first.

    Args:
        spec: String or path: `python-docs`, `tfds:NAME[:SPLIT]` (the split
            is `train` if not given), or a file that ends in `.txt`, `.csv`,
            `.tsv` or `.jsonl`, also followed by `.gz`.
        field: Where the text is. For `.csv` and `.tsv` the name of a column
            or its number from 1 (an integer or a string of digits); not
            needed for a single column. For `.jsonl` a key; not needed where
            each line is a string. For TFDS the name of a text feature; not
            needed where there is only one. For `ag_news_subset` it is
            `"title"` if not given, and `"both"` is the title, a line end and
            the description.
        mode: String, `"lines"` or `"windows"`.
        columns: List of strings, the names of the columns of a `.csv` or
            `.tsv` file that has no header.
        header: Boolean, whether the first row of a `.csv` or `.tsv` file
            holds names. `None` is `True` where `field` is a name and
            `columns` is not given.
        limit: Positive integer, how many texts (or pieces) to give. `None`
            gives all.
        data_dir: Path, where TFDS keeps its data. `None` is TFDS's default.
        template: String such as `"{label}: {title}"`, which makes a text of
            several fields, each named as `field` would be; in its place. A
            class label of TFDS is written by its name, a number in a
            `.jsonl` as it is.

    Returns:
        A `Corpus`.

    Raises:
        CorpusError: If the source is missing or is not what it should be; in
            one line.
        ValueError: If an argument is not accepted.
    """
    check_choice("mode", mode, MODES)
    if limit is not None:
        limit = check_integer("limit", limit, minimum=1)
    if isinstance(field, bool) or not isinstance(field, str | int | None):
        raise ValueError(
            "`field` must be a name, a column number or None. "
            f"Received: {field!r}"
        )
    form = None if template is None else Template(template)
    if form is not None and field is not None:
        raise ValueError(
            "`template` names its fields itself: leave `field` out. "
            f"Received: {field!r}"
        )
    if not isinstance(spec, str | os.PathLike) or not os.fspath(spec):
        raise ValueError(f"`spec`: {_ACCEPTED}. Received: {spec!r}")
    name = os.fsdecode(spec)
    suffix = _suffix(name)
    embedded = spec == "python-docs"
    from_tfds = isinstance(spec, str) and spec.startswith("tfds:")
    if data_dir is not None and not from_tfds:
        raise ValueError(
            f"`data_dir` is for `tfds:` corpora only. Received: {name!r}"
        )
    in_table = suffix in (".csv", ".tsv") and not from_tfds
    if not in_table and (columns is not None or header is not None):
        raise ValueError(
            "`columns` and `header` are for .csv and .tsv files only. "
            f"Received: {name!r}"
        )
    joined = False
    if embedded:
        _check_no_field(name, field or template)
        read = _read_python_docs(mode)
    elif from_tfds:
        read = _read_tfds(name, field, data_dir, form)
    else:
        path = Path(name)
        _check_file(path, suffix)
        if suffix == ".txt":
            _check_no_field(name, field or template)
            joined = mode == "windows"
            read = _read_pieces(path) if joined else _read_lines(path)
        elif suffix == ".jsonl":
            read = _read_json(path, field, form)
        else:
            delimiter = "," if suffix == ".csv" else "\t"
            read = _read_table(path, delimiter, field, columns, header, form)
    return Corpus(name, read, joined=joined, limit=limit)


_Read = Callable[[], Generator[str, None, None]]


def _check_no_field(name: str, field: str | int | None) -> None:
    if field is not None:
        raise CorpusError(
            f"{name} has no fields; leave `field` and `template` out. "
            f"Received: {field!r}"
        )


def _suffix(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


# ---------------------------------------------------------------- files


def _open_bytes(path: Path) -> io.BufferedReader | gzip.GzipFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    return open(path, "rb")


@contextlib.contextmanager
def _one_line_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Says in one line what reading the file ran into."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(
            f"{path}: damaged gzip ({_first_line(error)}); "
            "fetch or compress the file again"
        ) from error
    except tarfile.TarError as error:
        raise CorpusError(
            f"{path}: damaged archive ({_first_line(error)}); fetch it again"
        ) from error
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise CorpusError(f"{path}: cannot be read: {reason}") from error


@contextlib.contextmanager
def _open_text(path: Path, newline: str) -> Iterator[IO[str]]:
    with (
        _one_line_errors(path),
        _open_bytes(path) as raw,
        io.TextIOWrapper(
            raw, encoding="utf-8", errors=_MARK_ERRORS, newline=newline
        ) as file,
    ):
        yield file


def _check_file(path: Path, suffix: str) -> None:
    """Finds what is wrong with the file as a whole, from its start."""
    with _one_line_errors(path):
        if not path.exists():
            raise CorpusError(f"{path}: no such file; {_ACCEPTED}")
        if path.is_dir():
            raise CorpusError(f"{path}: is a directory; {_ACCEPTED}")
        if suffix not in SUFFIXES:
            raise CorpusError(
                f"{path}: unknown kind of file; accepted are "
                f"{', '.join(SUFFIXES)}, also followed by .gz"
            )
        if not path.is_file():
            raise CorpusError(f"{path}: not a regular file; {_ACCEPTED}")
        with _open_bytes(path) as file:
            head = file.read(_HEAD_BYTES)
    if not head:
        raise CorpusError(f"{path}: the file is empty; it must hold UTF-8 text")
    # Not final: the block may end inside a code point.
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    invalid = len(_SURROGATES.findall(decoder.decode(head)))
    if b"\0" in head or invalid > _UNDECODABLE_SHARE * len(head):
        raise CorpusError(f"{path}: a binary file; it must hold UTF-8 text")


def _too_long(path: str | os.PathLike[str], number: int) -> CorpusError:
    return CorpusError(
        f"{path}, line {number}: longer than {_LINE_CHARACTERS:,} "
        "characters; a .txt file of long lines can be read in mode "
        "'windows'"
    )


def _file_lines(file: IO[str], path: str | os.PathLike[str]) -> Iterator[str]:
    """Lines with their ends, as the file's `newline` cuts them."""
    number = 0
    while line := file.readline(_LINE_CHARACTERS + 1):
        number += 1
        if len(line) > _LINE_CHARACTERS:
            raise _too_long(path, number)
        yield line.removeprefix("\ufeff") if number == 1 else line


def _read_lines(path: Path) -> _Read:
    def read() -> Generator[str, None, None]:
        with _open_text(path, newline="\n") as file:
            yield from _bare_lines(file, path)

    return read


def _bare_lines(
    file: IO[str], path: str | os.PathLike[str]
) -> Generator[str, None, None]:
    r"""Lines without `\n` or `\r\n`, cut out of a block of the file at once."""
    number = 0
    begun: list[str] = []  # the line that goes on in the next block
    block = file.read(_PIECE_CHARACTERS).removeprefix("\ufeff")
    while block:
        begun.append(block)
        if "\n" in block:
            text = "".join(begun)
            lines = text.split("\n")
            begun = [lines.pop()]
            if len(text) >= _LINE_CHARACTERS:
                for i, line in enumerate(lines, number + 1):
                    if len(line) >= _LINE_CHARACTERS:
                        raise _too_long(path, i)
            if "\r" in text:
                lines = [line.removesuffix("\r") for line in lines]
            number += len(lines)
            yield from lines
        if sum(map(len, begun)) > _LINE_CHARACTERS:
            raise _too_long(path, number + 1)
        block = file.read(_PIECE_CHARACTERS)
    if begun and begun != [""]:
        yield "".join(begun)


def _read_pieces(path: Path, limit: int | None = None) -> _Read:
    limit = limit or _PIECE_CHARACTERS

    def read() -> Generator[str, None, None]:
        with _open_text(path, newline="\n") as file:
            yield from _pieces(file, limit)

    return read


def _pieces(
    file: IO[str], limit: int = _PIECE_CHARACTERS
) -> Generator[str, None, None]:
    r"""Cuts a stream into pieces of at most `limit` characters (at least 2).

    A cut is made after each run of blank lines, at the end of a line where a
    paragraph is longer than `limit`, and anywhere but between `\r` and `\n`
    where a line is.
    """
    paragraph: list[str] = []
    size = 0
    has_text = after_blank = inside_line = False
    # "\n" is the only line end to this file, so ends are kept as they are.
    start = file.read(1).removeprefix("\ufeff")
    while line := start + file.readline(limit - len(start)):
        start = ""
        if len(line) == limit and line.endswith("\r"):
            line, start = line[:-1], "\r"  # its "\n" may be still to come
        complete = line.endswith("\n")
        blank = complete and not inside_line and line.isspace()
        if paragraph and (
            size + len(line) > limit or (after_blank and has_text and not blank)
        ):
            yield "".join(paragraph)
            paragraph, size, has_text = [], 0, False
        paragraph.append(line)
        size += len(line)
        has_text = has_text or not blank
        after_blank = blank
        inside_line = not complete
    if paragraph:
        yield "".join(paragraph)


# ---------------------------------------------------------------- csv, tsv


class _RaisedFieldLimit:
    """Lets csv read long fields without leaving its limit changed.

    The limit belongs to the whole process. It is raised only while a row is
    parsed; the count makes readers in several threads put back the limit
    that was there before the first of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._before = csv.field_size_limit()
                csv.field_size_limit(max(self._before, _LINE_CHARACTERS))
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                csv.field_size_limit(self._before)


_raised_field_limit = _RaisedFieldLimit()


def _rows(
    file: IO[str], path: str | os.PathLike[str], delimiter: str
) -> Generator[tuple[int, list[str]], None, None]:
    """Rows, each with the number of its last line; an empty line is `[]`."""
    reader = csv.reader(
        _file_lines(file, path), delimiter=delimiter, strict=True
    )
    size = 1
    while True:
        rows: list[tuple[int, list[str]]] = []
        stop: Exception | None = None
        try:
            # Raising the limit costs as much as parsing a short row.
            with _raised_field_limit:
                for row in itertools.islice(reader, size):
                    rows.append((reader.line_num, row))
        except Exception as error:
            stop = error
        yield from rows
        if isinstance(stop, csv.Error):
            raise CorpusError(
                f"{path}, line {reader.line_num}: {_first_line(stop)}; "
                "a row must be fields between "
                f"{'commas' if delimiter == ',' else 'tabs'}, quoted with "
                '" where needed'
            ) from stop
        if stop is not None:
            raise stop
        if len(rows) < size:
            return
        size = min(2 * size, _ROWS)


def _read_table(
    path: Path,
    delimiter: str,
    field: str | int | None,
    columns: Sequence[str] | None,
    header: bool | None,
    form: Template | None,
) -> _Read:
    if columns is not None and (
        isinstance(columns, str)
        or not columns
        or not all(isinstance(column, str) for column in columns)
    ):
        raise ValueError(
            "`columns` must be a list of column names. "
            f"Received: columns={columns!r}"
        )
    fields = [field] if form is None else form.fields
    if header is None:
        header = columns is None and any(
            each is not None and _number(each) is None for each in fields
        )
    with _open_text(path, newline="") as file:
        rows = _rows(file, path, delimiter)
        first_line, first = next(
            ((line, row) for line, row in rows if row), (0, [])
        )
    if not first:
        raise CorpusError(f"{path}: there are no rows but empty lines")
    names = list(columns) if columns is not None else None
    if names is None and header:
        names = [_SURROGATES.sub("\ufffd", name) for name in first]
    width = len(first) if names is None else len(names)
    indices = [
        _column_index(path, each, _number(each), names, width)
        for each in fields
    ]
    last = max(indices)

    def pick(line: int, row: list[str]) -> str:
        if not row:
            return ""
        # A row that is too long is most often one with an unquoted delimiter
        # in a text: what the field holds is then not the whole text.
        if len(row) > width or len(row) <= last:
            raise CorpusError(
                f"{path}, line {line}: the row has {len(row)} column(s); "
                f"accepted are rows of {width}"
            )
        if form is None:
            return row[indices[0]]
        return form.fill([row[index] for index in indices])

    if not header:
        pick(first_line, first)

    def read() -> Generator[str, None, None]:
        with _open_text(path, newline="") as file:
            to_skip = header
            for line, row in _rows(file, path, delimiter):
                if to_skip and row:
                    to_skip = False
                else:
                    yield pick(line, row)

    return read


def _number(field: str | int | None) -> int | None:
    """The number of a column, where the field is one."""
    if isinstance(field, int) or (field is not None and field.isdecimal()):
        return int(field)
    return None


def _column_index(
    path: Path,
    field: str | int | None,
    number: int | None,
    names: list[str] | None,
    width: int,
) -> int:
    """Where in a row the field is, from 0."""
    known = f"1 to {width}" if names is None else ", ".join(map(repr, names))
    if number is not None:
        if not 1 <= number <= width:
            raise CorpusError(
                f"{path}: no column {number}; the columns are {known}"
                + ("" if names is None else f" (1 to {width})")
            )
        return number - 1
    if field is None:
        if width == 1:
            return 0
        raise CorpusError(
            f"{path}: has {width} columns, so `field` must name or number "
            f"one; the columns are {known}"
        )
    if names is None:
        raise CorpusError(
            f"{path}: `field` can be a name only where there is a header row "
            f"or `columns`; the columns are {known}. Received: {field!r}"
        )
    if names.count(str(field)) > 1:
        raise CorpusError(
            f"{path}: {field!r} names several columns; give a number from 1 "
            f"to {width}, in the order of {known}"
        )
    if field not in names:
        raise CorpusError(
            f"{path}: no column {field!r}; the columns are {known}"
        )
    return names.index(str(field))


# ---------------------------------------------------------------- jsonl


def _json_text(
    path: Path,
    number: int,
    line: str,
    field: str | None,
    form: Template | None,
) -> str:
    where = f"{path}, line {number}"
    value = _json_value(where, line)
    if form is None:
        return _json_field(where, value, field)
    return form.fill(
        [_json_field(where, value, each, numbers=True) for each in form.fields]
    )


def _json_value(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    # Besides JSONDecodeError: an integer of too many digits.
    except ValueError as error:
        raise CorpusError(
            f"{where}: not JSON ({_first_line(error)}); each line must be a "
            "JSON object or string"
        ) from error
    except RecursionError as error:
        raise CorpusError(
            f"{where}: nested too deep; each line must be a JSON object or "
            "string"
        ) from error


def _json_field(
    where: str, value: Any, field: str | None, numbers: bool = False
) -> str:
    if field is None:
        if isinstance(value, dict):
            raise CorpusError(
                f"{where}: is an object, so `field` must name a key; the "
                f"keys are {', '.join(map(repr, value)) or 'none'}"
            )
    elif not isinstance(value, dict):
        raise CorpusError(
            f"{where}: not a JSON object, so it has no {field!r}; accepted "
            "are objects, or strings without `field`"
        )
    elif field not in value:
        raise CorpusError(
            f"{where}: no key {field!r}; the keys are "
            f"{', '.join(map(repr, value)) or 'none'}"
        )
    else:
        value = value[field]
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise CorpusError(f"{where}: the value must be a string, not {kind}")
    return value


def _read_json(
    path: Path, field: str | int | None, form: Template | None
) -> _Read:
    key = None if field is None else str(field)

    def read() -> Generator[str, None, None]:
        with _open_text(path, newline="\n") as file:
            for number, line in enumerate(_file_lines(file, path), 1):
                if not line.isspace():
                    yield _json_text(path, number, line, key, form)

    # The first line tells whether the key is there.
    with contextlib.closing(read()) as texts:
        next(texts, None)
    return read


# ---------------------------------------------------------------- embedded


def _read_python_docs(mode: str) -> _Read:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CorpusError(
            "python-docs: this Python was installed without `pydoc_data`; "
            "install its documentation module or use another corpus"
        ) from error

    def read() -> Generator[str, None, None]:
        for topic in topics.values():
            if mode == "windows":
                yield topic
            else:
                yield from topic.removesuffix("\n").split("\n")

    return read


# ---------------------------------------------------------------- TFDS


def hide_gpus_from_tensorflow() -> None:
    """Keeps TensorFlow off the GPUs if Keras runs on another backend.

    TensorFlow would otherwise reserve the memory of every GPU as soon as it
    reads data. Does nothing where TensorFlow is the backend, or where it has
    taken the GPUs already.
    """
    # Keras need not be imported to read text, but if it is, it knows best.
    keras = sys.modules.get("keras")
    if keras is not None:
        backend = keras.config.backend()
    else:
        backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend == "tensorflow":
        return
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what TFDS prints: bars, notes on stdout, absl warnings."""
    from tensorflow_datasets.core.utils import tqdm_utils

    bars = getattr(tqdm_utils, "_active", True)
    logger = logging.getLogger("absl")
    level = logger.level
    tqdm_utils.display_progress_bar(False)
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tqdm_utils.display_progress_bar(bars)


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise CorpusError(
            "`tfds:` corpora need the package tensorflow-datasets, which "
            f"cannot be imported: {_first_line(error)}"
        ) from error
    hide_gpus_from_tensorflow()
    return tfds


# A name may carry a version, `mnist:3.0.1`; a split may hold a colon,
# `train[:10%]`.
_TFDS_SPEC = re.compile(
    r"tfds:(?P<name>[^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?)(?::(?P<split>.+))?"
)


def _read_tfds(
    spec: str,
    field: str | int | None,
    data_dir: str | os.PathLike[str] | None,
    form: Template | None,
) -> _Read:
    match = _TFDS_SPEC.fullmatch(spec)
    if match is None:
        raise CorpusError(
            f"{spec}: accepted is `tfds:NAME[:SPLIT]`, as in "
            f"`tfds:{_AG_NEWS}:test`"
        )
    name, split = match["name"], match["split"] or "train"
    tfds = _import_tfds()
    with _quiet():
        builder = _tfds_builder(tfds, spec, name, data_dir)
        if form is None:
            fields = _tfds_fields(tfds, spec, builder, field)
        else:
            fields = _tfds_template_fields(tfds, spec, builder, form)
        _tfds_prepare(spec, name, builder)
        splits = sorted(builder.info.splits)
        try:
            builder.info.splits[split]
        except Exception as error:
            raise CorpusError(
                f"{spec}: no split {split!r}; the splits are "
                f"{', '.join(splits)}"
            ) from error

    def read() -> Generator[str, None, None]:
        import tensorflow as tf

        try:
            with _quiet():
                examples = builder.as_dataset(
                    split=split,
                    # Other features, images perhaps, are not decoded.
                    decoders=tfds.decode.PartialDecoding(
                        dict.fromkeys(fields, True)
                    ),
                )
            for example in tfds.as_numpy(examples):
                values = [
                    _tfds_text(builder.info.features[key], example[key])
                    for key in fields
                ]
                yield "\n".join(values) if form is None else form.fill(values)
        except (tf.errors.OpError, OSError) as error:
            raise CorpusError(
                f"{spec}: the prepared data in {builder.data_dir} cannot be "
                f"read: {_first_line(error)}"
            ) from error

    return read


def _tfds_builder(
    tfds: Any,
    spec: str,
    name: str,
    data_dir: str | os.PathLike[str] | None,
) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        # The index of community datasets would be fetched from the network.
        known = set(tfds.list_builders(with_community_datasets=False))
        close = difflib.get_close_matches(name, known)
        raise CorpusError(
            f"{spec}: TFDS has no dataset {name!r}"
            + (f"; did you mean {', '.join(close)}?" if close else "")
            + "; tensorflow.org/datasets lists them"
        ) from error
    except Exception as error:
        # TFDS puts its arguments in front of the reason.
        reason = _first_line(error).rpartition('}": ')[2]
        raise CorpusError(
            f"{spec}: TFDS cannot open {name!r}: {reason}"
        ) from error


def _tfds_text(feature: Any, value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", _MARK_ERRORS)
    return feature.int2str(int(value))


def _tfds_template_fields(
    tfds: Any, spec: str, builder: Any, form: Template
) -> list[str]:
    """The features that a template names: texts and class labels."""
    accepted = (tfds.features.Text, tfds.features.ClassLabel)
    features = builder.info.features
    known = sorted(
        key
        for key in (
            features if isinstance(features, tfds.features.FeaturesDict) else ()
        )
        if isinstance(features[key], accepted)
    )
    for field in form.fields:
        if field not in known:
            raise CorpusError(
                f"{spec}: no text or label {field!r}; accepted are "
                f"{', '.join(map(repr, known)) or 'none'}"
            )
    return form.fields


def _tfds_fields(
    tfds: Any, spec: str, builder: Any, field: str | int | None
) -> list[str]:
    """The features that make up a text."""
    features = builder.info.features
    texts = []
    if isinstance(features, tfds.features.FeaturesDict):
        texts = sorted(
            key
            for key, feature in features.items()
            if isinstance(feature, tfds.features.Text)
        )
    listed = ", ".join(map(repr, texts))
    if not texts:
        raise CorpusError(f"{spec}: none of its features is a text")
    if builder.name == _AG_NEWS:
        listed += ", 'both'"
        if field is None:
            return ["title"]
        if field == "both":
            return ["title", "description"]
    if field is None and len(texts) == 1:
        return texts
    if field is None:
        raise CorpusError(
            f"{spec}: has several text fields, so `field` must name one of "
            f"{listed}"
        )
    if field not in texts:
        raise CorpusError(
            f"{spec}: no text field {field!r}; accepted are {listed}"
        )
    return [str(field)]


def _tfds_prepare(spec: str, name: str, builder: Any) -> None:
    if builder.is_prepared():
        return
    if builder.name == _AG_NEWS:
        remedy = (
            "get the archive ag_news_csv.tar.gz by hand and run "
            "`keras-chargen prepare ag-news --from FILE`"
        )
    else:
        remedy = (
            "where there is a connection run "
            f"`tfds.load({name!r}, data_dir=...)` and copy its data_dir here"
        )
    if Path(builder.data_dir).exists():
        raise CorpusError(
            f"{spec}: {builder.data_dir} holds an incomplete dataset; remove "
            "that folder first"
        )
    try:
        builder.download_and_prepare()
    # Whatever it is: connection, checksum, a page instead of the archive,
    # or a package that only this dataset wants.
    except Exception as error:
        raise CorpusError(
            f"{spec}: not prepared, and the download failed "
            f"({_first_line(error)}); {remedy}"
        ) from error


# ---------------------------------------------------------------- AG News


class _LocalDownloads:
    """Stands in for TFDS's download manager: the files are here already."""

    downloaded_size = 0

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def download_and_extract(self, urls: dict[str, str]) -> dict[str, str]:
        return dict.fromkeys(urls, self._folder)


def prepare_ag_news(
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> PreparedDataset:
    """Builds the TFDS dataset `ag_news_subset` from a local copy.

    The download inside TFDS often fails. After this, `tfds.load` and
    `open_corpus("tfds:ag_news_subset")` work offline. The dataset is built
    by TFDS's own builder and put in its place only when complete.

    Args:
        source: Path: the archive `ag_news_csv.tar.gz` (or another tar file
            of `train.csv` and `test.csv`), a folder that holds `train.csv`
            and `test.csv`, also in a subfolder `ag_news_csv` and also
            followed by `.gz`, or one of the two files beside the other. Rows
            are label (1 to 4), title, description, without a header.
        data_dir: Path, where TFDS keeps its data. `None` is TFDS's default.
        overwrite: Boolean, whether to replace a dataset that is there.

    Returns:
        A `PreparedDataset`: the folder, and the number of examples of each
        split.

    Raises:
        CorpusError: If the source is not as described, or the dataset is
            there already and `overwrite` is `False`; in one line.
    """
    path = Path(source)
    if not path.exists():
        raise CorpusError(f"{path}: no such file; {_AG_NEWS_ACCEPTED}")
    with tempfile.TemporaryDirectory(prefix="keras-chargen-") as folder:
        # The rows first: they take a second, TensorFlow's import several.
        _write_ag_news(path, Path(folder, "ag_news_csv"))
        tfds = _import_tfds()
        with _quiet():
            return _build_ag_news(tfds, folder, data_dir, overwrite)


_AG_NEWS_ACCEPTED = (
    "accepted are ag_news_csv.tar.gz, a folder with train.csv and test.csv, "
    "or one of these files beside the other"
)


def _build_ag_news(
    tfds: Any,
    folder: str,
    data_dir: str | os.PathLike[str] | None,
    overwrite: bool,
) -> PreparedDataset:
    place = tfds.builder(_AG_NEWS, data_dir=data_dir)
    target = Path(place.data_dir)
    if target.exists() and not overwrite:
        state = "prepared" if place.is_prepared() else "begun"
        raise CorpusError(
            f"{_AG_NEWS} is already {state} in {target}; overwrite=True "
            "(--force) builds it again"
        )
    root = Path(place.data_dir_root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # On the same file system as its place, so that a rename moves it.
        staging = tempfile.TemporaryDirectory(dir=root, prefix=".chargen-")
    except OSError as error:
        raise CorpusError(
            f"{root}: cannot be written: {error.strerror}"
        ) from error
    with staging as stage:
        builder = tfds.builder(_AG_NEWS, data_dir=stage)
        # TFDS has no public way to hand in local files for a download. This
        # hook is the one place where its builders reach for the network.
        builder._make_download_manager = lambda **_: _LocalDownloads(folder)
        try:
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    try_download_gcs=False
                )
            )
            examples = {
                str(split): info.num_examples
                for split, info in builder.info.splits.items()
            }
            _move(Path(builder.data_dir), target, aside=Path(stage, "old"))
        except Exception as error:
            raise CorpusError(
                f"{root}: {_AG_NEWS} could not be built there: "
                f"{_first_line(error)}"
            ) from error
    return PreparedDataset(str(target), examples)


def _move(new: Path, target: Path, aside: Path) -> None:
    """Puts `new` in the place of `target`, or leaves `target` as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.rename(new, target)
        return
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise


def _write_ag_news(source: Path, folder: Path) -> None:
    """Writes both files of `source`, checked, where the builder looks."""
    folder.mkdir()
    with _one_line_errors(source):
        if source.is_dir():
            files = _find_ag_news(source)
        elif _suffix(source.name) == ".csv":
            files = _find_ag_news_sibling(source)
        else:
            _write_ag_news_archive(source, folder)
            return
    for split, path in files.items():
        with _open_text(path, newline="") as file:
            _copy_ag_news_rows(file, path, folder / f"{split}.csv")


def _find_ag_news(folder: Path) -> dict[str, Path]:
    for place in (folder, folder / "ag_news_csv"):
        files: dict[str, Path] = {}
        for split in ("train", "test"):
            for name in (f"{split}.csv", f"{split}.csv.gz"):
                if (place / name).is_file():
                    files.setdefault(split, place / name)
        if len(files) == 2:
            return files
    raise CorpusError(
        f"{folder}: train.csv and test.csv are not both in it; "
        f"{_AG_NEWS_ACCEPTED}"
    )


def _find_ag_news_sibling(file: Path) -> dict[str, Path]:
    split = file.name.split(".")[0]
    if split not in ("train", "test"):
        raise CorpusError(
            f"{file}: must be called train.csv or test.csv; {_AG_NEWS_ACCEPTED}"
        )
    return _find_ag_news(file.parent) | {split: file}


def _write_ag_news_archive(source: Path, folder: Path) -> None:
    if not tarfile.is_tarfile(source):
        raise CorpusError(
            f"{source}: not a tar archive (a web page saved in its place?); "
            f"{_AG_NEWS_ACCEPTED}"
        )
    with tarfile.open(source) as archive:
        wanted = {}
        for member in archive:
            name = member.name.removeprefix("./").removeprefix("ag_news_csv/")
            if member.isfile() and name in ("train.csv", "test.csv"):
                wanted[name] = member
        for name in ("train.csv", "test.csv"):
            if name not in wanted:
                raise CorpusError(
                    f"{source}: {name} is not in the archive; "
                    f"{_AG_NEWS_ACCEPTED}"
                )
        for name, member in wanted.items():
            # Members are read, never extracted: the archive has no say in
            # where something is written.
            raw = archive.extractfile(member)
            assert raw is not None  # it is a file
            with io.TextIOWrapper(
                raw, encoding="utf-8", errors=_MARK_ERRORS, newline=""
            ) as file:
                _copy_ag_news_rows(file, source / name, folder / name)


def _copy_ag_news_rows(file: IO[str], path: Path, copy: Path) -> None:
    """Copies the rows, each checked, in the form that the builder reads."""

    def reject(line: int, reason: str) -> NoReturn:
        raise CorpusError(
            f"{path}, line {line}: {reason}; accepted is label (1 to 4), "
            "title, description, without a header"
        )

    count = 0
    with open(copy, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for line, row in _rows(file, path, ","):
            if not row:
                continue
            if len(row) != 3:
                reject(line, f"the row has {len(row)} column(s)")
            if row[0] not in ("1", "2", "3", "4"):
                reject(line, f"the label is {row[0]!r}")
            writer.writerow([_SURROGATES.sub("\ufffd", cell) for cell in row])
            count += 1
    if not count:
        raise CorpusError(f"{path}: there are no rows in it")
