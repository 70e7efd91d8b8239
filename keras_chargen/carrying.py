"""The state that training carries from one batch to the next."""

import keras
from keras import ops


class CarriedState(keras.layers.Layer):
    """Where the rows of the last batch stopped, for those of the next.

    Values of a run of training: a model file holds none of them.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.batch_size = None
        self._like = None
        self._states: list = []
        # Never called, so that weights may come and go.
        self.built = True

    def resize(self, batch_size, state=()):
        """Begins with zeros.

        Args:
            batch_size: Positive integer B, rows of every batch; None keeps
                nothing.
            state: Nested tuples of `(B, units)`, of the dtypes of a state.
        """
        for variable in self._states:
            self._untrack_variable(variable)
        self.batch_size = batch_size
        self._like = keras.tree.map_structure(lambda _: 0, state)
        self._states = [
            self.add_weight(
                shape=x.shape,
                initializer="zeros",
                dtype=keras.backend.standardize_dtype(x.dtype),
                trainable=False,
                name=f"state_{i}",
            )
            for i, x in enumerate(keras.tree.flatten(state))
        ]

    def read(self, ids):
        """Returns the state before a batch, zeros where a row says so.

        Args:
            ids: int32 `(B, T)`; a first id below 0 says so.

        Returns:
            Nested tuples of `(B, units)`.

        Raises:
            ValueError: The batch has another number of rows.
        """
        if ids.shape[0] != self.batch_size:
            raise ValueError(
                "a model that carries its state wants batches of "
                f"{self.batch_size} rows. Received: {ids.shape[0]}"
            )
        starts = ids[:, :1] < 0
        states = [
            ops.where(starts, ops.zeros_like(state), state)
            for state in map(ops.convert_to_tensor, self._states)
        ]
        return keras.tree.pack_sequence_as(self._like, states)

    def write(self, state):
        """Keeps the state after a batch; no gradient goes back through it."""
        for variable, value in zip(
            self._states, keras.tree.flatten(state), strict=True
        ):
            variable.assign(ops.stop_gradient(value))

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass
