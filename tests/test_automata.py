"""A table leads from states to states."""

import numpy as np
from keras import ops

from keras_chargen.automata import follow


def test_each_row_goes_where_its_state_and_id_lead():
    table = np.arange(12, dtype="int32").reshape(3, 4)
    states, ids = np.array([2, 0, 1], "int32"), np.array([3, 1, 0], "int32")
    following = follow(*map(ops.convert_to_tensor, (table, states, ids)))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(following), table[states, ids]
    )
