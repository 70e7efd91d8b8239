"""The layers give what Keras's give; minimal ones what their steps give."""

import importlib
import inspect

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_chargen
from keras_chargen import recurrent
from keras_chargen.compilation import compile_function
from keras_chargen.recurrent import CELLS

BACKEND = keras.backend.backend()
KERAS_LAYERS = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "simple": keras.layers.SimpleRNN,
}
OURS = pytest.mark.skipif(
    BACKEND not in ("jax", "tensorflow"), reason="a loop of ours"
)
TORCH = pytest.mark.skipif(BACKEND != "torch", reason="a loop of Torch's own")
CELL = pytest.mark.parametrize("name", KERAS_LAYERS)
MINIMAL = ("mingru", "minlstm")
INPUT = pytest.mark.parametrize("one_hot", [False, True])


def pair(name, dtype=None, one_hot=False):
    """Our layer and Keras's, with the same random weights."""
    ours = CELLS[name](6, one_hot_size=5 if one_hot else None, dtype=dtype)
    theirs = KERAS_LAYERS[name](
        6, return_sequences=True, return_state=True, dtype=dtype
    )
    ours.build((None, None) if one_hot else (None, None, 5))
    theirs.build((None, None, 5))
    random = np.random.default_rng(0)
    weights = [
        random.normal(0, 0.5, weight.shape).astype("float32")
        for weight in ours.get_weights()
    ]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs


def inputs(rows=3, steps=7, one_hot=False):
    """What our layer reads, and what Keras's reads in its place."""
    random = np.random.default_rng(1)
    if not one_hot:
        vectors = random.normal(size=(rows, steps, 5)).astype("float32")
        return vectors, vectors
    ids = random.integers(0, 5, size=(rows, steps)).astype("int32")
    return ids, np.eye(5, dtype="float32")[ids]


def assert_close(ours, theirs, atol=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), atol=atol
        )


@CELL
@INPUT
def test_outputs_and_states_equal_those_of_keras(name, one_hot):
    ours, theirs = pair(name, one_hot=one_hot)
    x, y = inputs(one_hot=one_hot)
    assert_close(ours(x), theirs(y))


@CELL
@INPUT
def test_a_given_state_is_read_on_from_as_keras_does(name, one_hot):
    ours, theirs = pair(name, one_hot=one_hot)
    x, y = inputs(one_hot=one_hot)
    _, *state = theirs(y)
    assert_close(ours(x, initial_state=state), theirs(y, initial_state=state))


def trained(layer, x, rows):
    """The weights after one step on outputs and last states."""
    ids = keras.Input(x.shape[1:], dtype=x.dtype.name)
    outputs, *states = layer(ids)
    # Each output and each state has a gradient of its own.
    joined = ops.concatenate(
        [outputs[:, 1:], *(state[:, None] for state in states)], axis=1
    )
    model = keras.Model(ids, joined)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    wanted = np.ones((len(x), x.shape[1] - 1 + len(states), 6), "float32")
    model.fit(x, wanted, batch_size=rows, verbose=0)
    return layer.get_weights()


@pytest.mark.trains
@CELL
@INPUT
@pytest.mark.parametrize("rows", [3, 64], ids=["whole", "in parts"])
def test_gradients_equal_those_of_keras(name, one_hot, rows):
    ours, theirs = pair(name, one_hot=one_hot)
    x, y = inputs(rows, one_hot=one_hot)
    before = ours.get_weights()
    after = trained(ours, x, rows)
    assert_close(after, trained(theirs, y, rows))
    for a, b in zip(before, after, strict=True):
        assert np.abs(a - b).max() > 1e-3


@pytest.mark.trains
@CELL
def test_the_gradient_reaches_the_layer_below(name):
    results = []
    for layer in pair(name):
        below = keras.layers.Dense(5, kernel_initializer="ones")
        x = keras.Input((None, 5))
        model = keras.Model(x, layer(below(x))[0])
        model.compile(keras.optimizers.SGD(1.0), "mse")
        wanted = np.ones((3, 7, 6), "float32")
        model.fit(inputs()[0], wanted, batch_size=3, verbose=0)
        results.append(below.get_weights())
    assert_close(*results)
    assert np.abs(results[0][0] - 1).max() > 1e-3


