"""Logits and one uniform number become an id."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from keras_chargen import samplers
from keras_chargen.samplers import Context, LogitTransform, Sampler, Temperature

INF = float("inf")
LARGEST = 1 - 2.0**-24  # the largest number that is ever drawn
LOGITS = hnp.arrays(
    "float32",
    (3, 8),
    elements=st.floats(-30, 30, width=32, allow_subnormal=False)
    | st.just(-INF),
).filter(lambda logits: np.isfinite(logits).any(axis=1).all())
UNIFORM = hnp.arrays("float32", 3, elements=st.floats(0, 0.9375, width=32))


def ids_of(sampler, logits, uniform):
    """What the loop does with a sampler, for `(B, V)` and `(B,)`."""
    logits = np.asarray(logits, "float32")
    uniform = np.asarray(uniform, "float32")
    context = Context(ops.zeros(len(logits), "int32"))
    numbers, state = keras.tree.map_structure(
        ops.convert_to_tensor,
        (sampler.numbers(), sampler.initial_state(*logits.shape)),
    )
    logits, _ = sampler.transform(
        ops.convert_to_tensor(logits), context, numbers, state
    )
    ids = sampler.choose(logits, ops.convert_to_tensor(uniform))
    assert keras.backend.standardize_dtype(ids.dtype) == "int32"
    return ops.convert_to_numpy(ids)


def counts_of(sampler, logits, draws=4096):
    """How often each id comes over numbers spread evenly over [0, 1)."""
    uniform = (np.arange(draws) + 0.5) / draws
    ids = ids_of(sampler, np.tile(logits, (draws, 1)), uniform)
    return np.bincount(ids, minlength=len(logits))


def softmax(logits):
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


class Ban(LogitTransform):
    """Forbids one id: what a user's own transform looks like."""

    def __init__(self, banned):
        self.banned = banned

    def get_config(self):
        return {"banned": self.banned}

    def __call__(self, logits, context, *, banned):
        ids = ops.arange(ops.shape(logits)[-1], dtype="float32")
        return ops.where(ids == banned, -INF, logits)


@given(LOGITS, UNIFORM)
def test_greedy_takes_the_likeliest_whatever_is_drawn(logits, uniform):
    ids = ids_of(Sampler("greedy"), logits, uniform)
    np.testing.assert_array_equal(ids, logits.argmax(axis=1))


def test_greedy_takes_the_lowest_of_equals():
    assert ids_of(Sampler("greedy"), [[1, 5, 5, 2]], [0.9]) == [1]


def test_temperature_0_is_greedy():
    sampler = Sampler("random", temperature=0)
    assert sampler.greedy
    assert ids_of(sampler, [[1, 2, 1.9]], [0.99]) == [1]


@given(LOGITS, UNIFORM, st.floats(0.1, 10))
def test_a_draw_inverts_the_cumulative_distribution(
    logits, uniform, temperature
):
    ids = ids_of(Sampler("random", temperature), logits, uniform)
    exact = softmax(logits.astype("float64") / temperature)
    ends = np.cumsum(exact, axis=1)
    for row, i in enumerate(ids):
        begin = ends[row, i - 1] if i else 0
        assert exact[row, i] > 0
        # Rounding may move a border a little.
        assert begin - 1e-5 <= uniform[row] <= ends[row, i] + 1e-5


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 1.3, 1.8])
def test_ids_come_as_often_as_their_probability_says(temperature):
    logits = np.array([0.5, -1.0, 2.0, -INF, 1.0], "float32")
    counts = counts_of(Sampler("random", temperature), logits)
    expected = softmax(logits / temperature) * counts.sum()
    np.testing.assert_allclose(counts, expected, atol=1.01)


@given(LOGITS, st.sampled_from([0.0, 0.5, LARGEST]), st.floats(1e-30, 1e30))
def test_an_id_that_is_out_is_never_drawn(logits, uniform, temperature):
    sampler = Sampler("random", temperature)
    ids = ids_of(sampler, logits, [uniform] * 3)
    assert np.isfinite(logits[np.arange(3), ids]).all()


