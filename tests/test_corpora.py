"""The corpora room: what is read, what is refused, what is left open."""

import codecs
import csv
import gc
import gzip
import io
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_chargen import corpora
from keras_chargen.corpora import CorpusError, open_corpus, prepare_ag_news

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"

# Each example writes its file anew in the same folder, so nothing is left over
# that could change the next one.
same_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
    max_examples=60,
)

# Surrogates cannot be written as UTF-8.
characters = st.characters(exclude_categories=["Cs"])
texts_without_nul = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)
# Dense in what matters to cutting.
tangles = st.text(st.sampled_from("ab \r\n\t\ufeff\u2028é😀"), max_size=60)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        if path.suffix.lower() == ".gz":
            data = gzip.compress(data)
        path.write_bytes(data)
        return path

    return write


def error_of(call, *args, **kwargs):
    """The message of the `CorpusError`, which must be one line."""
    with pytest.raises(CorpusError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def exhaust(*args, **kwargs):
    return list(open_corpus(*args, **kwargs))


# Lines of a .txt file


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".TXT", ".Txt.GZ"])
def test_each_line_is_a_text_whatever_the_case_of_the_suffix(write, suffix):
    assert exhaust(write("a" + suffix, "one\ntwo\n")) == ["one", "two"]


def test_a_path_may_be_a_string(write):
    assert exhaust(str(write("a.txt", "one"))) == ["one"]


def test_the_name_is_the_spec_as_given(write, monkeypatch):
    monkeypatch.chdir(write("titles.txt", "a").parent)
    assert open_corpus("titles.txt").name == "titles.txt"


def test_lines_are_separate_texts(write):
    assert not open_corpus(write("a.txt", "one")).joined


def test_crlf_ends_a_line(write):
    assert exhaust(write("a.txt", "one\r\ntwo\r\n")) == ["one", "two"]


def test_only_one_carriage_return_belongs_to_the_line_end(write):
    assert exhaust(write("a.txt", "one\r\r\n")) == ["one\r"]


@pytest.mark.parametrize("mark", ["\r", "\u2028", "\x85", "\x0b", "\x0c"])
def test_other_marks_end_no_line(write, mark):
    assert exhaust(write("a.txt", f"one{mark}two")) == [f"one{mark}two"]


def test_white_space_around_a_line_is_kept(write):
    assert exhaust(write("a.txt", " \tone \n")) == [" \tone "]


def test_blank_lines_are_left_out_and_counted(write):
    corpus = open_corpus(write("a.txt", "one\n\n \t\r\ntwo\n"))
    assert list(corpus) == ["one", "two"]
    assert corpus.skipped == 2


@pytest.mark.parametrize("mode", ["lines", "windows"])
def test_the_byte_order_mark_is_dropped(write, mode):
    path = write("a.txt", codecs.BOM_UTF8 + b"one")
    assert exhaust(path, mode=mode) == ["one"]


@pytest.mark.parametrize("mode", ["lines", "windows"])
def test_a_second_byte_order_mark_is_text(write, mode):
    path = write("a.txt", codecs.BOM_UTF8 * 2 + b"one")
    assert exhaust(path, mode=mode) == ["\ufeffone"]


def test_invalid_bytes_become_replacement_characters_and_are_counted(write):
    path = write("a.txt", b"fine and dandy\nc\xff\xfed\n\xe2\x82\n")
    corpus = open_corpus(path)
    assert list(corpus) == ["fine and dandy", "c\ufffd\ufffdd", "\ufffd"]
    assert corpus.replaced == 2


def test_replacement_characters_of_the_file_are_not_counted(write):
    corpus = open_corpus(write("a.txt", "a\ufffdb"))
    assert list(corpus) == ["a\ufffdb"]
    assert corpus.replaced == 0


@pytest.mark.parametrize("mode", ["lines", "windows"])
def test_a_code_point_split_across_read_blocks_survives(write, mode):
    for shift in range(4):
        text = "a" * shift + "😀é" * 20_000
        path = write("a.txt", text)
        assert "".join(open_corpus(path, mode=mode)) == text


def test_each_iteration_reads_from_the_start(write):
    corpus = open_corpus(write("a.txt", "one\n\ntwo"))
    assert list(corpus) == list(corpus) == ["one", "two"]
    assert corpus.skipped == 1


def test_two_iterations_do_not_disturb_each_other(write):
    corpus = open_corpus(write("a.txt", "one\ntwo"))
    assert list(zip(corpus, corpus, strict=True)) == [
        ("one", "one"),
        ("two", "two"),
    ]


def test_a_limit_gives_the_first_texts(write):
    path = write("a.txt", "\none\n\ntwo\nthree")
    assert exhaust(path, limit=2) == ["one", "two"]


def test_a_limit_beyond_the_end_gives_all(write):
    assert exhaust(write("a.txt", "one\ntwo"), limit=9) == ["one", "two"]


def test_a_limit_reads_no_further(write):
    path = write("a.jsonl", '"one"\nbroken')
    assert exhaust(path, limit=1) == ["one"]


def test_a_line_too_long_for_memory_points_to_windows(write, monkeypatch):
    monkeypatch.setattr(corpora, "_LINE_CHARACTERS", 10)
    path = write("a.txt", "a" * 9 + "\n" + "b" * 11)
    message = error_of(exhaust, path)
    assert "a.txt, line 2: longer than 10" in message
    assert "windows" in message


@pytest.mark.parametrize("size", [2, 3, 1 << 16])
def test_lines_do_not_depend_on_the_blocks_they_are_read_in(monkeypatch, size):
    monkeypatch.setattr(corpora, "_PIECE_CHARACTERS", size)
    text = "\ufeffone\r\n\r\r\ntwo\rhalf\n\nthree\r"
    lines = corpora._bare_lines(io.StringIO(text, newline="\n"), "a.txt")
    assert list(lines) == ["one", "\r", "two\rhalf", "", "three\r"]


@pytest.mark.parametrize("size", [2, 1 << 16])
def test_a_line_is_too_long_whatever_block_it_ends_in(write, monkeypatch, size):
    monkeypatch.setattr(corpora, "_PIECE_CHARACTERS", size)
    monkeypatch.setattr(corpora, "_LINE_CHARACTERS", 10)
    assert exhaust(write("a.txt", "a" * 9 + "\n" + "b" * 10)) == (
        ["a" * 9, "b" * 10]
    )
    for text in ("a\n" + "b" * 11, "a\n" + "b" * 10 + "\nc"):
        message = error_of(exhaust, write("b.txt", text))
        assert "b.txt, line 2: longer than 10" in message


