"""The state that training carries from batch to batch."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_chargen.carrying import CarriedState

IDS = np.array([[1, 2], [~3, 4], [5, 6]], "int32")


def state(rows=3):
    return ((ops.zeros((rows, 2)), ops.zeros((rows, 2), "bfloat16")),)


def test_what_was_written_is_read_where_no_row_begins_anew():
    carried = CarriedState()
    carried.resize(3, state())
    carried.write(((ops.ones((3, 2)), 2 * ops.ones((3, 2), "bfloat16")),))
    ((first, second),) = carried.read(ops.convert_to_tensor(IDS))
    assert keras.backend.standardize_dtype(second.dtype) == "bfloat16"
    for tensor, value in ((first, 1), (ops.cast(second, "float32"), 2)):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(tensor), [[value] * 2, [0, 0], [value] * 2]
        )


def test_another_number_of_rows_is_refused():
    carried = CarriedState()
    carried.resize(2, state(2))
    with pytest.raises(ValueError, match=r"of 2 rows\. Received: 3"):
        carried.read(ops.convert_to_tensor(IDS))


def test_another_size_begins_with_zeros_and_none_keeps_nothing():
    carried = CarriedState()
    carried.resize(3, state())
    carried.write(((ops.ones((3, 2)), ops.ones((3, 2), "bfloat16")),))
    carried.resize(3, state())
    assert not any(ops.convert_to_numpy(v).any() for v in carried.variables)
    assert len(carried.variables) == 2
    carried.resize(None)
    assert carried.variables == []


def test_it_is_not_trained():
    carried = CarriedState()
    carried.resize(3, state())
    assert carried.trainable_variables == []
