"""Beams find what looking at every text finds."""

import itertools
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_chargen import CharRNN, CharTokenizer, generation
from keras_chargen.samplers import (
    XTC,
    BanCharacters,
    BeamSearch,
    FrequencyPenalty,
)

TOKENIZER = CharTokenizer(["a", "b"])


class Table:
    """The next id depends on the last two alone: a random Markov chain."""

    def __init__(self, seed):
        self.tokenizer = TOKENIZER
        size = TOKENIZER.vocabulary_size()
        rng = np.random.default_rng(seed)
        self.logits = rng.normal(0, 2, (size, size, size)).astype("float32")

    def initial_state(self, batch_size):
        return (ops.zeros((batch_size,), "int32"),)

    def step(self, ids, state):
        size = TOKENIZER.vocabulary_size()
        flat = ops.reshape(ops.convert_to_tensor(self.logits), (-1, size))
        return ops.take(flat, state[0] * size + ids, axis=0), (ids,)

    def log_probs(self, ids):
        """The log-probability of each id after `<eos>`."""
        found, state, last = [], 0, TOKENIZER.eos_id
        for i in ids:
            row = np.float64(self.logits[state, last])
            found.append(row[i] - np.log(np.exp(row).sum()))
            state, last = last, i
        return found


def every_text(length):
    """All ids that can be written: ended before the length, or that long."""
    for size in range(length + 1):
        for ids in itertools.product([1, 2], repeat=size):
            yield ids if size == length else (*ids, TOKENIZER.eos_id)


def ranked(model, length, penalty):
    scores = {
        ids: sum(model.log_probs(ids)) / len(ids) ** penalty
        for ids in every_text(length)
    }
    return sorted(scores.items(), key=lambda item: -item[1])


@settings(max_examples=settings.default.max_examples // 10)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([0.0, 1.0, -0.5])
)
def test_many_beams_equal_an_exhaustive_search(seed, length, penalty):
    model = Table(seed)
    expected = ranked(model, length, penalty)[:4]
    found = generation.generate(
        model,
        [""],
        length,
        sampler=BeamSearch(32, penalty),
        num_samples=4,
        return_scores=True,
    )[0]
    assert [w.text for w in found][: len(expected)] == [
        TOKENIZER.detokenize(ids) for ids, _ in expected
    ]
    for written, (ids, _) in zip(found, expected, strict=False):
        np.testing.assert_allclose(
            written.log_probs, model.log_probs(ids), atol=1e-4
        )
        ended = "eos" if ids[-1] == TOKENIZER.eos_id else "length"
        assert written.ended == ended


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(4)
    model = CharRNN(CharTokenizer([*"abcdefgh ."]), units=8)
    model.set_weights([3 * weight for weight in model.get_weights()])
    return model


PROMPTS = ["a", "cab had", ""]


def test_one_beam_is_greedy(model):
    assert model.generate(PROMPTS, 40, sampler=BeamSearch(1)) == (
        model.generate(PROMPTS, 40)
    )


def test_more_beams_find_what_is_no_less_likely(model):
    def total(beams):
        found = model.generate(
            PROMPTS, 12, sampler=BeamSearch(beams), return_scores=True
        )
        return np.array([one.log_probs.sum() for one in found])

    assert (total(64) >= total(1) - 1e-4).all()
    assert (total(64) > total(1) + 1e-2).any()


def test_the_best_come_first_and_differ(model):
    for texts in model.generate(
        PROMPTS, 12, sampler=BeamSearch(6), num_samples=6, return_scores=True
    ):
        totals = [one.log_probs.sum() for one in texts]
        assert totals == sorted(totals, reverse=True)
        assert len({(one.text, one.ended) for one in texts}) == 6


def test_a_prompt_has_the_same_beams_in_any_company(model):
    together = model.generate(PROMPTS, 20, sampler="beam", num_samples=3)
    for prompt, texts in zip(PROMPTS, together, strict=True):
        alone = model.generate(prompt, 20, sampler="beam", num_samples=3)
        assert alone == texts


def test_a_long_prompt_is_read_in_stretches(model):
    prompt = "abc had a bad cab. " * 30
    for text in (prompt, ""):
        best = model.generate(
            text, 300, sampler=BeamSearch(2), return_scores=True
        )
        scored = model.score(best.text)
        assert len(best.log_probs) >= len(best.text) - len(text)
        assert math.isfinite(scored.nats)


def test_a_long_text_penalty_gives_longer_texts(model):
    def length(penalty):
        texts = model.generate(
            ["a", "b", "c", "d"], 30, sampler=BeamSearch(8, penalty), echo=False
        )
        return sum(map(len, texts))

    assert length(2.0) > length(0.0)


def test_transforms_shape_the_search(model):
    ban = BeamSearch(4, transforms=[BanCharacters("abc")])
    assert not set(model.generate("a", 30, sampler=ban, echo=False)) & set(
        "abc"
    )
    tired = BeamSearch(4, transforms=[FrequencyPenalty(5.0, window=8)])
    text = model.generate("", 9, sampler=tired)
    assert max(text.count(c) for c in text) <= 3


def test_a_stop_string_ends_a_beam(model):
    plain = model.generate(
        "a", 30, sampler="beam", echo=False, min_new_tokens=10
    )
    stop = plain[3:5]
    kept = model.generate(
        "a",
        30,
        sampler="beam",
        echo=False,
        stop=stop,
        include_stop=True,
        min_new_tokens=10,
    )
    assert kept.endswith(stop) and kept.count(stop) == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: BeamSearch(0), "`num_beams` must be"),
        (lambda: BeamSearch(2.5), "`num_beams` must be"),
        (lambda: BeamSearch(2, float("nan")), "`length_penalty` must be"),
        (lambda: BeamSearch(2, transforms=[XTC()]), "nothing to chance"),
    ],
)
def test_a_wrong_number_is_refused_when_the_object_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_texts_than_beams_are_refused(model):
    with pytest.raises(ValueError, match="at most `num_beams`"):
        model.generate("a", 3, sampler=BeamSearch(2), num_samples=3)


def test_nothing_to_write_is_no_search(model):
    assert model.generate("ab", 0, sampler="beam") == "ab"
