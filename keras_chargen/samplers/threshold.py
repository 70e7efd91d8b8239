"""Where to cut a distribution: the threshold that keeps enough."""

import keras
from keras import ops

from keras_chargen.compilation import sorts_slowly

RANGE = 100.0  # e^-100 is 0 in float32: what lies lower can never be drawn
_ROUNDS, _STRIDE = 30, 6  # halvings at most, and between two looks


def threshold(keys, weights, target):
    """Finds the largest key such that it and those above weigh enough.

    Args:
        keys: float32 `(B, V)`, the order; those over `RANGE` below a row's
            largest count as `RANGE` below it.
        weights: float32 `(B, V)`, >= 0.
        target: float32 `(B,)`.

    Returns:
        float32 `(B, 1)`, relative to the row's largest key (so at most 0):
        keep where `relative(keys) >= threshold`. Equal keys stay together.
        Where all weigh too little, all are kept.
    """
    keys = relative(keys)
    find = _bisect if sorts_slowly() else _sort
    return find(keys, weights, target)[:, None]


def relative(keys):
    """Keys minus the largest of their row, from `-RANGE` to 0."""
    largest = ops.max(keys, axis=-1, keepdims=True)
    return ops.maximum(keys - largest, -RANGE)


def _sort(keys, weights, target):
    order = ops.argsort(-keys, axis=-1)
    keys = ops.take_along_axis(keys, order, axis=-1)
    above = ops.cumsum(ops.take_along_axis(weights, order, axis=-1), axis=-1)
    lighter = ops.sum(ops.cast(above < target[:, None], "int32"), axis=-1)
    place = ops.minimum(lighter, keys.shape[-1] - 1)
    return ops.take_along_axis(keys, place[:, None], axis=-1)[:, 0]


def _bisect(keys, weights, target):
    # XLA's sort on a CPU costs twice a whole step of the model, this a tenth.
    # The rows lie in the last axis, along which a CPU adds at full width.
    keys, weights = ops.transpose(keys), ops.transpose(weights)  # (V, B)

    def halve(low, high):
        middle = (low + high) / 2
        weight = ops.sum(ops.where(keys >= middle, weights, 0.0), axis=0)
        enough = weight >= target
        return ops.where(enough, middle, low), ops.where(enough, high, middle)

    def search(rounds, low, high, going):
        for _ in range(_STRIDE):
            low, high = halve(low, high)
        between = ops.logical_and(keys >= low, keys < high)
        left = ops.sum(ops.cast(between, "float32"), axis=0)
        rounds = rounds + _STRIDE
        going = ops.logical_and(rounds < _ROUNDS, ops.any(left > 1))
        return rounds, low, high, going

    # All of it inside the loop: outside, XLA would compute the keys anew for
    # each use.
    low = ops.min(keys, axis=0)
    # Just above the largest key, which is 0.
    high = ops.full_like(target, keras.config.epsilon())
    start = (ops.zeros((), "int32"), low, high, ops.ones((), "bool"))
    return ops.while_loop(lambda *loop: loop[3], search, start)[1]