@OURS
@CELL
def test_neither_one_hot_vectors_nor_keras_loops_are_made(name, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError

    ours, _ = pair(name, one_hot=True)
    monkeypatch.setattr(recurrent.ops, "one_hot", refuse)
    monkeypatch.setattr(KERAS_LAYERS[name], "call", refuse)
    ours(inputs(one_hot=True)[0])


@pytest.mark.parametrize("name", CELLS)
def test_a_layer_is_made_again_from_its_config(name):
    layer = CELLS[name](6, one_hot_size=5, name="first")
    again = CELLS[name].from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.one_hot_size == 5


def as_on_a_gpu(monkeypatch, calls):
    """Lets Keras believe in a GPU, and notes what it calls of cuDNN."""
    room = importlib.import_module(f"keras.src.backend.{BACKEND}.rnn")
    monkeypatch.setattr(room, "_is_gpu_available", lambda: True)
    if BACKEND == "jax":
        module = importlib.import_module("jax.experimental.rnn")
        monkeypatch.setattr(module, "lstm", lambda *a, **_: calls.append(a))
        return
    monkeypatch.setattr(recurrent, "loops_are_ours", lambda: False)
    for name, count in (("_cudnn_lstm", 2), ("_cudnn_gru", 1)):
        signature = inspect.signature(getattr(room, name))

        def stand_in(*args, count=count, signature=signature, **kwargs):
            named = signature.bind(*args, **kwargs).arguments
            calls.append((named["inputs"].dtype.name, named["mask"]))
            rows, steps, _ = named["inputs"].shape
            outputs = ops.zeros((rows, steps, 6), named["inputs"].dtype)
            return outputs[:, -1], outputs, [outputs[:, -1]] * count

        monkeypatch.setattr(room, name, stand_in)


def reads_as_on_a_gpu(name, dtype, monkeypatch):
    """What cuDNN is asked for when a model of two layers reads."""
    calls = []
    as_on_a_gpu(monkeypatch, calls)
    characters = keras_chargen.CharTokenizer("abcd")
    model = keras_chargen.CharRNN(
        characters, cell=name, units=6, num_layers=2, dtype=dtype
    )
    calls.clear()
    model(np.ones((3, 8), "int32"), training=True)
    return calls


DTYPES = pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's cuDNN")
@DTYPES
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_gpu_is_given_what_cudnn_takes(name, dtype, monkeypatch):
    # A call a layer, without a mask, in the dtype of the policy.
    expected = [(dtype.removeprefix("mixed_"), None)] * 2
    assert reads_as_on_a_gpu(name, dtype, monkeypatch) == expected


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's cuDNN")
@DTYPES
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_jax_asks_for_no_cudnn(name, dtype, monkeypatch):
    # Slower than our loop in float32, and an error in half precision.
    assert reads_as_on_a_gpu(name, dtype, monkeypatch) == []


@TORCH
@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_torch_runs_its_own_loop_on_a_cpu(name, dtype, monkeypatch):
    import torch

    calls = []
    kernel = getattr(torch, name)
    monkeypatch.setattr(
        torch, name, lambda *a, **k: (calls.append(a), kernel(*a, **k))[1]
    )
    ours, _ = pair(name, dtype)
    ours(inputs()[0])
    assert len(calls) == 1


@CELL
def test_half_precision_gives_what_keras_gives(name):
    ours, theirs = pair(name, "mixed_bfloat16")
    x, _ = inputs()
    # Torch's own kernels, of which it has none for a simple cell, round
    # elsewhere.
    atol = 0.02 if BACKEND == "torch" and name != "simple" else 0
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert keras.backend.standardize_dtype(a.dtype) == "bfloat16"
        np.testing.assert_allclose(
            ops.convert_to_numpy(ops.cast(a, "float32")),
            ops.convert_to_numpy(ops.cast(b, "float32")),
            rtol=0,
            atol=atol,
        )


@pytest.mark.parametrize(
    "dtype, atol", [("float32", 1e-6), ("mixed_bfloat16", 0.02)]
)
@CELL
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


# ---------------------------------------------------------- minimal layers


def minimal(name, units=6, dtype=None, one_hot=False):
    layer = CELLS[name](units, one_hot_size=5 if one_hot else None, dtype=dtype)
    layer.build((None, None) if one_hot else (None, None, 5))
    random = np.random.default_rng(0)
    layer.set_weights(
        [random.normal(0, 0.5, weight.shape) for weight in layer.get_weights()]
    )
    return layer


def stepped(step, x, states):
    """The outputs of all steps, and the last states."""
    outputs = []
    for k in range(x.shape[1]):
        output, states = step(x[:, k], states)
        outputs.append(output)
    return ops.stack(outputs, axis=1), states


# Each shape is compiled.
@settings(max_examples=10)
@given(
    st.sampled_from(MINIMAL),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 17),
    st.integers(1, 9),
)
def test_a_call_of_a_minimal_layer_is_its_steps(
    name, one_hot, rows, steps, units
):
    layer = minimal(name, units, one_hot=one_hot)
    x, _ = inputs(rows, steps, one_hot)
    step = compile_function(layer.step, layer.variables)
    outputs, state = layer(x)
    assert tuple(outputs.shape) == (rows, steps, units)
    zeros = [np.zeros((rows, units), "float32")]
    expected, states = stepped(step, x, zeros)
    assert_close([outputs, state], [expected, *states])


