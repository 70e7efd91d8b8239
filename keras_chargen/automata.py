"""Deterministic automata over ids: tables that live in the decode loop."""

from keras import ops


def follow(table, states, ids):
    """Returns the next states.

    Args:
        table: int32 `(S, V)`, the next state for a state and an id.
        states: int32 of any shape.
        ids: int32 of the same shape.

    Returns:
        int32 of that shape.
    """
    places = states * table.shape[1] + ids
    return ops.take(ops.reshape(table, (-1,)), places)