@same_folder
@given(st.lists(texts_without_nul))
def test_lines_survive_the_way_through_a_file(tmp_path, texts):
    texts = [text.replace("\n", " ").replace("\r", " ") for text in texts]
    path = tmp_path / "a.txt"
    path.write_bytes(
        "".join(f"{text}\n" for text in ["start", *texts]).encode()
    )
    wanted = [text for text in texts if text.strip()]
    assert exhaust(path) == ["start", *wanted]


# Windows of a .txt file


def test_windows_give_pieces_of_one_stream(write):
    assert open_corpus(write("a.txt", "one"), mode="windows").joined


def test_a_piece_ends_after_a_run_of_blank_lines(write):
    path = write("a.txt", "\n\na\nb\n\n \n\nc\r\n\r\nd")
    pieces = ["\n\na\nb\n\n \n\n", "c\r\n\r\n", "d"]
    assert exhaust(path, mode="windows") == pieces


def test_a_long_paragraph_is_cut_at_a_line_end():
    pieces = corpora._pieces(io.StringIO("aaaa\nbbb\ncc\n", "\n"), limit=9)
    assert list(pieces) == ["aaaa\nbbb\n", "cc\n"]


def test_a_long_line_is_cut_hard():
    pieces = corpora._pieces(io.StringIO("a" * 10 + "\nb\n", "\n"), limit=4)
    assert list(pieces) == ["aaaa", "aaaa", "aa\n", "b\n"]


def test_a_long_line_is_not_cut_inside_its_end():
    pieces = corpora._pieces(io.StringIO("aaa\r\nb", "\n"), limit=4)
    assert list(pieces) == ["aaa", "\r\nb"]


def test_white_space_inside_a_long_line_ends_no_paragraph():
    file = io.StringIO("a" * 4 + " " * 3 + "\nb\nc\n", "\n")
    assert list(corpora._pieces(file, limit=4)) == ["aaaa", "   \n", "b\nc\n"]


def test_a_paragraph_of_the_usual_limit_is_one_piece(write):
    path = write("a.txt", "a" * 65_535 + "\n" + "b" * 65_537)
    pieces = exhaust(path, mode="windows")
    assert list(map(len, pieces)) == [65_536, 65_536, 1]


def test_blank_pieces_are_kept_in_a_stream(write):
    # More blank lines than fit in a piece: nothing of a stream is lost.
    text = "a\n" + "\n" * 70_000 + "b"
    corpus = open_corpus(write("a.txt", text), mode="windows")
    assert "".join(corpus) == text
    assert corpus.skipped == 0


@same_folder
@given(st.text(characters) | tangles, st.integers(2, 9))
def test_pieces_join_to_the_text(text, limit):
    file = io.TextIOWrapper(
        io.BytesIO(text.encode()), encoding="utf-8", newline="\n"
    )
    pieces = list(corpora._pieces(file, limit))
    assert "".join(pieces) == text.removeprefix("\ufeff")
    assert all(0 < len(piece) <= limit for piece in pieces)
    for before, after in itertools.pairwise(pieces):
        assert not (before.endswith("\r") and after.startswith("\n"))


@same_folder
@given(texts_without_nul | tangles)
def test_the_pieces_of_a_file_join_to_its_text(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_bytes(b"start" + text.encode())
    assert "".join(open_corpus(path, mode="windows")) == "start" + text


@same_folder
@given(st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"0")))
def test_any_bytes_are_read_as_python_replaces_them(tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_bytes(b"s" * 100 + data)
    wanted = "s" * 100 + data.decode("utf-8", "replace")
    assert "".join(open_corpus(path, mode="windows")) == wanted


def test_a_large_file_of_one_line_streams_in_little_memory(tmp_path):
    path = tmp_path / "a.txt"
    block = "é".encode() * (1 << 20)
    with open(path, "wb") as file:
        for _ in range(30):
            file.write(block)
    corpus = open_corpus(path, mode="windows")
    tracemalloc.start()
    try:
        total = sum(map(len, corpus))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 30 << 20
    assert peak < 2 << 20


def test_a_gzip_that_unpacks_to_much_streams_in_little_memory(tmp_path):
    path = tmp_path / "a.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(16):
            file.write(b"a\n" * (1 << 19))
    corpus = open_corpus(path)
    tracemalloc.start()
    try:
        count = sum(1 for _ in zip(corpus, range(100_000), strict=False))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 100_000
    assert peak < 2 << 20


# Tables

TABLE = 'label,title\n1,"one, ""1"""\n2,two\n'


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".tsv.gz"])
def test_a_named_column_is_found_by_the_header(write, suffix):
    delimiter = "," if suffix.startswith(".csv") else "\t"
    path = write("a" + suffix, f"label{delimiter}title\n1{delimiter}one\n")
    assert exhaust(path, field="title") == ["one"]


def test_quotes_are_read_as_csv_has_them(write):
    path = write("a.csv", TABLE)
    assert exhaust(path, field="title") == ['one, "1"', "two"]


@pytest.mark.parametrize("field", [2, "2"])
def test_a_numbered_column_takes_no_header(write, field):
    path = write("a.csv", TABLE)
    assert exhaust(path, field=field) == ["title", 'one, "1"', "two"]


def test_a_numbered_column_can_be_told_of_a_header(write):
    path = write("a.csv", TABLE)
    assert exhaust(path, field=2, header=True) == ['one, "1"', "two"]


def test_columns_name_what_has_no_header(write):
    path = write("a.csv", "1,one\n2,two\n")
    names = ["label", "title"]
    assert exhaust(path, field="title", columns=names) == ["one", "two"]


def test_columns_can_replace_a_header(write):
    path = write("a.csv", "x,y\n1,one\n")
    names = ["label", "title"]
    read = exhaust(path, field="title", columns=names, header=True)
    assert read == ["one"]


def test_a_single_column_needs_no_field(write):
    assert exhaust(write("a.csv", "one\ntwo\n")) == ["one", "two"]


def test_a_single_column_with_a_header_needs_no_field(write):
    assert exhaust(write("a.csv", "text\none\n"), header=True) == ["one"]


