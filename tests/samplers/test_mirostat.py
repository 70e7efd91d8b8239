"""The surprisal stays where it should."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_chargen.samplers import Context, Mirostat, Sampler

LOGITS = np.log(np.array([[0.4, 0.3, 0.2, 0.06, 0.04]], "float32"))


def convert(values):
    # By way of NumPy: OpenVINO's tensors carry all that made them.
    values = keras.tree.map_structure(ops.convert_to_numpy, values)
    return keras.tree.map_structure(ops.convert_to_tensor, values)


def step(sampler, logits, ids, state, writes=True):
    """One step of a chain; what it left and its next state."""
    numbers = convert(sampler.numbers())
    context = Context(
        convert(np.zeros(len(logits), "int32")),
        writes=convert(np.full(len(logits), writes)),
    )
    out, outputs = sampler.transform(convert(logits), context, numbers, state)
    ids = convert(np.asarray(ids, "int32"))
    state = sampler.remember(outputs, ids, context, numbers, state)
    return ops.convert_to_numpy(out), convert(state)


def reference(probabilities, ids, tau, eta):
    """Algorithm 2 of the paper, a character at a time."""
    mu, kept = 2 * tau, []
    for i in ids:
        keep = -np.log2(probabilities) <= mu
        keep[np.argmax(probabilities)] = True
        kept.append(keep)
        cut = np.where(keep, probabilities, 0)
        # What the cut left out cannot have been drawn.
        i = i if keep[i] else int(np.argmax(probabilities))
        mu -= eta * (-np.log2(cut[i] / cut.sum()) - tau)
    return kept, mu


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.floats(0.3, 3),
    st.floats(0.05, 1),
)
def test_the_border_follows_what_was_drawn(ids, tau, eta):
    sampler = Sampler("random", transforms=[Mirostat(tau, eta)])
    state = convert(sampler.initial_state(1, 5))
    probabilities = np.exp(np.float64(LOGITS[0]))
    probabilities /= probabilities.sum()
    kept, mu = reference(probabilities, ids, tau, eta)
    for i, expected in zip(ids, kept, strict=True):
        i = i if expected[i] else int(np.argmax(probabilities))
        out, state = step(sampler, LOGITS, [i], state)
        borders = np.abs(-np.log2(probabilities) - mu)
        if borders.min() > 1e-3:
            np.testing.assert_array_equal(np.isfinite(out[0]), expected)
    found = ops.convert_to_numpy(state["own"][0])[0]
    assert found == pytest.approx(mu, abs=1e-3)


def test_a_prompt_teaches_nothing():
    sampler = Sampler("mirostat")
    state = convert(sampler.initial_state(1, 5))
    _, after = step(sampler, LOGITS, [4], state, writes=False)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(after["own"][-1]),
        ops.convert_to_numpy(state["own"][-1]),
    )


def test_what_is_written_surprises_by_tau():
    logits = np.log(np.random.default_rng(1).dirichlet(np.ones(60), 64))
    sampler = Sampler("mirostat", tau=3.0, eta=0.1)
    state = convert(sampler.initial_state(64, 60))
    rng, bits = np.random.default_rng(2), []
    for _ in range(150):
        numbers = convert(sampler.numbers())
        context = Context(
            convert(np.zeros(64, "int32")), writes=convert(np.ones(64, bool))
        )
        out, outputs = sampler.transform(
            convert(logits.astype("float32")), context, numbers, state
        )
        ids = sampler.choose(out, convert(rng.random(64, "float32")))
        state = convert(sampler.remember(outputs, ids, context, numbers, state))
        left = np.exp(np.float64(ops.convert_to_numpy(out)))
        left /= left.sum(axis=1, keepdims=True)
        chosen = left[np.arange(64), ops.convert_to_numpy(ids)]
        bits.append(-np.log2(chosen))
    assert np.mean(bits[50:]) == pytest.approx(3.0, abs=0.05)


def test_draws_follow_the_first_cut(fits):
    # Of these, 0.06 and 0.04 surprise by more than 2 * tau = 3 bits.
    exact = [0.4, 0.3, 0.2, 0, 0]
    fits(Sampler("mirostat", tau=1.5), LOGITS[0], exact)


@pytest.mark.parametrize(
    "options, name",
    [({"tau": 0}, "tau"), ({"eta": 0}, "eta"), ({"eta": 1.5}, "eta")],
)
def test_a_wrong_number_is_refused_when_the_object_is_made(options, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Mirostat(**options)
