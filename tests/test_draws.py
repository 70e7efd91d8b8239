"""A row's numbers are those of its key, wherever they are asked from."""

import numpy as np
import pytest

from keras_chargen.draws import Draws


def numbers(key, count, stream=0):
    places = np.arange(count)[:, None]
    return Draws([key], 1, stream).at(places)[:, 0]


def test_numbers_are_those_of_philox_in_24_bits():
    bits = np.random.Generator(
        np.random.Philox(key=np.array([5, 2], "uint64"))
    ).integers(0, 1 << 24, 40, dtype="uint32")
    expected = (bits / (1 << 24)).astype("float32")
    np.testing.assert_array_equal(numbers((5, 2), 40), expected)


@pytest.mark.parametrize("first", [1, 7, 39])
def test_numbers_asked_in_parts_are_those_asked_at_once(first):
    draws = Draws([(1, 0)], 1)
    places = np.arange(40)[:, None]
    parts = [draws.at(places[:first]), draws.at(places[first:])]
    whole = numbers((1, 0), 40)
    np.testing.assert_array_equal(np.concatenate(parts)[:, 0], whole)


def test_numbers_laid_out_and_not_passed_come_again():
    draws = Draws([(1, 0)], 1)
    places = np.arange(8)[:, None]
    draws.at(places)
    whole = numbers((1, 0), 11)
    np.testing.assert_array_equal(draws.at(places + 3)[:, 0], whole[3:])


def test_a_row_that_reads_has_none():
    draws = Draws([(1, 0), (1, 1)], 2)
    places = np.arange(6)[:, None] - np.array([0, 4])
    result = draws.at(places)
    np.testing.assert_array_equal(result[:4, 1], np.zeros(4))
    np.testing.assert_array_equal(result[4:, 1], numbers((1, 1), 2))
    np.testing.assert_array_equal(result[:, 0], numbers((1, 0), 6))


@pytest.mark.parametrize("other", [(2, 0), (1, 1)])
def test_rows_and_seeds_have_numbers_of_their_own(other):
    assert not np.isin(numbers((1, 0), 99), numbers(other, 99)).all()


def test_another_stream_of_a_row_has_other_numbers():
    assert (numbers((1, 0), 99) != numbers((1, 0), 99, stream=1)).any()


def test_rows_beyond_the_keys_have_none():
    assert not Draws([(1, 0)], 3).at(np.zeros((4, 3), int))[:, 1:].any()
