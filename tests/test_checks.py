"""Argument checks accept what they say, and say what they accept."""

import math

import numpy as np
import pytest

from keras_chargen.checks import (
    check_choice,
    check_integer,
    check_number,
    check_positive,
    check_share,
)


@pytest.mark.parametrize("value", [1, 7, np.int32(3), np.uint8(2)])
def test_an_integer_comes_back_as_int(value):
    result = check_integer("units", value, 1)
    assert type(result) is int and result == value


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None, math.nan])
def test_what_is_no_integer_in_range_is_named(value):
    with pytest.raises(ValueError, match="`units` must be an integer >= 1"):
        check_integer("units", value, 1)


def test_an_integer_may_have_no_minimum():
    assert check_integer("place", -5) == -5
    with pytest.raises(ValueError, match=r"an integer\. Received: 0.5"):
        check_integer("place", 0.5)


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.5)])
def test_a_number_comes_back_as_float(value):
    result = check_number("dropout", value, 0, 1)
    assert type(result) is float and result == value


@pytest.mark.parametrize(
    "value", [-0.1, 1.1, math.inf, math.nan, True, "0.5", None]
)
def test_what_is_no_number_in_range_is_named(value):
    with pytest.raises(ValueError, match=r"`dropout` must be .* from 0 to 1"):
        check_number("dropout", value, 0, 1)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -1])
def test_a_number_without_upper_bound_is_finite_all_the_same(value):
    with pytest.raises(ValueError, match=r"`temperature` must be .* >= 0"):
        check_number("temperature", value, 0)


@pytest.mark.parametrize("value", [0, 0.0, -0.0])
def test_a_positive_number_is_not_0(value):
    with pytest.raises(ValueError, match="`eta` must be above 0"):
        check_positive("eta", value)


@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), "1"])
def test_a_positive_number_is_in_its_range(value):
    with pytest.raises(ValueError, match="`eta` must be a finite"):
        check_positive("eta", value, 1)
    assert check_positive("eta", 1, 1) == 1.0


def test_a_choice_comes_back():
    assert check_choice("cell", "gru", ("lstm", "gru")) == "gru"


def test_another_choice_is_answered_with_those_there_are():
    with pytest.raises(ValueError) as error:
        check_choice("cell", "rnn", ("lstm", "gru"))
    assert str(error.value) == (
        "`cell` must be one of 'lstm', 'gru'. Received: 'rnn'"
    )


def test_a_share_is_below_1():
    assert check_share("dropout", 0) == 0.0
    for value in (1, -0.1, math.nan, "0.5"):
        with pytest.raises(ValueError, match="`dropout` must be"):
            check_share("dropout", value)