def test_the_fields_of_a_table_are_separate_texts_in_windows_mode(write):
    corpus = open_corpus(write("a.csv", "one\ntwo\n"), mode="windows")
    assert (list(corpus), corpus.joined) == (["one", "two"], False)


def test_a_byte_order_mark_is_no_part_of_the_first_column_name(write):
    path = write("a.csv", codecs.BOM_UTF8 + b'"title",x\none,1\n')
    assert exhaust(path, field="title") == ["one"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_inside_quotes_are_kept_as_they_are(write, end):
    path = write("a.csv", f'"one{end}two"{end}three{end}')
    assert exhaust(path) == [f"one{end}two", "three"]


def test_empty_lines_of_a_table_are_counted_as_blank_texts(write):
    corpus = open_corpus(write("a.csv", "t,u\n\na,b\n\n"), field="u")
    assert list(corpus) == ["b"]
    assert corpus.skipped == 2


def test_empty_lines_before_a_header_are_passed_over(write):
    assert exhaust(write("a.csv", "\n\nt,u\na,b\n"), field="u") == ["b"]


def test_a_row_may_end_after_the_field(write):
    assert exhaust(write("a.csv", "t,u\na\n"), field="t") == ["a"]


def test_a_field_beyond_the_limit_of_csv_is_read(write):
    text = "a" * 200_000
    assert exhaust(write("a.csv", text)) == [text]


@pytest.fixture
def usual_csv_limit():
    before = csv.field_size_limit(131_072)
    yield 131_072
    csv.field_size_limit(before)


def test_the_limit_of_csv_stays_as_it_was_for_others(write, usual_csv_limit):
    texts = iter(open_corpus(write("a.csv", "one\ntwo\n")))
    next(texts)
    assert csv.field_size_limit() == usual_csv_limit


def test_the_limit_of_csv_stays_as_it_was_after_reading_in_threads(
    write, usual_csv_limit
):
    path = write("a.csv", "one\n" * 3000)
    counts = []
    threads = [
        threading.Thread(target=lambda: counts.append(len(exhaust(path))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [3000] * 4
    assert csv.field_size_limit() == usual_csv_limit


def test_the_limit_of_csv_stays_raised_until_the_last_reader_is_done(
    usual_csv_limit,
):
    with corpora._raised_field_limit:
        with corpora._raised_field_limit:
            pass
        assert csv.field_size_limit() > usual_csv_limit
    assert csv.field_size_limit() == usual_csv_limit


def test_an_unclosed_quote_does_not_read_the_rest_into_memory(
    write, monkeypatch, usual_csv_limit
):
    monkeypatch.setattr(corpora, "_LINE_CHARACTERS", 1000)
    csv.field_size_limit(500)
    path = write("a.csv", 'one\n"' + "two\n" * 1000)
    assert "a.csv, line 252: field larger" in error_of(exhaust, path)


@same_folder
@given(st.lists(texts_without_nul, min_size=1))
def test_any_texts_survive_the_way_through_csv(tmp_path, texts):
    path = tmp_path / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["number", "text"])
        writer.writerows(enumerate(["start", *texts]))
    wanted = ["start", *(text for text in texts if text.strip())]
    assert exhaust(path, field="text") == wanted


def test_the_shared_titles_have_the_counts_of_their_readme():
    path = SHARED / "ag_news" / "train.csv.gz"
    if not path.exists():
        pytest.skip("the shared data folder is not beside the checkout")
    names = ["label", "title", "description"]
    titles = exhaust(path, columns=names, field="title")
    assert len(titles) == 11_352
    assert sum(map(len, titles)) == 477_312


# JSON lines


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_key_of_each_object_is_read(write, suffix):
    path = write("a" + suffix, '{"t": "one"}\n{"t": "two", "u": 1}\n')
    assert exhaust(path, field="t") == ["one", "two"]


def test_strings_need_no_field(write):
    assert exhaust(write("a.jsonl", '"one"\r\n"two\\n"')) == ["one", "two\n"]


def test_white_lines_of_jsonl_are_no_texts(write):
    corpus = open_corpus(write("a.jsonl", '\n"one"\n \n""\n'))
    assert (list(corpus), corpus.skipped) == (["one"], 1)


def test_a_line_separator_inside_a_json_string_ends_no_line(write):
    assert exhaust(write("a.jsonl", '"a\u2028b"\n')) == ["a\u2028b"]


def test_a_half_pair_in_json_becomes_a_replacement_character(write):
    corpus = open_corpus(write("a.jsonl", '"a\\ud83d"\n"\\ud83d\\ude00"\n'))
    assert list(corpus) == ["a\ufffd", "😀"]
    assert corpus.replaced == 1


@same_folder
@given(st.lists(st.text(characters)), st.booleans())
def test_any_texts_survive_the_way_through_jsonl(tmp_path, texts, ascii_only):
    path = tmp_path / "a.jsonl"
    with open(path, "w", encoding="utf-8", newline="") as file:
        for text in ["start", *texts]:
            line = json.dumps({"text": text}, ensure_ascii=ascii_only)
            file.write(line + "\n")
    wanted = ["start", *(text for text in texts if text.strip())]
    assert exhaust(path, field="text") == wanted


# Python's documentation


def test_the_python_docs_are_read_by_line():
    from pydoc_data.topics import topics

    lines = "\n".join(topics.values()).split("\n")
    wanted = [line for line in lines if line.strip()]
    assert exhaust("python-docs") == wanted


def test_the_python_docs_are_read_by_topic_in_windows_mode():
    from pydoc_data.topics import topics

    corpus = open_corpus("python-docs", mode="windows")
    assert list(corpus) == list(topics.values())
    assert not corpus.joined


def test_a_python_without_docs_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert "without `pydoc_data`" in error_of(open_corpus, "python-docs")


# What is refused when a corpus is opened


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", b"", {}, "a.txt: the file is empty"),
        ("a.txt.gz", b"", {}, "a.txt.gz: the file is empty"),
        ("a.csv", b"", {}, "the file is empty"),
        ("a.pdf", b"x", {}, "unknown kind of file; accepted are .txt, .csv, "),
        ("a", b"x", {}, "unknown kind of file"),
        ("a.gz", b"x", {}, "unknown kind of file"),
        ("a.txt", b"text\0text", {}, "a binary file; it must hold UTF-8"),
        ("a.txt.gz", b"text\0text", {}, "a binary file"),
        ("a.txt", b"abc" + b"\xff" * 2, {}, "a binary file"),
        ("a.txt", "text".encode("utf-16"), {}, "a binary file"),
        ("a.txt", b"x", {"field": "t"}, "has no fields"),
        ("a.txt", b"x", {"field": 1}, "has no fields"),
        ("a.csv", b"\n\n", {}, "no rows but empty lines"),
        (
            "a.csv",
            b"label,title\n1,a\n",
            {"field": "text"},
            "a.csv: no column 'text'; the columns are 'label', 'title'",
        ),
        ("a.csv", b"a,b\n", {}, "has 2 columns, so `field` must name or"),
        (
            "a.csv",
            b"a,b\n",
            {"columns": ["l", "t"]},
            "has 2 columns, so `field` must name or number one; the columns "
            "are 'l', 't'",
        ),
        ("a.csv", b"a,b\n", {"field": 3}, "no column 3; the columns are 1 to"),
        ("a.csv", b"a,b\n", {"field": 0}, "no column 0; the columns are 1 to"),
        ("a.csv", b"a,b\n", {"field": -1}, "no column -1"),
        (
            "a.csv",
            b"a,b\n1,2\n",
            {"field": 3, "header": True},
            "no column 3; the columns are 'a', 'b' (1 to 2)",
        ),
        (
            "a.csv",
            b"a,b\n",
            {"field": "a", "header": False},
            "`field` can be a name only where there is a header row",
        ),
        ("a.csv", b"a,a\n", {"field": "a"}, "'a' names several columns"),
        (
            "a.csv",
            b"1,2,3\n",
            {"field": "t", "columns": ["l", "t"]},
            "a.csv, line 1: the row has 3 column(s); accepted are rows of 2",
        ),
        ("a.csv", b'"a"b,c\n', {"field": 1}, "a.csv, line 1: ',' expected"),
        (
            "a.jsonl",
            b'{"t": "a", "u": 1}',
            {},
            "a.jsonl, line 1: is an object, so `field` must name a key; the "
            "keys are 't', 'u'",
        ),
        (
            "a.jsonl",
            b'{"t": "a", "u": 1}',
            {"field": "x"},
            "a.jsonl, line 1: no key 'x'; the keys are 't', 'u'",
        ),
        ("a.jsonl", b'"a"', {"field": "x"}, "line 1: not a JSON object, so"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_when_opened(
    write, name, content, options, message
):
    assert message in error_of(open_corpus, write(name, content), **options)


@pytest.mark.parametrize("spec", ["nope.txt", "python-doc", "python-docs-2"])
def test_a_missing_file_is_told_with_what_is_accepted(
    tmp_path, monkeypatch, spec
):
    monkeypatch.chdir(tmp_path)
    message = error_of(open_corpus, spec)
    assert f"{spec}: no such file; a corpus is `python-docs`, `tfds:" in message
    assert ".txt, .csv, .tsv, .jsonl file, also with .gz" in message


def test_a_directory_is_refused(tmp_path):
    (tmp_path / "a.txt").mkdir()
    assert "is a directory" in error_of(open_corpus, tmp_path / "a.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    assert "not a regular file" in error_of(open_corpus, tmp_path / "a.txt")


def test_a_file_that_may_not_be_read_is_refused(write, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    # The mode of a file is no hindrance where tests run as root.
    monkeypatch.setattr(corpora, "open", refuse, raising=False)
    message = error_of(open_corpus, write("a.txt", "x"))
    assert "a.txt: cannot be read: Permission denied" in message


def test_a_file_that_is_no_gzip_is_refused_when_opened(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_text("plain text")
    assert "a.txt.gz: damaged gzip" in error_of(open_corpus, path)


def test_a_short_gzip_cut_off_is_refused_when_opened(write):
    path = write("a.txt.gz", "some text")
    path.write_bytes(path.read_bytes()[:-9])
    assert "a.txt.gz: damaged gzip" in error_of(open_corpus, path)


def test_some_invalid_bytes_make_no_binary_file(write):
    path = write("a.txt", "déjà vu, naïve café".encode("latin-1"))
    corpus = open_corpus(path)
    assert "".join(corpus).count("\ufffd") == corpus.replaced * 4 == 4


def test_a_code_point_at_the_end_of_the_first_block_is_no_damage(write):
    # 21,845 code points of three bytes and one byte more.
    path = write("a.txt", "x" + "語" * 30_000)
    assert len("".join(open_corpus(path))) == 30_001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "pages"}, "`mode` must be one of 'lines', 'windows'"),
        ({"limit": 0}, "`limit` must be an integer >= 1"),
        ({"limit": -1}, "`limit` must be"),
        ({"limit": 1.5}, "`limit` must be"),
        ({"limit": True}, "`limit` must be"),
        ({"field": True}, "`field` must be"),
        ({"field": 1.0}, "`field` must be"),
        ({"columns": "title"}, "`columns` must be a list"),
        ({"columns": []}, "`columns` must be a list"),
        ({"columns": [1]}, "`columns` must be a list"),
        ({"data_dir": "x"}, "`data_dir` is for `tfds:` corpora only"),
    ],
)
def test_a_bad_argument_is_named_in_one_line(write, options, message):
    with pytest.raises(ValueError) as caught:
        open_corpus(write("a.csv", "one\n"), **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [None, 3, "", b"a.txt"])
def test_a_spec_must_be_a_name_or_a_path(spec):
    with pytest.raises(ValueError, match=r"`spec`: a corpus is"):
        open_corpus(spec)


@pytest.mark.parametrize("options", [{"columns": ["a"]}, {"header": True}])
@pytest.mark.parametrize("spec", ["python-docs", "a.jsonl", "tfds:a"])
def test_table_arguments_are_for_tables_only(spec, options):
    with pytest.raises(ValueError, match=r"are for \.csv and \.tsv files"):
        open_corpus(spec, **options)


def test_python_docs_have_no_fields():
    message = error_of(open_corpus, "python-docs", field="t")
    assert "python-docs has no fields" in message


# What can only be seen while reading


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "t,u\na,b\nc\n", {"field": "u"}, "line 3: the row has 1"),
        ("a.csv", "t,u\na,b,c\n", {"field": "t"}, "line 2: the row has 3"),
        ("a.csv", "a\nb,c\n", {}, "line 2: the row has 2"),
        ("a.csv", 't,u\na,"b\nc"\nd\n', {"field": 2}, "line 4: the row has 1"),
        ("a.csv", 'a\n"b"c\n', {}, "line 2: ',' expected"),
        ("a.tsv", 'a\n"b"c\n', {}, "between tabs"),
        ("a.csv", 'a\n"b\n', {}, "line 2: unexpected end of data"),
        ("a.jsonl", '"a"\nb\n', {}, "line 2: not JSON"),
        ("a.jsonl", '"a"\n\n1\n', {}, "line 3: the value must be a string"),
        ("a.jsonl", '"a"\nnull\n', {}, "must be a string, not NoneType"),
        ("a.jsonl", '"a"\n["b"]\n', {}, "must be a string, not list"),
        ("a.jsonl", '"a"\n' + "1" * 5000, {}, "line 2: not JSON"),
        ("a.jsonl", '"a"\n' + "[" * 200_000, {}, "line 2: nested too deep"),
        (
            "a.jsonl",
            '{"t": "a"}\n{"t": 1}',
            {"field": "t"},
            "line 2: the value must be a string, not int",
        ),
        (
            "a.jsonl",
            '{"t": "a"}\n{}',
            {"field": "t"},
            "line 2: no key 't'; the keys are none",
        ),
        (
            "a.jsonl",
            '{"t": "a"}\n"b"',
            {"field": "t"},
            "line 2: not a JSON object",
        ),
    ],
)
def test_a_damaged_row_is_named_with_file_and_line(
    write, name, content, options, message
):
    corpus = open_corpus(write(name, content), **options)
    found = error_of(list, corpus)
    assert f"{name}, line " in found
    assert message in found


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.txt", "\n \n", {}),
        ("a.txt", "\n \n", {"mode": "windows"}),
        ("a.txt", "\ufeff", {}),
        ("a.txt", "\ufeff", {"mode": "windows"}),
        ("a.csv", '""\n" "\n', {}),
        ("a.csv", "title\n", {"field": "title"}),
        ("a.jsonl", '""\n', {}),
        ("a.jsonl", "\n", {"field": "t"}),
    ],
)
def test_a_corpus_of_blanks_only_is_refused_at_its_end(
    write, name, content, options
):
    corpus = open_corpus(write(name, content), **options)
    assert "there is no text in it but blanks" in error_of(list, corpus)


