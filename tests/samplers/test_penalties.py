"""Each penalty does what a plain reading of its source does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_chargen.samplers import (
    DRY,
    FrequencyPenalty,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    Sampler,
)
from keras_chargen.samplers.penalties import recent_size

INF = float("inf")
LOGITS = np.array([[-INF, 1, -1, 2, -2, 0.5, 3, 1]], "float32")
TEXTS = st.lists(st.integers(1, 4), max_size=40)


def counts(text, window):
    return np.bincount(text[-window:], minlength=8) if text else np.zeros(8)


def continued(text, window, breaks=()):
    """For each id the longest repetition that it would go on with."""
    longest = np.full(8, -1)
    for place in range(max(0, len(text) - window), len(text)):
        size = 0
        while size < place and text[place - 1 - size] == text[-1 - size]:
            if text[-1 - size] in breaks:
                break
            size += 1
        longest[text[place]] = max(longest[text[place]], size)
    return longest


def check(result, expected):
    np.testing.assert_allclose(result[0], expected, rtol=1e-5, atol=1e-6)


@given(TEXTS, st.integers(1, 30), st.floats(0.5, 3))
def test_repetition_penalty_scales_what_was_there(apply, text, window, penalty):
    row = LOGITS[0]
    lower = np.where(row > 0, row / penalty, row * penalty)
    expected = np.where(counts(text, window) > 0, lower, row)
    check(apply(RepetitionPenalty(penalty, window), LOGITS, [text]), expected)


@given(TEXTS, st.integers(1, 30), st.floats(-2, 2))
def test_presence_penalty_counts_an_id_once(apply, text, window, strength):
    expected = LOGITS[0] - strength * (counts(text, window) > 0)
    check(apply(PresencePenalty(strength, window), LOGITS, [text]), expected)


@given(TEXTS, st.integers(1, 30), st.floats(-2, 2))
def test_frequency_penalty_counts_every_time(apply, text, window, strength):
    expected = LOGITS[0] - strength * counts(text, window)
    check(apply(FrequencyPenalty(strength, window), LOGITS, [text]), expected)


@given(TEXTS, st.integers(1, 40), st.integers(1, 6), st.sampled_from(["", "b"]))
def test_dry_grows_with_the_match(apply, text, window, allowed, breakers):
    # A match reaches back beyond the window as far as ids are kept.
    text = text[-recent_size(window) :]
    longest = continued(text, window, breaks=[2] if breakers else [])
    penalty = np.where(longest >= allowed, 2.0 ** (longest - allowed), 0)
    transform = DRY(0.8, 2.0, allowed, window, breakers)
    result = apply(transform, LOGITS, [text])
    check(result, LOGITS[0] - 0.8 * np.minimum(penalty, 1e4))


@given(TEXTS, st.integers(1, 40), st.integers(1, 6))
def test_an_ngram_comes_once(apply, text, window, size):
    text = text[-recent_size(window) :]
    again = continued(text, window) >= size - 1
    result = apply(NoRepeatNGram(size, window), LOGITS, [text])
    if again[1:].all():
        again[:] = False
    check(result, np.where(again, -np.inf, LOGITS[0]))


def test_where_every_id_is_out_all_are_in_again(apply):
    text = [1, 2, 3, 4, 5, 6, 7]
    result = apply(NoRepeatNGram(1), LOGITS, [text])
    np.testing.assert_array_equal(result, LOGITS)


def test_a_long_match_is_as_good_as_forbidden_and_finite(apply):
    result = apply(DRY(window=64), LOGITS, [[1] * 64])
    assert result[0, 1] == pytest.approx(LOGITS[0, 1] - 8e3)


def test_rows_have_each_their_own_past(apply):
    texts = [[1, 2, 1, 2], [3, 4, 4, 4]]
    logits = np.tile(LOGITS, (2, 1))
    for transform in (
        DRY(allowed_length=1),
        FrequencyPenalty(),
        NoRepeatNGram(2),
    ):
        both = apply(transform, logits, texts)
        for row in range(2):
            alone = apply(transform, LOGITS, texts[row : row + 1])
            np.testing.assert_array_equal(both[row], alone[0])


def test_draws_follow_the_penalized_distribution(fits):
    # After no text at all a penalty says nothing.
    logits = np.array([-INF, 0.5, 1.0, -0.5, 0.0, 0.2, 0.1, 1.5])
    sampler = Sampler("random", transforms=[FrequencyPenalty(1.0), DRY()])
    fits(sampler, logits, np.exp(logits))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: RepetitionPenalty(0), "penalty"),
        (lambda: RepetitionPenalty(1.2, 0), "window"),
        (lambda: PresencePenalty(float("nan")), "strength"),
        (lambda: FrequencyPenalty("x"), "strength"),
        (lambda: DRY(-1), "multiplier"),
        (lambda: DRY(base=0.5), "base"),
        (lambda: DRY(allowed_length=0), "allowed_length"),
        (lambda: DRY(breakers=["x"]), "breakers"),
        (lambda: NoRepeatNGram(0), "ngram_size"),
        (lambda: NoRepeatNGram(3, 0), "window"),
    ],
)
def test_a_wrong_number_is_refused_when_the_object_is_made(make, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        make()
