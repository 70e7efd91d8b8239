"""Sharper, flatter, in turn, or as sure as the model is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_chargen.samplers import (
    DynamicTemperature,
    Sampler,
    Temperature,
    TemperatureCycle,
)

INF = float("inf")
LOGITS = hnp.arrays(
    "float32",
    (2, 8),
    elements=st.floats(-20, 20, width=32, allow_subnormal=False)
    | st.just(-INF),
).filter(lambda logits: np.isfinite(logits).any(axis=1).all())


def relative(logits):
    return logits - logits.max(axis=1, keepdims=True)


@given(LOGITS, st.floats(0.1, 10))
def test_temperature_divides(apply, logits, temperature):
    result = apply(Temperature(temperature), logits)
    np.testing.assert_allclose(
        result, relative(logits) / temperature, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("position, temperature", [(0, 0.5), (1, 2), (5, 4)])
def test_a_cycle_takes_each_in_turn(apply, position, temperature):
    logits = np.array([[0, 1, 2, 3]], "float32")
    result = apply(TemperatureCycle([0.5, 2, 4]), logits, position=position)
    np.testing.assert_allclose(result, relative(logits) / temperature)


@given(LOGITS, st.floats(0.1, 1), st.floats(1, 3), st.floats(0.5, 2))
def test_dynamic_temperature_grows_with_entropy(
    apply, logits, low, high, exponent
):
    result = apply(DynamicTemperature(low, high, exponent), logits)
    for row, found in zip(np.float64(logits), result, strict=True):
        p = np.exp(row - row.max())
        p = p[p > 0] / p.sum()
        entropy = -(p * np.log(p)).sum()
        most = np.log(max(2, np.isfinite(row).sum()))
        temperature = low + (high - low) * (entropy / most) ** exponent
        np.testing.assert_allclose(
            found, (row - row.max()) / temperature, rtol=1e-2, atol=1e-3
        )


def test_draws_follow_a_dynamic_temperature(fits):
    logits = np.array([0.5, -1.0, 2.0, 0.0])
    p = np.exp(logits) / np.exp(logits).sum()
    share = -(p * np.log(p)).sum() / np.log(4)
    sampler = Sampler("random", transforms=[DynamicTemperature(0.4, 2.0)])
    fits(sampler, logits, np.exp(logits / (0.4 + 1.6 * share)))


def test_draws_follow_the_first_of_a_cycle(fits):
    logits = np.array([0.5, -1.0, 2.0, 0.0])
    fits(Sampler("random", [0.7, 3.0]), logits, np.exp(logits / 0.7))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: TemperatureCycle([]), "temperatures"),
        (lambda: TemperatureCycle([1, 0]), "temperatures"),
        (lambda: TemperatureCycle(0.5), "temperatures"),
        (lambda: DynamicTemperature(0), "low"),
        (lambda: DynamicTemperature(1, 0.5), "low"),
        (lambda: DynamicTemperature(1, INF), "high"),
        (lambda: DynamicTemperature(1, 2, 0), "exponent"),
    ],
)
def test_a_wrong_number_is_refused_when_the_object_is_made(make, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        make()
