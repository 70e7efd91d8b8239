"""Stop strings end a text where they are complete."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_chargen.stopping import cut, held_back, stop_table, up_to_stop
from keras_chargen.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer([*"abc"])
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)
TEXT = st.text("abc", max_size=30)


def first_end(text, stops):
    """Where the first stop string is complete, or None."""
    for end in range(1, len(text) + 1):
        if any(text[:end].endswith(stop) for stop in stops):
            return end
    return None


def end_by_table(text, table):
    state = 0
    for place, symbol in enumerate(TOKENIZER.tokenize(text)):
        state = table[state, symbol]
        if state < 0:
            return place + 1
    return None


@given(TEXT, STOPS.filter(any))
def test_the_table_stops_where_a_search_does(text, stops):
    table = stop_table(stops, TOKENIZER)
    assert end_by_table(text, table) == first_end(text, stops)


@pytest.mark.parametrize(
    "stops, text, end",
    [
        (["aab"], "aaab", 4),
        (["abca", "bc"], "abca", 3),
        (["abab"], "abacabab", 8),
        (["a", "aa"], "aa", 1),
    ],
)
def test_overlaps_and_suffixes_are_seen(stops, text, end):
    assert end_by_table(text, stop_table(stops, TOKENIZER)) == end


def test_what_can_never_be_written_is_left_out():
    assert stop_table(["x", "ax"], TOKENIZER) is None
    assert stop_table([], TOKENIZER) is None
    table = stop_table(["x", "b"], TOKENIZER)
    assert end_by_table("aab", table) == 3


@given(STOPS.filter(any))
def test_the_table_has_one_of_few_shapes(stops):
    table = stop_table(stops, TOKENIZER)
    assert table.dtype == np.int32
    assert table.shape[1] == TOKENIZER.vocabulary_size()
    assert table.shape[0] & (table.shape[0] - 1) == 0
    assert table.max() < table.shape[0]


@given(TEXT, STOPS)
def test_the_longest_stop_string_at_the_end_is_cut(text, stops):
    ends = [len(stop) for stop in stops if text.endswith(stop)]
    expected = text[: len(text) - max(ends)] if ends else text
    assert cut(text, stops) == expected


@given(TEXT, STOPS)
def test_what_may_begin_a_stop_string_is_held_back(text, stops):
    held = held_back(text, stops)
    assert 0 <= held <= len(text)
    if held:
        assert any(stop.startswith(text[-held:]) for stop in stops)
    for stop in stops:
        for size in range(held + 1, len(stop)):
            assert not text.endswith(stop[:size])


def test_the_first_stop_string_ends_a_text():
    assert up_to_stop("one, two; three", [";", ", "]) == "one, "
    assert up_to_stop("one", [";"]) == "one"
    assert up_to_stop("ab;", [";"]) == "ab;"
