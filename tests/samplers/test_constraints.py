"""What may, must and shall come."""

import numpy as np
import pytest

from keras_chargen.samplers import (
    AllowCharacters,
    BanCharacters,
    LogitBias,
    MinLength,
    Sampler,
)

INF = float("inf")
LOGITS = np.array([[-INF, 1, 2, 3, 4, 5, 6, 7]], "float32")


def test_a_bias_adds_to_the_logits_of_its_character(apply):
    result = apply(LogitBias({"b": 2, "<eos>": -1.5}), LOGITS)
    assert result[0].tolist() == [-INF, 1, 4, 3, 4, 5, 6, 5.5]


def test_banned_characters_are_out(apply):
    result = apply(BanCharacters("acé"), LOGITS)
    assert result[0].tolist() == [-INF, -INF, 2, -INF, 4, 5, 6, 7]


def test_only_allowed_characters_and_the_end_stay(apply):
    result = apply(AllowCharacters("acé"), LOGITS)
    assert result[0].tolist() == [-INF, 1, -INF, 3, -INF, -INF, -INF, 7]


@pytest.mark.parametrize("position, end", [(0, -INF), (4, -INF), (5, 7.0)])
def test_the_end_is_held_back_until_the_length_is_reached(apply, position, end):
    result = apply(MinLength(5), LOGITS, position=position)
    assert result[0].tolist() == [-INF, 1, 2, 3, 4, 5, 6, end]


@pytest.mark.parametrize(
    "transform, ratio",
    [
        (LogitBias({"a": 1.0}), [0, np.e, 1, 1, 1, 1, 1, 1]),
        (BanCharacters("ab"), [0, 0, 0, 1, 1, 1, 1, 1]),
        (AllowCharacters("ab"), [0, 1, 1, 0, 0, 0, 0, 1]),
        (MinLength(3), [0, 1, 1, 1, 1, 1, 1, 0]),
    ],
)
def test_draws_follow_what_is_left(fits, transform, ratio):
    sampler = Sampler("random", transforms=[transform])
    logits = np.array([-INF, 0, 0.5, -0.5, 1, 0, 0.2, -1])
    fits(sampler, logits, np.exp(logits) * ratio)


@pytest.mark.parametrize(
    "transform, message",
    [
        (BanCharacters("abcdef"), "leaves no character"),
        (AllowCharacters("xyz"), "leaves no character"),
        (LogitBias({"x": 1}), "outside the vocabulary: 'x'"),
    ],
)
def test_what_does_not_go_with_a_vocabulary_is_refused(
    tokenizer, transform, message
):
    with pytest.raises(ValueError, match=message):
        transform.numbers(tokenizer)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: LogitBias(["a"]), "biases"),
        (lambda: LogitBias({"ab": 1}), "biases"),
        (lambda: LogitBias({"a": INF}), "biases"),
        (lambda: BanCharacters(""), "characters"),
        (lambda: AllowCharacters(["a"]), "characters"),
        (lambda: MinLength(-1), "min_new_tokens"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_object_is_made(make, name):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        make()
