"""Recurrences whose gates see the input alone, over time, and their gradient.

    h_t = share_t * h_{t-1} + (1 - share_t) * new_t, elementwise

Such a step is associative with the next, so all of them can be a tree of
products (Blelloch, 1990), which is what an accelerator wants. On a CPU one
pass over memory is quicker. The gradient runs through the same scan, backward
in time.
"""

import functools

from keras import ops

from keras_chargen.compilation import has_gradients, side_by_side, way_to_scan


class MinGRU:
    """The minimal gated recurrent unit (Feng et al., 2024): gates z, new.

    A recurrence of this room has `gates`, how many vectors a step reads; and
    two functions of all of them but the last, which is `new`: `logit` gives
    that of `share`, and `gradient` takes the gradient of it to the gates.
    """

    gates = 2

    @staticmethod
    def logit(z):
        return -z

    @staticmethod
    def gradient(dlogit, z):
        return (-dlogit,)


class MinLSTM:
    """The minimal LSTM (Feng et al., 2024): gates forget, input, new.

    The two gates are divided by their sum, so that what is kept and what is
    new make one.
    """

    gates = 3

    @staticmethod
    def logit(f, i):
        # sigmoid(f) / (sigmoid(f) + sigmoid(i)), without a quotient of zeros.
        return ops.softplus(-i) - ops.softplus(-f)

    @staticmethod
    def gradient(dlogit, f, i):
        return dlogit * ops.sigmoid(-f), -dlogit * ops.sigmoid(-i)


def run(cell, read, state):
    """Runs a recurrence over time.

    Args:
        cell: `MinGRU` or `MinLSTM` of this room.
        read: float32 `(B, T, gates * units)`, what the gates see.
        state: float32 `(B, units)`, outputs before the first step.

    Returns:
        Outputs float32 `(B, T, units)`.
    """
    forward, backward = _programs(cell)
    if not has_gradients():
        return forward((), (read, state))[0][0]

    @ops.custom_gradient
    def differentiated(read, state):
        (outputs,), kept = forward((), (read, state))

        def gradient(*args, upstream=None):
            # Torch gives the inputs too, and names the gradient.
            upstream = args[-1] if upstream is None else upstream
            return backward((), read, kept, (upstream,))[1]

        return outputs, gradient

    return differentiated(read, state)


def step(cell, read, state):
    """One step of `run`: `(B, gates * units)` and `(B, units)`."""
    share, new = _taken_apart(cell, read)
    return share * state + (1 - share) * new


@functools.cache
def _programs(cell):
    """Returns `forward` and `backward` over all steps: see `side_by_side`."""

    def forward(_, batched):
        read, state = batched
        share, new = _taken_apart(cell, read)
        states = _scan(share, (1 - share) * new, state)
        return (states[:, 1:],), (share, states)

    def backward(_, read, kept, upstream):
        (share, states), (douts,) = kept, upstream
        *gates, new = ops.split(read, cell.gates, axis=-1)
        # What goes from a step to the one before: share * (douts + from the
        # step after).
        passed = _scan(
            share, share * douts, ops.zeros_like(states[:, 0]), reverse=True
        )
        dlogit = passed[:, :-1] * (1 - share) * (states[:, :-1] - new)
        dnew = (1 - share) * (douts + passed[:, 1:])
        dgates = cell.gradient(dlogit, *gates)
        return (), (ops.concatenate([*dgates, dnew], -1), passed[:, 0])

    return side_by_side(forward, backward)


def _taken_apart(cell, read):
    *gates, new = ops.split(read, cell.gates, axis=-1)
    return ops.sigmoid(cell.logit(*gates)), new


def _scan(a, b, start, reverse=False):
    """Returns `(B, T + 1, units)`: x_k = a_k * x_{k-1} + b_k after `start`.

    With `reverse` x_k = a_k * x_{k+1} + b_k, and `start` is the last.
    """
    way = way_to_scan()
    if way == "tree":
        factors, sums = ops.associative_scan(
            lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]),
            (a, b),
            reverse=reverse,
            axis=1,
        )
        start = start[:, None]
        found = [start, sums + factors * start]
        return ops.concatenate(found[::-1] if reverse else found, axis=1)

    rows, steps, units = ops.shape(a)
    found = ops.zeros((rows, steps + 1, units))
    first, shift = (steps, 0) if reverse else (0, 1)

    if way == "in place":
        found[:, first] = start
        for k in range(steps)[:: -1 if reverse else 1]:
            found[:, k + shift] = a[:, k] * found[:, k + 1 - shift] + b[:, k]
        return found

    def write(found, k, x):
        return ops.slice_update(found, (0, k, 0), x[:, None])

    def advance(n, x, found):
        k = steps - 1 - n if reverse else n
        x = a[:, k] * x + b[:, k]
        return n + 1, x, write(found, k + shift, x)

    return ops.while_loop(
        lambda n, *_: n < steps,
        advance,
        (ops.zeros((), "int32"), start, write(found, first, start)),
    )[2]
