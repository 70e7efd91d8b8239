"""Torch's own recurrent kernels give what Keras's layers give."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_chargen.recurrent import CELLS

NAMES = ["lstm", "gru"]


def pair(name, dtype=None):
    """Our layer and Keras's, with the same random weights."""
    arguments = {
        "return_sequences": True,
        "return_state": True,
        "dtype": dtype,
    }
    ours = CELLS[name](6, **arguments)
    keras_layer = {
        "lstm": keras.layers.LSTM,
        "gru": keras.layers.GRU,
        "simple": keras.layers.SimpleRNN,
    }[name]
    theirs = keras_layer(6, **arguments)
    ours.build((None, None, 5))
    theirs.build((None, None, 5))
    random = np.random.default_rng(0)
    weights = [
        random.normal(0, 0.5, weight.shape).astype("float32")
        for weight in ours.get_weights()
    ]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs


def inputs(rows=3, steps=7):
    random = np.random.default_rng(1)
    return random.normal(size=(rows, steps, 5)).astype("float32")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_states_equal_those_of_keras(name):
    ours, theirs = pair(name)
    for a, b in zip(ours(inputs()), theirs(inputs()), strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), atol=1e-5
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_given_state_is_read_on_from_as_keras_does(name):
    ours, theirs = pair(name)
    _, *state = theirs(inputs())
    results = [
        layer(inputs(steps=4), initial_state=state) for layer in (ours, theirs)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), atol=1e-5
        )


@pytest.mark.trains
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_those_of_keras(name):
    trained = []
    for layer in pair(name):
        ids = keras.Input((None, 5))
        model = keras.Model(ids, layer(ids)[0])
        model.compile(keras.optimizers.SGD(1.0), "mse")
        model.fit(
            inputs(), np.ones((3, 7, 6), "float32"), batch_size=3, verbose=0
        )
        trained.append(layer.get_weights())
    for a, b in zip(*trained, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="a loop of Torch's own"
)
@pytest.mark.parametrize("name", NAMES)
def test_torch_runs_its_own_loop_on_a_cpu(name, monkeypatch):
    import torch

    calls = []
    kernel = getattr(torch, name)
    monkeypatch.setattr(
        torch, name, lambda *a, **k: (calls.append(a), kernel(*a, **k))[1]
    )
    ours, _ = pair(name)
    ours(inputs())
    assert len(calls) == 1


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="a loop of Torch's own"
)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_left_to_keras(name):
    layer = CELLS[name](
        6,
        return_sequences=True,
        dtype="bfloat16",
        recurrent_initializer="zeros",
    )
    assert layer(inputs()).dtype == keras.ops.ones(1, "bfloat16").dtype


@pytest.mark.parametrize(
    "dtype, atol", [("float32", 1e-6), ("mixed_bfloat16", 0.02)]
)
@pytest.mark.parametrize("name", CELLS)
def test_a_step_gives_what_a_cell_of_keras_gives(name, dtype, atol):
    ours, theirs = pair(name, dtype)
    random = np.random.default_rng(2)
    states = [
        ops.convert_to_tensor(random.normal(0, 0.5, (3, 6)), ours.compute_dtype)
        for _ in range(2 if name == "lstm" else 1)
    ]
    ids = ops.convert_to_tensor(np.array([4, 0, 2], "int32"))
    vectors = ops.one_hot(ids, 5, dtype=ours.compute_dtype)
    expected = keras.tree.flatten(theirs.cell(vectors, states, training=False))
    for x in (ids, vectors):
        found = keras.tree.flatten(ours.step(x, states))
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(
                ops.convert_to_numpy(ops.cast(a, "float32")),
                ops.convert_to_numpy(ops.cast(b, "float32")),
                atol=atol,
            )