@pytest.mark.parametrize("mode", ["lines", "windows"])
@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_gzip_damaged_halfway_names_the_file(tmp_path, mode, harm):
    noise = random.Random(0)
    lines = (str(noise.random()) for _ in range(40_000))
    data = bytearray(gzip.compress("\n".join(lines).encode()))
    middle = len(data) // 2
    if harm == "cut":
        del data[middle:]
    else:
        data[middle : middle + 50] = bytes(50)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(data)
    corpus = open_corpus(path, mode=mode)
    assert "a.txt.gz: damaged gzip" in error_of(list, corpus)


def test_a_file_gone_since_it_was_opened_is_named(write):
    path = write("a.txt", "one")
    corpus = open_corpus(path)
    path.unlink()
    assert "a.txt: cannot be read: No such file" in error_of(list, corpus)


# Handles


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.txt", "one\ntwo\n", {}),
        ("a.txt", "one\n\ntwo\n", {"mode": "windows"}),
        ("a.txt.gz", "one\ntwo\n", {}),
        ("a.csv", "one\ntwo\n", {}),
        ("a.jsonl", '"one"\n"two"\n', {}),
    ],
)
def test_an_iteration_abandoned_leaves_no_file_open(
    write, monkeypatch, name, content, options
):
    path = write(name, content)
    opened = []
    open_bytes = corpora._open_bytes

    def spy(path):
        opened.append(open_bytes(path))
        return opened[-1]

    monkeypatch.setattr(corpora, "_open_bytes", spy)
    texts = iter(open_corpus(path, **options))
    next(texts)
    assert not opened[-1].closed
    del texts
    gc.collect()
    assert all(file.closed for file in opened)


