"""The loops over time, apart from any layer."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_chargen import recurrences

# What infers alone has no gradients to define.
pytestmark = pytest.mark.trains
CELLS = {
    "lstm": recurrences.LSTM,
    "gru": recurrences.GRU,
    "simple": recurrences.Simple,
}
CELL = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def weights(cell, units=3, inputs=5):
    random = np.random.default_rng(0)
    width = len(cell.scales) * units
    shapes = [(inputs, width), (units, width), (width,)]
    if cell is recurrences.GRU:
        shapes[2] = (2, width)
    return [random.normal(0, 0.5, x).astype("float32") for x in shapes]


def states(cell, rows, units=3):
    random = np.random.default_rng(1)
    values = random.normal(0, 0.5, (cell.states, rows, units))
    return tuple(values.astype("float32"))


def ids(rows, steps):
    random = np.random.default_rng(2)
    return random.integers(0, 5, (rows, steps)).astype("int32")


def as_numpy(nested):
    return keras.tree.map_structure(ops.convert_to_numpy, nested)


@CELL
def test_ids_stand_for_one_hot_vectors(cell):
    x = ids(4, 6)
    vectors = np.eye(5, dtype="float32")[x]
    expected = as_numpy(
        recurrences.run(cell, vectors, states(cell, 4), *weights(cell))
    )
    found = as_numpy(recurrences.run(cell, x, states(cell, 4), *weights(cell)))
    for a, b in zip(
        keras.tree.flatten(found), keras.tree.flatten(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


@CELL
def test_reading_in_pieces_gives_what_reading_at_once_gives(cell):
    x = ids(2, 9)
    whole, last = recurrences.run(cell, x, states(cell, 2), *weights(cell))
    outputs, state = [], states(cell, 2)
    for piece in (x[:, :4], x[:, 4:5], x[:, 5:]):
        found, state = recurrences.run(cell, piece, state, *weights(cell))
        outputs.append(as_numpy(found))
    np.testing.assert_allclose(
        np.concatenate(outputs, 1), as_numpy(whole), atol=1e-6
    )
    for a, b in zip(as_numpy(state), as_numpy(last), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@CELL
def test_a_row_does_not_depend_on_the_rows_beside_it(cell):
    # 64 rows are read in parts where a backend has cores for them.
    x, before = ids(64, 5), states(cell, 64)
    outputs, _ = recurrences.run(cell, x, before, *weights(cell))
    alone, _ = recurrences.run(
        cell, x[33:34], tuple(s[33:34] for s in before), *weights(cell)
    )
    np.testing.assert_allclose(
        as_numpy(outputs)[33], as_numpy(alone)[0], atol=1e-6
    )
