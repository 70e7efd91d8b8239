"""One compiled loop serves all numbers, and steps no oftener than it must."""

import keras
import pytest
from speller import WORD, Speller

from keras_chargen import generation
from keras_chargen.samplers import (
    DRY,
    BanCharacters,
    BeamSearch,
    FrequencyPenalty,
    LogitBias,
    MinLength,
    NoRepeatNGram,
    Sampler,
)

COMPILED = pytest.mark.skipif(
    keras.backend.backend() not in ("jax", "tensorflow", "openvino"),
    reason="runs step by step",
)
PAIRS = [
    (Sampler("top-k", 0.7, top_k=3), Sampler("top-k", 0.8, top_k=5)),
    (Sampler("top-p", 0.7, top_p=0.5), Sampler("top-p", 0.8, top_p=0.9)),
    (Sampler("xtc", threshold=0.1), Sampler("xtc", threshold=0.2)),
    (Sampler("mirostat", tau=1.0), Sampler("mirostat", tau=2.0, eta=0.3)),
    (Sampler("random", [0.5, 1.0]), Sampler("random", [0.7, 2.0])),
    *(
        (Sampler("greedy", transforms=[a]), Sampler("greedy", transforms=[b]))
        for a, b in (
            (DRY(0.5, window=20), DRY(1.5, base=2.0, window=30)),
            (NoRepeatNGram(3), NoRepeatNGram(4)),
            (FrequencyPenalty(0.1, window=9), FrequencyPenalty(0.2, window=8)),
            (LogitBias({"c": 1.0}), LogitBias({"h": 2.0, "a": -1.0})),
            (BanCharacters("c"), BanCharacters("ha")),
            (MinLength(2), MinLength(4)),
        )
    ),
    (BeamSearch(2, 0.0), BeamSearch(2, 1.0)),
]


@COMPILED
@pytest.mark.parametrize("one, other", PAIRS, ids=lambda sampler: repr(sampler))
def test_other_numbers_of_a_chain_compile_nothing(one, other):
    speller = Speller()
    generation.generate(speller, "c", 9, sampler=one)
    traced = speller.steps
    generation.generate(speller, "c", 8, sampler=other)
    assert speller.steps == traced


@COMPILED
def test_another_pattern_compiles_nothing():
    speller = Speller()
    generation.generate(speller, "c", 9, pattern="[a-z]+")
    traced = speller.steps
    generation.generate(speller, "c", 8, pattern="c?[hast]+e*")
    assert speller.steps == traced


@COMPILED
@pytest.mark.parametrize("lengths", [(50, 9, 200), (700, 300, 3000)])
def test_numbers_lengths_and_seeds_compile_nothing(lengths):
    speller = Speller()
    generation.generate(speller, ["", "char"], lengths[0], sampler="random")
    traced = speller.steps
    for temperature, length, prompt in zip(
        (0.5, 2), lengths[1:], ("c", "charac"), strict=True
    ):
        generation.generate(
            speller,
            [prompt, ""],
            length,
            sampler="random",
            temperature=temperature,
            seed=length,
        )
    assert speller.steps == traced


@pytest.mark.skipif(
    keras.backend.backend() != "numpy",
    reason="compiled code is not entered step by step",
)
def test_each_character_costs_one_step():
    speller = Speller()
    generation.generate(speller, "char", 50)
    # `<eos>`, the word, and none for the `<eos>` at its end.
    assert speller.steps == len(WORD) + 1