def test_a_source_is_closed_as_soon_as_the_limit_is_reached():
    closed = []

    def read():
        try:
            yield from "abc"
        finally:
            closed.append(True)

    # Held here as well, so only closing ends it.
    reader = read()
    corpus = corpora.Corpus("abc", lambda: reader, limit=2)
    assert list(corpus) == ["a", "b"]
    assert closed


def test_reading_and_failing_warn_of_no_open_file(write):
    path = write("a.csv.gz", "one\ntwo,three\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error_of(exhaust, path)
        gc.collect()


# The room


def test_the_room_imports_only_the_standard_library():
    code = (
        "import sys; import keras_chargen.corpora as c; "
        "c.open_corpus('python-docs'); "
        "print(sorted({'tensorflow', 'tensorflow_datasets', 'keras', 'numpy',"
        " 'torch', 'jax'} & set(sys.modules)))"
    )
    # Loaded by itself, so that only what this room imports is seen.
    code = (
        "import types, sys; p = types.ModuleType('keras_chargen'); "
        f"p.__path__ = [{str(pathlib.Path(corpora.__file__).parent)!r}]; "
        "sys.modules['keras_chargen'] = p; " + code
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# TFDS

ROWS = {
    "train": [
        ("3", "Wall St. Bears", "Short-sellers, #39;again#39;\\by Reuters"),
        ("4", 'The "web"', "Two\nlines"),
        ("1", "Nähe", ""),
    ],
    "test": [("2", "Fears for T N pension", "Unions, workers")],
}


def ag_news_csv(rows):
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows(rows)
    return file.getvalue().encode()


def ag_news_folder(folder, compress=False, rows=ROWS):
    folder.mkdir(parents=True)
    for split, content in rows.items():
        data = ag_news_csv(content)
        if compress:
            (folder / f"{split}.csv.gz").write_bytes(gzip.compress(data))
        else:
            (folder / f"{split}.csv").write_bytes(data)
    return folder


def ag_news_archive(path, names=("train", "test"), prefix="ag_news_csv/"):
    with tarfile.open(path, "w:gz" if "gz" in path.name else "w") as archive:
        for name, data in [
            ("classes.txt", b"World\n"),
            *((f"{split}.csv", ag_news_csv(ROWS[split])) for split in names),
        ]:
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def load_offline(data_dir, split):
    import tensorflow_datasets as tfds

    examples = tfds.as_numpy(
        tfds.load(
            "ag_news_subset", split=split, data_dir=data_dir, download=False
        )
    )
    return sorted(
        (
            str(example["label"] + 1),
            example["title"].decode(),
            example["description"].decode(),
        )
        for example in examples
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data folder of TFDS that holds the few rows."""
    folder = tmp_path_factory.mktemp("tfds")
    source = ag_news_archive(folder / "ag_news_csv.tar.gz")
    prepare_ag_news(source, folder / "data")
    return folder / "data"


@pytest.fixture
def no_network(monkeypatch):
    """Makes TFDS's download fail as it does without a connection."""
    from tensorflow_datasets.core.dataset_builder import DatasetBuilder

    calls = []

    def fail(self, **kwargs):
        calls.append(self.name)
        raise ConnectionError("Failed to get url\nand a page of details")

    monkeypatch.setattr(DatasetBuilder, "download_and_prepare", fail)
    return calls


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.needs_tensorflow
def test_the_prepared_dataset_loads_offline_with_its_rows(prepared, split):
    assert load_offline(prepared, split) == sorted(ROWS[split])


@pytest.mark.needs_tensorflow
def test_preparing_leaves_nothing_else_behind(prepared):
    assert os.listdir(prepared) == ["ag_news_subset"]
    assert os.listdir(prepared / "ag_news_subset") == ["1.0.0"]


@pytest.mark.parametrize(
    "form",
    [
        "folder",
        "compressed folder",
        "subfolder",
        "train.csv",
        "test.csv.gz",
        "plain tar",
        "bare tar",
    ],
)
@pytest.mark.needs_tensorflow
def test_ag_news_is_prepared_from_any_form(tmp_path, form):
    if form in ("folder", "train.csv"):
        source = ag_news_folder(tmp_path / "in")
    elif form in ("compressed folder", "test.csv.gz"):
        source = ag_news_folder(tmp_path / "in", compress=True)
    elif form == "subfolder":
        source = ag_news_folder(tmp_path / "in" / "ag_news_csv").parent
    elif form == "plain tar":
        source = ag_news_archive(tmp_path / "a.tar")
    else:
        source = ag_news_archive(tmp_path / "a.tgz", prefix="./")
    if "csv" in form:
        source /= form
    made = prepare_ag_news(str(source), str(tmp_path / "data"))
    assert made.examples == {"train": 3, "test": 1}
    assert made.directory == str(tmp_path / "data/ag_news_subset/1.0.0")
    assert load_offline(tmp_path / "data", "test") == ROWS["test"]


@pytest.mark.needs_tensorflow
def test_what_is_prepared_is_not_built_again_unasked(prepared, tmp_path):
    source = ag_news_folder(
        tmp_path / "in", rows={**ROWS, "train": ROWS["test"]}
    )
    message = error_of(prepare_ag_news, source, prepared)
    assert "already prepared" in message
    assert "overwrite=True" in message
    assert len(load_offline(prepared, "train")) == 3


@pytest.mark.needs_tensorflow
def test_what_is_prepared_can_be_replaced(tmp_path):
    data = tmp_path / "data"
    prepare_ag_news(ag_news_folder(tmp_path / "one"), data)
    rows = {**ROWS, "train": [("1", "new", "row")]}
    source = ag_news_folder(tmp_path / "two", rows=rows)
    prepare_ag_news(source, data, overwrite=True)
    assert load_offline(data, "train") == [("1", "new", "row")]
    assert os.listdir(data) == ["ag_news_subset"]


@pytest.mark.parametrize("place", ["build", "move"])
@pytest.mark.needs_tensorflow
def test_a_failure_leaves_the_prepared_dataset_as_it_was(
    tmp_path, monkeypatch, place
):
    from tensorflow_datasets.datasets.ag_news_subset import (
        ag_news_subset_dataset_builder as module,
    )

    data = tmp_path / "data"
    source = ag_news_folder(tmp_path / "in")
    prepare_ag_news(source, data)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    rename = os.rename

    def fail_once(old, new):
        if "ag_news_subset" in str(old) and str(new).startswith(
            str(data / "a")
        ):
            raise OSError("disk full")
        rename(old, new)

    if place == "build":
        monkeypatch.setattr(module.Builder, "_generate_examples", fail)
    else:
        monkeypatch.setattr(corpora.os, "rename", fail_once)
    message = error_of(prepare_ag_news, source, data, overwrite=True)
    monkeypatch.undo()
    assert "could not be built there: " in message
    assert os.listdir(data) == ["ag_news_subset"]
    assert len(load_offline(data, "train")) == 3


@pytest.mark.needs_tensorflow
def test_a_failure_leaves_no_half_built_dataset(tmp_path, monkeypatch):
    from tensorflow_datasets.datasets.ag_news_subset import (
        ag_news_subset_dataset_builder as module,
    )

    def fail_late(self, path):
        yield 0, {"label": 0, "title": "a", "description": "b"}
        raise OSError("disk full")

    monkeypatch.setattr(module.Builder, "_generate_examples", fail_late)
    source = ag_news_folder(tmp_path / "in")
    error_of(prepare_ag_news, source, tmp_path / "data")
    assert os.listdir(tmp_path / "data") == []


@pytest.mark.needs_tensorflow
def test_the_folder_of_a_dataset_only_begun_is_not_touched(tmp_path):
    begun = tmp_path / "data" / "ag_news_subset" / "1.0.0"
    begun.mkdir(parents=True)
    source = ag_news_folder(tmp_path / "in")
    message = error_of(prepare_ag_news, source, tmp_path / "data")
    assert "already begun" in message


@pytest.mark.needs_tensorflow
def test_a_data_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "data").write_text("a file")
    source = ag_news_folder(tmp_path / "in")
    message = error_of(prepare_ag_news, source, tmp_path / "data")
    assert "cannot be written" in message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["5", "t", "d"], "train.csv, line 4: the label is '5'"),
        (["x", "t", "d"], "line 4: the label is 'x'; accepted is label (1 to"),
        (["1", "t"], "line 4: the row has 2 column(s)"),
        (["1", "t", "d", "e"], "line 4: the row has 4 column(s)"),
    ],
)
def test_a_row_of_another_form_is_named_with_its_line(tmp_path, row, message):
    first = ("1", "two\nlines", "a")
    rows = {**ROWS, "train": [first, ("2", "b", "c"), row]}
    source = ag_news_folder(tmp_path / "in", rows=rows)
    assert message in error_of(prepare_ag_news, source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_bad_row_in_an_archive_is_named_with_its_member(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("train.csv", "test.csv"):
            member = tarfile.TarInfo(f"ag_news_csv/{name}")
            member.size = 8
            archive.addfile(member, io.BytesIO(b'"1","t"\n'))
    message = error_of(prepare_ag_news, path, tmp_path / "data")
    assert "a.tar/train.csv, line 1: " in message.replace(os.sep, "/")


def test_an_unclosed_quote_is_named_with_its_line(tmp_path):
    source = ag_news_folder(tmp_path / "in")
    (source / "test.csv").write_text('"1","a","b"\n"2","c","d\n')
    message = error_of(prepare_ag_news, source, tmp_path / "data")
    assert "test.csv, line 2: unexpected end of data" in message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nope.tar.gz", "nope.tar.gz: no such file; accepted"),
        (lambda p: p, "train.csv and test.csv are not both in it"),
        (
            lambda p: ag_news_archive(p / "a.tar.gz", names=["train"]),
            "a.tar.gz: test.csv is not in the archive",
        ),
        (
            lambda p: ag_news_folder(p / "in", rows={**ROWS, "test": []}),
            "test.csv: there are no rows in it",
        ),
        (
            lambda p: (
                ag_news_folder(p / "in", rows={"train": []}) / "train.csv"
            ),
            "not both in it",
        ),
    ],
)
def test_a_source_without_both_files_is_refused(tmp_path, make, message):
    source = make(tmp_path)
    assert message in error_of(prepare_ag_news, source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar.gz", b"<html>Quota exceeded</html>", "a web page saved in its"),
        # Without the time, which would be part of the name of the test: two
        # workers that collect it a second apart give up.
        ("a.tar.gz", gzip.compress(b"x" * 2000, mtime=0), "not a tar archive"),
        ("other.csv", b'"1","a","b"\n', "must be called train.csv or test"),
    ],
)
def test_a_source_of_another_kind_is_refused(write, name, content, message):
    path = write("x", content).rename(write("x", content).parent / name)
    target = path.parent / "data"
    assert message in error_of(prepare_ag_news, path, target)
    assert not target.exists()


