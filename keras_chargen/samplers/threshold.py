"""Where to cut a distribution: the largest keys that weigh enough."""

from keras import ops

from keras_chargen.compilation import sorts_slowly

RANGE = 100.0  # e^-100 is 0 in float32: what lies lower can never be drawn
_FINEST = float(1 << 24)  # steps of a key in 1; RANGE of them fit in int32
_STRIDE = 4  # halvings between two looks at what is left


def heaviest(keys, weights, target):
    """Finds the fewest of the largest keys that weigh enough together.

    Args:
        keys: float32 `(B, V)`, the order; those over `RANGE` below a row's
            largest count as `RANGE` below it, those within 2^-24 as equal.
        weights: float32 `(B, V)`, from 0 to 1.
        target: float32 `(B,)`.

    Returns:
        bool `(B, V)`, whether a key is among them. Equal keys stay together.
        Where all weigh too little, all are.
    """
    # Whole numbers sum to the same in any order, and XLA adds them faster.
    keys = ops.cast(relative(keys) * _FINEST, "int32")
    size = keys.shape[-1]
    unit = float(1 << (30 - size.bit_length()))
    weights = ops.cast(weights * unit, "int32")
    target = ops.cast(ops.minimum(target, size) * unit, "int32")
    find = _bisect if sorts_slowly() else _sort
    return keys >= find(keys, weights, target)[:, None]


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

    def search(low, width, going):
        for _ in range(_STRIDE):
            width = ops.right_shift(width + 1, 1)
            middle = low + width
            weight = ops.sum(ops.where(keys >= middle, weights, 0), axis=0)
            low = ops.where(weight >= target, middle, low)
        between = ops.logical_and(keys >= low, keys < low + width)
        left = ops.sum(ops.cast(between, "int32"), axis=0)
        going = ops.logical_and(ops.max(left) > 1, width > 1)
        return low, width, going

    # All of it inside the loop: outside, XLA would compute the keys anew for
    # each use.
    low = ops.min(keys, axis=0)
    # Up to the largest key, which is 0.
    start = (low, 1 - ops.min(low), ops.ones((), "bool"))
    return ops.while_loop(lambda *loop: loop[2], search, start)[0]
