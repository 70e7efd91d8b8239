"""Runs a transform as the loop does, eagerly."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_chargen import CharTokenizer
from keras_chargen.samplers import Context, Sampler


def convert(values):
    # By way of NumPy: OpenVINO's tensors carry all that made them.
    values = keras.tree.map_structure(ops.convert_to_numpy, values)
    return keras.tree.map_structure(ops.convert_to_tensor, values)


@pytest.fixture(scope="session")
def tokenizer():
    """Ids 1 to 6 are a to f, 7 is <eos>."""
    return CharTokenizer([*"abcdef"])


@pytest.fixture(scope="session")
def apply(tokenizer):
    """What a transform makes of logits `(B, V)` after texts of ids."""

    def run(transform, logits, texts=None, position=0, chance=None, writes=1):
        logits = np.asarray(logits, "float32")
        batch, size = logits.shape
        texts = np.zeros((batch, 0), "int32") if texts is None else texts
        sampler = Sampler("greedy", transforms=[transform])
        numbers = convert(sampler.numbers(tokenizer))
        state = convert(sampler.initial_state(batch, size))
        context = Context(
            convert(np.full(batch, position, "int32")),
            chance=None if chance is None else convert(np.float32(chance)),
            writes=convert(np.full(batch, bool(writes))),
        )
        # Read the texts, character by character: what is forced follows from
        # no logits.
        outputs = [convert(np.zeros((batch, size), "float32"))]
        for ids in np.asarray(texts, "int32").T:
            state = convert(
                sampler.remember(outputs, convert(ids), context, numbers, state)
            )
        result, _ = sampler.transform(convert(logits), context, numbers, state)
        return ops.convert_to_numpy(result)

    return run


@pytest.fixture(scope="session")
def draws(tokenizer):
    """How often 20,000 draws gave each id, and how often they should have."""

    def run(sampler, logits, exact, number=20_000):
        rng = np.random.default_rng(7)
        uniform = rng.random(number, "float32")
        rows = np.tile(np.float32(logits), (number, 1))
        numbers = convert(sampler.numbers(tokenizer))
        state = convert(sampler.initial_state(*rows.shape))
        context = Context(
            convert(np.zeros(number, "int32")),
            chance=convert(rng.random(number, "float32")),
            writes=convert(np.ones(number, bool)),
        )
        out, _ = sampler.transform(convert(rows), context, numbers, state)
        ids = ops.convert_to_numpy(sampler.choose(out, convert(uniform)))
        counts = np.bincount(ids, minlength=len(logits))
        return counts, np.asarray(exact) / np.sum(exact) * number

    return run


@pytest.fixture(scope="session")
def fits(draws):
    """Asserts by chi-square that draws follow a distribution."""
    # The 0.999 quantiles of chi-square with 1, 2, … degrees of freedom.
    limits = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12]

    def check(sampler, logits, exact):
        counts, expected = draws(sampler, logits, exact)
        out = expected == 0
        assert counts[out].sum() == 0
        counts, expected = counts[~out], expected[~out]
        if len(counts) > 1:
            distance = ((counts - expected) ** 2 / expected).sum()
            assert distance < limits[len(counts) - 2]

    return check
