"""KerasHub's samplers write with our models."""

import keras
import numpy as np
import pytest

from keras_chargen import CharRNN, CharTokenizer, generation, hub
from keras_chargen.compilation import runs_loops_eagerly
from keras_chargen.samplers import BeamSearch, Sampler

PROMPTS = ["a", "cab had", "", "b", "a bee"]


@pytest.fixture(scope="module")
def samplers():
    pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    if not runs_loops_eagerly():
        pytest.skip("KerasHub's loops do not run under OpenVINO")
    from keras_hub import samplers

    return samplers


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(4)
    model = CharRNN(CharTokenizer([*"abcdefgh ."]), units=8)
    model.set_weights([3 * weight for weight in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def endless(model):
    """Where KerasHub's beams and ours mean the same.

    Theirs go on after an end, and share out what the model gives to padding.
    """
    model = CharRNN.from_config(model.get_config())
    weights = model.get_weights()
    weights[-1][[0, model.tokenizer.eos_id]] = -99
    model.set_weights(weights)
    return model


class FakeSampler:
    """What is not KerasHub's is not taken for it."""


def test_only_samplers_of_keras_hub_are_taken_for_such():
    assert not hub.is_sampler(FakeSampler())
    assert not hub.is_sampler(Sampler())
    assert not hub.is_sampler("greedy")


@pytest.mark.skipif(runs_loops_eagerly(), reason="for OpenVINO")
def test_a_backend_that_cannot_run_its_loops_is_named(model):
    with pytest.raises(ValueError, match="Received: KERAS_BACKEND=openvino"):
        hub.write(model, None, [np.zeros(1, "int32")], 3)


def test_its_greedy_text_is_ours(model, samplers):
    sampler = samplers.GreedySampler()
    assert hub.is_sampler(sampler)
    assert model.generate(PROMPTS, 30, sampler=sampler) == (
        model.generate(PROMPTS, 30)
    )


# KerasHub takes the log of a probability of 0; NumPy alone says so.
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_its_beams_are_ours(endless, samplers):
    sampler = samplers.BeamSampler(num_beams=4)
    assert endless.generate(PROMPTS, 12, sampler=sampler) == (
        endless.generate(PROMPTS, 12, sampler=BeamSearch(4))
    )


def test_its_draws_can_be_written_and_stopped(model, samplers):
    sampler = samplers.TopKSampler(k=5, seed=1)
    texts = model.generate(
        PROMPTS, 30, sampler=sampler, num_samples=2, stop=["c", "d"]
    )
    assert [len(pair) for pair in texts] == [2] * 5
    for prompt, pair in zip(PROMPTS, texts, strict=True):
        for text in pair:
            assert text.startswith(prompt)
            assert not set(text[len(prompt) :]) & {"c", "d"}


def test_nothing_to_write_leaves_the_prompt(model, samplers):
    assert model.generate("ab", 0, sampler=samplers.GreedySampler()) == "ab"


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"seed": 1}, "seed"),
        ({"temperature": 0.5}, "temperature"),
        ({"pattern": "a"}, "pattern"),
        ({"min_new_tokens": 2}, "min_new_tokens"),
        ({"return_scores": True}, "return_scores"),
    ],
)
def test_what_it_does_not_know_is_refused(model, samplers, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` does not go with"):
        model.generate("a", 5, sampler=samplers.GreedySampler(), **arguments)


def test_it_cannot_stream(model, samplers):
    with pytest.raises(ValueError, match="cannot stream"):
        generation.stream(model, "a", 5, sampler=samplers.GreedySampler())


def test_the_state_before_the_prompts_end_is_read(model, samplers):
    # A long prompt and a short one: rows of one length are written together.
    prompts = ["abc had a bee.", "a", "cde had a bee.", "b"]
    sampler = samplers.GreedySampler()
    together = model.generate(prompts, 10, sampler=sampler)
    alone = [model.generate(p, 10, sampler=sampler) for p in prompts]
    assert together == alone
    assert len(np.unique(together)) == 4
