"""Texts of several fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_chargen.templates import Template


def test_fields_are_filled_in_their_places():
    template = Template("{label}: {title} ({label})")
    assert template.fields == ["label", "title"]
    assert template.fill(["Sports", "A game"]) == "Sports: A game (Sports)"


def test_double_braces_are_braces():
    assert Template("{{{a}}}").fill(["x"]) == "{x}"


@given(st.text(), st.text())
def test_values_are_never_read_as_templates(one, other):
    assert Template("{a}|{b}").fill([one, other]) == f"{one}|{other}"


@pytest.mark.parametrize(
    "text, message",
    [
        (3, "must be a str"),
        ("no field", "must name a field"),
        ("{", "is not valid"),
        ("{}", "plain names"),
        ("{a!r}", "plain names"),
        ("{a:5}", "plain names"),
    ],
)
def test_what_is_no_template_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Template(text)
