"""The scans over time give what a loop gives, and so do their gradients."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_chargen import scans

BACKEND = keras.backend.backend()
CELLS = {"mingru": scans.MinGRU, "minlstm": scans.MinLSTM}
CELL = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def numbers(cell, rows=3, steps=7, units=4):
    """What the gates read, and a state."""
    random = np.random.default_rng(rows + 10 * steps)
    read = random.normal(0, 2, (rows, steps, cell.gates * units))
    state = random.normal(0, 2, (rows, units))
    return read.astype("float32"), state.astype("float32")


def looped(cell, read, state):
    """The recurrence as the paper writes it, step by step."""
    # NumPy compiles nothing; tensors have gradients.
    xp = np if isinstance(read, np.ndarray) else ops
    units, rows = state.shape[-1], []
    for k in range(read.shape[1]):
        gates = [
            read[:, k, n * units : (n + 1) * units] for n in range(cell.gates)
        ]
        new = gates.pop()
        gates = [1 / (1 + xp.exp(-gate)) for gate in gates]
        if cell is scans.MinGRU:
            z = gates[0]
            state = (1 - z) * state + z * new
        else:
            f, i = gates
            state = f / (f + i) * state + i / (f + i) * new
        rows.append(state)
    return xp.stack(rows, axis=1)


def gradients(function, read, state):
    """Those of a sum that weighs every output differently."""

    def loss(read, state):
        outputs = function(read, state)
        weights = np.arange(outputs.shape[0] * outputs.shape[1]) % 7 - 2.5
        weights = np.reshape(weights, (*outputs.shape[:2], 1))
        weights = ops.convert_to_tensor(weights.astype("float32"))
        return ops.sum(weights * outputs * outputs)

    read, state = map(ops.convert_to_tensor, (read, state))
    if BACKEND == "jax":
        import jax

        found = jax.jit(jax.grad(loss, argnums=(0, 1)))(read, state)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch((read, state))
            value = loss(read, state)
        found = tape.gradient(value, (read, state))
    else:
        import torch

        inputs = [read.requires_grad_(), state.requires_grad_()]
        found = torch.autograd.grad(loss(*inputs), inputs)
    return [ops.convert_to_numpy(x) for x in found]


def assert_close(found, expected, atol=1e-5):
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), ops.convert_to_numpy(expected), atol=atol
    )


# Each shape is compiled.
@settings(max_examples=10)
@given(
    st.sampled_from([*CELLS.values()]),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 5),
)
def test_a_scan_gives_what_a_loop_gives(cell, rows, steps, units):
    read, state = numbers(cell, rows, steps, units)
    found = scans.run(cell, *map(ops.convert_to_tensor, (read, state)))
    assert tuple(found.shape) == (rows, steps, units)
    assert_close(found, looped(cell, read, state))


@CELL
def test_a_step_is_a_scan_of_one(cell):
    read, state = map(ops.convert_to_tensor, numbers(cell, steps=1))
    assert_close(
        scans.step(cell, read[:, 0], state), scans.run(cell, read, state)[:, 0]
    )


@pytest.mark.trains
@CELL
@pytest.mark.parametrize(
    "rows, steps", [(3, 1), (3, 7), (64, 8)], ids=["one step", "odd", "parts"]
)
def test_gradients_are_those_of_a_loop(cell, rows, steps):
    arguments = numbers(cell, rows, steps)
    found = gradients(lambda *x: scans.run(cell, *x), *arguments)
    expected = gradients(lambda *x: looped(cell, *x), *arguments)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-4)
        assert np.abs(a).max() > 0.1


@pytest.mark.skipif(BACKEND != "jax", reason="JAX alone runs on either")
@CELL
@pytest.mark.parametrize("steps", [1, 7, 8])
def test_an_accelerator_gets_a_tree_with_the_same_result(
    cell, steps, monkeypatch
):
    import jax

    arguments = numbers(cell, steps=steps)
    found, trees = [], []
    scan = ops.associative_scan
    monkeypatch.setattr(
        scans.ops,
        "associative_scan",
        lambda *a, **k: (trees.append(a), scan(*a, **k))[1],
    )
    for device in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda d=device: d)
        assert not trees
        found.append(scans.run(cell, *arguments))
        found.append(gradients(lambda *x: scans.run(cell, *x), *arguments))
    # Forward twice and backward once.
    assert len(trees) == 3
    assert_close(found[0], found[2])
    for a, b in zip(found[1], found[3], strict=True):
        assert_close(a, b, 1e-4)


@CELL
def test_gates_of_any_size_give_numbers(cell):
    _, state = numbers(cell, steps=4)
    read = np.full((3, 4, cell.gates * 4), 1.0, "float32")
    # NumPy warns of a sigmoid of -90.
    extreme = 200 if cell is scans.MinLSTM else 80
    for size in (-extreme, extreme):
        read[..., :-4] = size
        found = scans.run(cell, *map(ops.convert_to_tensor, (read, state)))
        assert np.isfinite(ops.convert_to_numpy(found)).all()
        if cell is scans.MinLSTM:
            # Both gates shut are as much as both open: half and half.
            expected = state * 0.5 + 0.5
        else:
            expected = state if size < 0 else np.ones_like(state)
        assert_close(found[:, 0], expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs of any length")
@CELL
def test_a_graph_takes_any_length(cell):
    import tensorflow as tf

    @tf.function
    def both(read, state):
        with tf.GradientTape() as tape:
            tape.watch(read)
            found = scans.run(cell, read, state)
            value = tf.reduce_sum(found**2)
        return found, tape.gradient(value, read)

    signature = (tf.TensorSpec((None, None, cell.gates * 4)),)
    program = both.get_concrete_function(*signature, tf.TensorSpec((None, 4)))
    for rows, steps in ((2, 1), (5, 9)):
        read, state = numbers(cell, rows, steps)
        found, gradient = program(tf.constant(read), tf.constant(state))
        assert gradient.shape == read.shape
        assert_close(found, looped(cell, read, state))