@pytest.mark.parametrize("name", MINIMAL)
def test_a_minimal_layer_reads_ids_as_one_hot_vectors(name):
    ids, vectors = inputs(one_hot=True)
    layer, other = minimal(name, one_hot=True), minimal(name)
    assert_close(layer(ids), other(vectors))


@pytest.mark.parametrize("name", MINIMAL)
def test_a_minimal_layer_reads_on_from_a_given_state(name):
    layer, (x, _) = minimal(name), inputs()
    whole, last = layer(x)
    first, state = layer(x[:, :4])
    second, state = layer(x[:, 4:], initial_state=[state])
    assert_close([ops.concatenate([first, second], 1), state], [whole, last])


@pytest.mark.trains
@pytest.mark.parametrize("name", MINIMAL)
@INPUT
def test_a_minimal_layer_learns_as_its_steps_do(name, one_hot):
    class Stepped(CELLS[name]):
        def call(self, sequences, initial_state=None, training=False):
            states = self.get_initial_state(3)
            outputs, states = stepped(self.step, sequences, states)
            return outputs, *states

    x, _ = inputs(one_hot=one_hot)
    results = []
    for kind in (CELLS[name], Stepped):
        layer = kind(6, one_hot_size=5 if one_hot else None)
        layer.build((None, None) if one_hot else (None, None, 5))
        layer.set_weights(minimal(name, one_hot=one_hot).get_weights())
        before = layer.get_weights()
        results.append(trained(layer, x, 3))
    assert_close(*results)
    for a, b in zip(before, results[0], strict=True):
        assert np.abs(a - b).max() > 1e-3


@pytest.mark.trains
@pytest.mark.parametrize("name", MINIMAL)
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_loses_no_small_share(name, half):
    layer = minimal(name, dtype=f"mixed_{half}", one_hot=True)
    kernel, bias = map(np.zeros_like, layer.get_weights())
    # New is 1, and its share 1 in 1097: half precision keeps 0.999 as 1.
    shift = {"mingru": [-7, 1], "minlstm": [20, -7, 1]}[name]
    layer.set_weights([kernel, bias + np.repeat(shift, 6)])
    x = np.zeros((1, 700), "int32")
    outputs, state = layer(x)
    share = 1 / (1 + np.exp(7.0))
    if name == "minlstm":
        share = share / (1 + share)
    for dtype, found in ((half, outputs), ("float32", state)):
        assert keras.backend.standardize_dtype(found.dtype) == dtype
    assert_close([state], [np.full((1, 6), 1 - (1 - share) ** 700)], 1e-3)
    step = compile_function(layer.step, layer.variables)
    _, states = stepped(step, x, [np.zeros((1, 6), "float32")])
    assert_close(states, [state])
    # Nor does a state that is given.
    _, half_way = layer(x[:, :350])
    _, again = layer(x[:, 350:], initial_state=[half_way])
    assert_close([again], [state])


def with_dropped_weights(name, one_hot=False, dtype=None):
    layer = CELLS[name](
        6,
        one_hot_size=5 if one_hot else None,
        weight_dropout=0.5,
        seed=1,
        dtype=dtype,
    )
    layer.build((None, None) if one_hot else (None, None, 5))
    return layer


def begin_seeds_anew(layer):
    state = layer.cell.seed_generator.state
    state.assign(np.array([1, 0], keras.backend.standardize_dtype(state.dtype)))


@CELL
@INPUT
def test_a_share_of_the_recurrent_kernel_is_dropped_in_training(name, one_hot):
    layer = with_dropped_weights(name, one_hot)
    plain, _ = pair(name, one_hot=one_hot)
    x, _ = inputs(one_hot=one_hot)
    plain.set_weights(layer.get_weights()[: len(plain.get_weights())])
    assert_close(layer(x), plain(x))
    kernel = ops.convert_to_numpy(layer.cell.recurrent_kernel)
    # What a mask drops is drawn by the cell's seed: the same again.
    begin_seeds_anew(layer)
    outputs = layer(x, training=True)
    begin_seeds_anew(layer)
    dropped = keras.random.dropout(
        ops.convert_to_tensor(kernel), 0.5, seed=layer.cell.seed_generator
    )
    share = (ops.convert_to_numpy(dropped) == 0).mean()
    assert 0.3 < share < 0.7
    plain.cell.recurrent_kernel.assign(dropped)
    assert_close(outputs, plain(x))
    # The weight itself is whole.
    after = ops.convert_to_numpy(layer.cell.recurrent_kernel)
    np.testing.assert_array_equal(after, kernel)


@pytest.mark.trains
@CELL
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_what_was_dropped_has_no_gradient(name, dtype):
    layer = with_dropped_weights(name, dtype=dtype)
    x, _ = inputs()
    before = layer.get_weights()
    after = trained(layer, x, 3)
    moved = np.abs(before[1] - after[1]) > 0
    assert 0.2 < moved.mean() < 0.8
    assert any(
        layer.cell.recurrent_kernel is variable
        for variable in layer.trainable_variables
    )