def test_a_tiny_temperature_is_greedy_in_the_limit():
    sampler = Sampler("random", 1e-30)
    assert ids_of(sampler, [[1e4, 9e3, -1e4]], [LARGEST]) == [0]


def test_a_huge_temperature_is_even_over_what_is_allowed():
    logits = np.array([3, -INF, 1, -2], "float32")
    counts = counts_of(Sampler("random", 1e6), logits, 3000)
    np.testing.assert_allclose(counts, [1000, 0, 1000, 1000], atol=1.01)


@pytest.mark.parametrize("temperature", [INF, -INF, float("nan"), -0.1, True])
@pytest.mark.parametrize("make", [Temperature, lambda t: Sampler("random", t)])
def test_a_temperature_out_of_range_is_refused(make, temperature):
    with pytest.raises(ValueError, match="`temperature` must be a finite"):
        make(temperature)


def test_the_transform_of_temperature_is_above_0():
    with pytest.raises(ValueError, match="`temperature` must be above 0"):
        Temperature(0)


@pytest.mark.parametrize("make", [Sampler, samplers.get])
def test_an_unknown_name_is_refused(make):
    with pytest.raises(ValueError, match="`sampler` must be one of 'greedy'"):
        make("top-q")


def test_what_is_no_transform_is_refused():
    with pytest.raises(ValueError, match="must be LogitTransform objects"):
        Sampler(transforms=[0.7])


def test_get_names_a_sampler():
    assert samplers.get("greedy").greedy
    assert samplers.get("random").temperature == 1
    assert samplers.get("random", 0.5).temperature == 0.5
    assert samplers.get("random", 0).greedy


def test_get_gives_a_sampler_back():
    sampler = Sampler("random", 0.3)
    assert samplers.get(sampler) is sampler


def test_a_sampler_has_its_own_temperature():
    with pytest.raises(ValueError, match="goes with a named sampler"):
        samplers.get(Sampler("random", 0.3), 0.5)


def test_transforms_of_a_user_shape_the_draw():
    sampler = Sampler("random", transforms=[Ban(2)])
    counts = counts_of(sampler, np.array([0, 0, 9, 0], "float32"), 300)
    np.testing.assert_allclose(counts, [100, 100, 0, 100], atol=1.01)
    assert ids_of(Sampler("greedy", transforms=[Ban(0)]), [[3, 2]], [0]) == 1


def test_transforms_apply_in_their_order_before_temperature():
    sampler = Sampler("random", 0.5, transforms=[Ban(1), Ban(2)])
    assert [repr(transform) for transform in sampler.chain] == [
        "Ban(banned=1)",
        "Ban(banned=2)",
        "Temperature(temperature=0.5)",
    ]
    assert repr(sampler) == (
        "Sampler(Ban(banned=1) -> Ban(banned=2) -> "
        "Temperature(temperature=0.5) -> random)"
    )
    assert repr(Sampler("greedy")) == "Sampler(greedy)"


def test_another_number_needs_no_other_code():
    assert Sampler("random", 0.7).signature() == (
        Sampler("random", 0.8).signature()
    )
    signatures = {
        Sampler("random", 0.7).signature(),
        Sampler("greedy").signature(),
        Sampler("random", 0.7, [Ban(1)]).signature(),
    }
    assert len(signatures) == 3


def test_a_sampler_in_json_comes_back():
    sampler = Sampler("random", 0.7, [Temperature(2.0)])
    saved = json.dumps(keras.saving.serialize_keras_object(sampler))
    loaded = keras.saving.deserialize_keras_object(json.loads(saved))
    assert repr(loaded) == repr(sampler)


def test_the_base_of_transforms_says_nothing_by_itself():
    with pytest.raises(NotImplementedError):
        LogitTransform()(np.zeros((1, 2)), Context(0))