def test_an_archive_cut_off_is_refused(tmp_path, monkeypatch):
    noise = random.Random(0)
    rows = [("1", str(noise.random()), "d") for _ in range(20_000)]
    monkeypatch.setitem(ROWS, "train", rows)
    path = ag_news_archive(tmp_path / "a.tar.gz")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    message = error_of(prepare_ag_news, path, tmp_path / "data")
    assert "a.tar.gz: damaged" in message
    assert not (tmp_path / "data").exists()


def test_links_in_an_archive_are_not_followed(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("train.csv", "test.csv"):
            member = tarfile.TarInfo(f"ag_news_csv/{name}")
            member.type = tarfile.SYMTYPE
            member.linkname = str(ag_news_folder(tmp_path / name) / name)
            archive.addfile(member)
    message = error_of(prepare_ag_news, path, tmp_path / "data")
    assert "train.csv is not in the archive" in message


@pytest.mark.needs_tensorflow
def test_preparing_prints_nothing(tmp_path, capsys):
    prepare_ag_news(ag_news_folder(tmp_path / "in"), tmp_path / "data")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.needs_tensorflow
def test_ag_news_gives_titles(prepared):
    corpus = open_corpus("tfds:ag_news_subset", data_dir=prepared)
    assert sorted(corpus) == sorted(row[1] for row in ROWS["train"])
    assert not corpus.joined


@pytest.mark.needs_tensorflow
def test_a_split_can_be_chosen(prepared):
    texts = exhaust("tfds:ag_news_subset:test", data_dir=prepared)
    assert texts == ["Fears for T N pension"]


@pytest.mark.needs_tensorflow
def test_a_split_can_be_a_slice(prepared):
    texts = exhaust("tfds:ag_news_subset:train[:2]", data_dir=prepared)
    assert len(texts) == 2


@pytest.mark.needs_tensorflow
def test_a_version_is_part_of_the_name(prepared):
    spec = "tfds:ag_news_subset:1.0.0:test"
    assert exhaust(spec, data_dir=prepared) == ["Fears for T N pension"]


@pytest.mark.needs_tensorflow
def test_a_text_feature_can_be_chosen(prepared):
    corpus = open_corpus(
        "tfds:ag_news_subset", field="description", data_dir=prepared
    )
    wanted = [row[2] for row in ROWS["train"] if row[2]]
    assert sorted(corpus) == sorted(wanted)
    assert corpus.skipped == 1


@pytest.mark.needs_tensorflow
def test_both_is_the_title_a_line_end_and_the_description(prepared):
    spec = "tfds:ag_news_subset:test"
    texts = exhaust(spec, field="both", data_dir=prepared)
    assert texts == ["Fears for T N pension\nUnions, workers"]


@pytest.mark.needs_tensorflow
def test_tfds_is_read_again_by_each_iteration(prepared):
    corpus = open_corpus("tfds:ag_news_subset", data_dir=prepared, limit=2)
    assert len(list(corpus)) == 2
    assert list(corpus) == list(corpus)


@pytest.mark.needs_tensorflow
def test_prepared_data_asks_for_no_download(prepared, no_network):
    assert exhaust("tfds:ag_news_subset", data_dir=prepared)
    assert no_network == []


@pytest.mark.needs_tensorflow
def test_reading_tfds_prints_nothing(prepared, capsys):
    exhaust("tfds:ag_news_subset", data_dir=prepared)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("field", ["label", "text", 1])
@pytest.mark.needs_tensorflow
def test_an_unknown_feature_is_told_with_the_text_fields(prepared, field):
    message = error_of(
        open_corpus, "tfds:ag_news_subset", field=field, data_dir=prepared
    )
    assert f"no text field {field!r}; accepted are 'description', " in message
    assert "'title', 'both'" in message


@pytest.mark.parametrize("split", ["dev", "train[x"])
@pytest.mark.needs_tensorflow
def test_an_unknown_split_is_told_with_the_splits(prepared, split):
    spec = f"tfds:ag_news_subset:{split}"
    message = error_of(open_corpus, spec, data_dir=prepared)
    assert f"no split {split!r}; the splits are test, train" in message


@pytest.mark.needs_tensorflow
def test_an_unknown_dataset_is_told_with_its_likes(tmp_path):
    message = error_of(open_corpus, "tfds:ag_new_subset", data_dir=tmp_path)
    assert "no dataset 'ag_new_subset'; did you mean ag_news_subset" in message


@pytest.mark.parametrize(
    "spec", ["tfds:a b", "tfds:ag_news_subset/no", "tfds:ag_news_subset:9.0.0"]
)
@pytest.mark.needs_tensorflow
def test_a_dataset_that_tfds_cannot_make_is_told_in_one_line(tmp_path, spec):
    message = error_of(open_corpus, spec, data_dir=tmp_path)
    assert "TFDS cannot open" in message


@pytest.mark.parametrize("spec", ["tfds:", "tfds::train", "tfds:x:"])
def test_an_incomplete_tfds_spec_is_told_what_is_accepted(spec):
    assert "accepted is `tfds:NAME[:SPLIT]`" in error_of(open_corpus, spec)


@pytest.mark.needs_tensorflow
def test_a_dataset_without_text_is_refused_before_it_is_fetched(
    tmp_path, no_network
):
    message = error_of(open_corpus, "tfds:mnist", data_dir=tmp_path)
    assert "none of its features is a text" in message
    assert no_network == []


@pytest.mark.needs_tensorflow
def test_several_text_features_want_a_field(tmp_path, no_network):
    message = error_of(open_corpus, "tfds:glue/sst2", data_dir=tmp_path)
    assert "download failed" in message  # its one text needs no field
    message = error_of(open_corpus, "tfds:glue/mrpc", data_dir=tmp_path)
    assert "`field` must name one of 'sentence1', 'sentence2'" in message


@pytest.mark.needs_tensorflow
def test_a_failed_download_of_ag_news_says_how_to_prepare_it(
    tmp_path, no_network
):
    message = error_of(open_corpus, "tfds:ag_news_subset", data_dir=tmp_path)
    assert "the download failed (Failed to get url)" in message
    assert "`keras-chargen prepare ag-news --from FILE`" in message
    assert no_network == ["ag_news_subset"]


@pytest.mark.needs_tensorflow
def test_a_failed_download_of_another_dataset_says_what_to_do(
    tmp_path, no_network
):
    message = error_of(open_corpus, "tfds:imdb_reviews", data_dir=tmp_path)
    assert "the download failed" in message
    assert "tfds.load('imdb_reviews', data_dir=...)" in message


@pytest.mark.needs_tensorflow
def test_a_dataset_begun_and_not_finished_is_refused(tmp_path):
    (tmp_path / "ag_news_subset" / "1.0.0").mkdir(parents=True)
    message = error_of(open_corpus, "tfds:ag_news_subset", data_dir=tmp_path)
    assert "holds an incomplete dataset; remove that folder" in message


@pytest.mark.needs_tensorflow
def test_prepared_data_gone_since_is_named_while_reading(tmp_path):
    data = tmp_path / "data"
    prepare_ag_news(ag_news_folder(tmp_path / "in"), data)
    corpus = open_corpus("tfds:ag_news_subset", data_dir=data)
    for file in (data / "ag_news_subset" / "1.0.0").glob("*tfrecord*"):
        file.write_bytes(b"damaged, and long enough for a header")
    assert "cannot be read: " in error_of(list, corpus)


def test_tfds_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = error_of(open_corpus, "tfds:ag_news_subset")
    assert "need the package tensorflow-datasets" in message


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy", "tensorflow"])
@pytest.mark.needs_tensorflow
def test_tensorflow_loses_the_gpus_unless_it_is_the_backend(
    monkeypatch, backend
):
    import tensorflow as tf

    calls = []
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda *args: calls.append(args)
    )
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    corpora.hide_gpus_from_tensorflow()
    assert calls == ([] if backend == "tensorflow" else [([], "GPU")])


