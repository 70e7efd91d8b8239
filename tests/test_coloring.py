"""Colours say how surprising a character was, and change no text."""

import html
import math
import re

from hypothesis import given
from hypothesis import strategies as st

from keras_chargen import coloring

PAIRS = st.lists(
    st.tuples(
        st.characters(exclude_categories=["Cc"]),
        st.none() | st.floats(0, 50, width=32),
    )
)


def test_surprise_moves_from_blue_to_red():
    calm, wild = coloring.color(0), coloring.color(8)
    assert calm[2] > calm[0] and wild[0] > wild[2]
    assert coloring.color(99) == wild
    assert all(0 <= part <= 255 for part in coloring.color(3.3))


@given(PAIRS)
def test_a_terminal_shows_the_whole_text(pairs):
    text = coloring.rich_text(pairs).plain
    expected = "".join(c for c, _ in pairs)
    assert text == expected.encode("utf-8", "replace").decode()


def test_control_characters_are_seen_and_do_nothing():
    pairs = [
        ("a", 1.0),
        ("\n", 1.0),
        ("\x1b", 2.0),
        ("\r", None),
        ("\x85", 1.0),
    ]
    shown = "a\u21b5\n\u241b\u240d\ufffd"
    assert coloring.rich_text(pairs).plain == shown
    page = re.sub(r"<[^>]*>", "", coloring.page_text(pairs, 1.0))
    assert page == f" 1.000 {shown}\n"


@given(PAIRS)
def test_a_page_shows_the_whole_text(pairs):
    page = coloring.page_text(pairs, 1.0)
    shown = re.sub(r"<[^>]*>", "", page)
    expected = "".join(c for c, _ in pairs)
    expected = expected.encode("utf-8", "replace").decode()
    assert html.unescape(shown) == f" 1.000 {expected}\n"


def test_a_page_tells_the_bits_and_needs_nothing_else():
    page = coloring.page_head("a <b>") + coloring.page_text(
        [("x", 2 * math.log(2)), ("y", None)], 2.0
    )
    page += coloring.PAGE_END
    assert 'title="2.00 bits">x' in page and 'title="not scored">y' in page
    assert "a &lt;b&gt;" in page
    assert not re.search(r"https?:|<script|<link|@import|src=", page)