# ---------------------------------------------------------------- templates

LABELS = ["World", "Sports", "Business", "Sci/Tech"]


@pytest.mark.needs_tensorflow
def test_a_template_names_the_labels_of_ag_news(prepared):
    texts = exhaust(
        "tfds:ag_news_subset",
        template="{label}: {title}",
        data_dir=prepared,
    )
    wanted = [f"{LABELS[int(r[0]) - 1]}: {r[1]}" for r in ROWS["train"]]
    assert sorted(texts) == sorted(wanted)


@pytest.mark.needs_tensorflow
def test_an_unknown_feature_of_a_template_is_told(prepared):
    message = error_of(
        open_corpus,
        "tfds:ag_news_subset",
        template="{kind}: {title}",
        data_dir=prepared,
    )
    assert "no text or label 'kind'; accepted are 'description', 'label'" in (
        message
    )


@pytest.mark.parametrize(
    "template, columns, wanted",
    [
        ("{b}-{a}", None, ["2-1", "4-3"]),
        ("{2}-{1}", None, ["b-a", "2-1", "4-3"]),
        ("{y}, {x}, {y}", ["x", "y"], ["b, a, b", "2, 1, 2", "4, 3, 4"]),
    ],
)
def test_a_template_joins_columns(tmp_path, template, columns, wanted):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    assert exhaust(path, template=template, columns=columns) == wanted


def test_a_template_joins_keys(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": "x", "n": 3}\n{"a": "y", "n": 4}\n')
    assert exhaust(path, template="{n}. {a}") == ["3. x", "4. y"]


@pytest.mark.parametrize(
    "name, content, template, message",
    [
        ("t.csv", "a,b\n1,2\n", "{a}-{c}", "no column 'c'"),
        ("t.csv", "a,b\n1\n", "{a}-{b}", "line 2: the row has 1 column"),
        ("t.jsonl", '{"a": "x"}\n', "{a}-{b}", "no key 'b'"),
        ("t.jsonl", '{"a": null}\n', "{a}", "must be a string"),
        ("t.jsonl", '"x"\n', "{a}", "not a JSON object"),
        ("t.txt", "x\n", "{a}", "has no fields"),
        ("t.csv", "a,b\n1,2\n", "a", "must name a field"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(
    tmp_path, name, content, template, message
):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        exhaust(path, template=template)


def test_a_template_goes_without_a_field(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="leave `field` out"):
        open_corpus(path, template="{a}", field="b")
