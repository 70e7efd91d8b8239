"""The loops of recurrent layers over time, and their gradients.

What can wait is done for all steps at once, outside the loop: a row of the
kernel is looked up where the input is one-hot, and the gradient of each kernel
is one product after the loop (Appleyard et al., 2016). Left to a backend, the
loops would multiply one-hot vectors and add up a gradient at each step.

A sigmoid is half of a tanh of half, plus a half; so the gates of a step are
one tanh, with the halves folded into the weights before the loop.
"""

import functools

import keras
import numpy as np
from keras import ops

from keras_chargen.compilation import side_by_side


class LSTM:
    """Long short-term memory (Hochreiter & Schmidhuber, 1997).

    Gates are in Keras's order: input, forget, new, output.
    """

    states = 2
    scales = (0.5, 0.5, 1.0, 0.5)
    gates = 4

    @staticmethod
    def forward(read, recalled, states):
        """One step.

        Args:
            read: `(B, scales * units)`, scaled input times kernel, plus bias.
            recalled: The same of the last outputs.
            states: Tuple of `(B, units)`.

        Returns:
            The new states, and `(B, gates * units)` for `backward`.
        """
        _, c = states
        gates = ops.tanh(read + recalled)
        i, f, new, o = ops.split(gates, 4, axis=-1)
        c = (0.5 * f + 0.5) * c + (0.5 * i + 0.5) * new
        return ((0.5 * o + 0.5) * ops.tanh(c), c), gates

    @staticmethod
    def backward(dstates, states, following, gates):
        """The gradient of one step.

        Args:
            dstates: Gradients of the new states, each `(B, units)`.
            states: The states before the step.
            following: The new states.
            gates: What `forward` gave.

        Returns:
            What `split` takes apart, as wide as `gates`; and the gradients of
            `states` but for what comes through `recalled`.
        """
        dh, dc = dstates
        i, f, new, o = ops.split(gates, 4, axis=-1)
        squashed = ops.tanh(following[1])
        dc = dc + dh * (0.5 * o + 0.5) * (1 - squashed * squashed)
        dgates = [
            dc * 0.5 * new * (1 - i * i),
            dc * 0.5 * states[1] * (1 - f * f),
            dc * (0.5 * i + 0.5) * (1 - new * new),
            dh * 0.5 * squashed * (1 - o * o),
        ]
        dstates = (ops.zeros_like(dh), dc * (0.5 * f + 0.5))
        return ops.concatenate(dgates, axis=-1), dstates

    @staticmethod
    def split(dgates):
        """Returns the gradients of `read` and of `recalled`."""
        return dgates, dgates


class GRU:
    """Gated recurrent unit (Cho et al., 2014), reset after the product.

    Gates are in Keras's order: update, reset, new.
    """

    states = 1
    scales = (0.5, 0.5, 1.0)
    gates = 4

    @staticmethod
    def forward(read, recalled, states):
        """As `LSTM.forward`."""
        (h,) = states
        size = 2 * h.shape[-1]
        gates = ops.tanh(read[:, :size] + recalled[:, :size])
        update, reset = ops.split(gates, 2, axis=-1)
        kept = recalled[:, size:]
        new = ops.tanh(read[:, size:] + (0.5 * reset + 0.5) * kept)
        h = new + (0.5 * update + 0.5) * (h - new)
        return (h,), ops.concatenate([gates, new, kept], axis=-1)

    @staticmethod
    def backward(dstates, states, following, gates):
        """As `LSTM.backward`."""
        (dh,), (h,) = dstates, states
        update, reset, new, kept = ops.split(gates, 4, axis=-1)
        share = 0.5 * update + 0.5
        dnew = dh * (1 - share) * (1 - new * new)
        dgates = [
            dh * 0.5 * (h - new) * (1 - update * update),
            dnew * 0.5 * kept * (1 - reset * reset),
            dnew,
            dnew * (0.5 * reset + 0.5),
        ]
        return ops.concatenate(dgates, axis=-1), (dh * share,)

    @staticmethod
    def split(dgates):
        """As `LSTM.split`: between the two stands the reset gate."""
        size = dgates.shape[-1] // 4
        both, own = dgates[..., : 2 * size], dgates[..., 3 * size :]
        return dgates[..., : 3 * size], ops.concatenate([both, own], axis=-1)


class Simple:
    """The simple recurrent layer (Elman, 1990)."""

    states = 1
    scales = (1.0,)
    gates = 1

    @staticmethod
    def forward(read, recalled, states):
        """As `LSTM.forward`."""
        h = ops.tanh(read + recalled)
        return (h,), h

    @staticmethod
    def backward(dstates, states, following, gates):
        """As `LSTM.backward`."""
        (dh,) = dstates
        return dh * (1 - gates * gates), (ops.zeros_like(dh),)

    @staticmethod
    def split(dgates):
        """As `LSTM.split`."""
        return dgates, dgates


def run(cell, inputs, states, kernel, recurrent_kernel, bias):
    """Runs a recurrent layer over time.

    Args:
        cell: `LSTM`, `GRU` or `Simple` of this room.
        inputs: float32 `(B, T, D)`; or int32 `(B, T)`, which stands for as
            many one-hot vectors of D.
        states: Tuple of float32 `(B, units)`: outputs, then the cell state of
            an LSTM.
        kernel: float32 `(D, gates * units)`, as Keras has it.
        recurrent_kernel: float32 `(units, gates * units)`.
        bias: float32 `(gates * units,)`, of a GRU two of them.

    Returns:
        Outputs float32 `(B, T, units)`, and the tuple of states after the
        last step.
    """
    are_ids = "int" in keras.backend.standardize_dtype(inputs.dtype)
    forward, backward = _programs(cell, are_ids)
    count = cell.states

    @ops.custom_gradient
    def differentiated(kernel, recurrent_kernel, bias, *rest):
        weights = (kernel, recurrent_kernel, bias)
        states, rows = rest[:count], inputs if are_ids else rest[count]
        found, kept = forward(weights, (rows, *states))

        def gradient(*upstream):
            upstream = tuple(keras.tree.flatten(upstream))
            of_weights, of_rows = backward(weights, rows, kept, upstream)
            return (*of_weights, *of_rows)

        return found, gradient

    arguments = [kernel, recurrent_kernel, bias, *states]
    if not are_ids:
        # Ids have no gradient and stay outside.
        arguments.append(inputs)
    # A cast of a variable to its own dtype is its value under every backend.
    arguments = [ops.cast(x, "float32") for x in arguments]
    outputs, *states = differentiated(*arguments)
    return outputs, tuple(states)


@functools.cache
def _programs(cell, are_ids):
    """Returns `forward` and `backward` over all steps."""

    def forward(weights, batched):
        (kernel, recurrent_kernel, bias), (rows, *states) = weights, batched
        units = recurrent_kernel.shape[0]
        scale = _scale(cell, units)
        first, second = _biases(bias)
        if are_ids:
            rows = ops.transpose(rows)
            table = (kernel + first) * scale
            read = functools.partial(_look_up, table, rows)
        else:
            rows = ops.transpose(rows, (1, 0, 2))
            product = ops.matmul(rows, kernel * scale) + first * scale
            read = functools.partial(ops.take, product, axis=0)
        recurrent_kernel = recurrent_kernel * scale
        steps, size = ops.shape(rows)[:2]

        def advance(k, states, histories, gates):
            recalled = ops.matmul(states[0], recurrent_kernel)
            if second is not None:
                recalled = recalled + second * scale
            states, found = cell.forward(read(k), recalled, states)
            histories = tuple(
                _write(history, k + 1, state)
                for history, state in zip(histories, states, strict=True)
            )
            return k + 1, states, histories, _write(gates, k, found)

        histories = tuple(
            _write(ops.zeros((steps + 1, size, units)), 0, state)
            for state in states
        )
        gates = ops.zeros((steps, size, cell.gates * units))
        _, states, histories, gates = ops.while_loop(
            lambda k, *_: k < steps,
            advance,
            (ops.zeros((), "int32"), tuple(states), histories, gates),
        )
        outputs = ops.transpose(histories[0][1:], (1, 0, 2))
        return (outputs, *states), (*histories, gates)

    def backward(weights, rows, kept, upstream):
        kernel, recurrent_kernel, bias = weights
        (*histories, gates), (douts, *dstates) = kept, upstream
        units, width = recurrent_kernel.shape
        scale = _scale(cell, units)
        douts = ops.transpose(douts, (1, 0, 2))
        turned = ops.transpose(recurrent_kernel * scale)

        def retreat(k, dstates, kept):
            dh, *others = dstates
            dgates, dstates = cell.backward(
                (dh + douts[k], *others),
                tuple(history[k] for history in histories),
                tuple(history[k + 1] for history in histories),
                gates[k],
            )
            recalled = cell.split(dgates)[1]
            dh = dstates[0] + ops.matmul(recalled, turned)
            return k - 1, (dh, *dstates[1:]), _write(kept, k, dgates)

        _, dstates, dgates = ops.while_loop(
            lambda k, *_: k >= 0,
            retreat,
            (ops.shape(gates)[0] - 1, tuple(dstates), ops.zeros_like(gates)),
        )
        dread, drecalled = cell.split(dgates)
        flat = ops.reshape(dread, (-1, width))
        flat_recalled = ops.reshape(drecalled, (-1, width))
        flat_outputs = ops.reshape(histories[0][:-1], (-1, units))
        drecurrent = ops.matmul(ops.transpose(flat_outputs), flat_recalled)
        if are_ids:
            dkernel = ops.segment_sum(
                flat, ops.reshape(ops.transpose(rows), (-1,)), kernel.shape[0]
            )
            drows: tuple = ()
            # Each step reads one row, with the bias on it.
            dbias = ops.sum(dkernel, axis=0)
        else:
            flat_rows = ops.reshape(
                ops.transpose(rows, (1, 0, 2)), (-1, kernel.shape[0])
            )
            dkernel = ops.matmul(ops.transpose(flat_rows), flat)
            product = ops.matmul(dread, ops.transpose(kernel * scale))
            drows = (ops.transpose(product, (1, 0, 2)),)
            dbias = ops.sum(flat, axis=0)
        if len(bias.shape) == 2:
            dbias = ops.stack([dbias, ops.sum(flat_recalled, axis=0)])
        of_weights = (dkernel * scale, drecurrent * scale, dbias * scale)
        return of_weights, (*dstates, *drows)

    return side_by_side(forward, backward)


def _scale(cell, units):
    return ops.convert_to_tensor(
        np.repeat(np.array(cell.scales, "float32"), units)
    )


def _biases(bias):
    return (bias, None) if len(bias.shape) == 1 else (bias[0], bias[1])


def _look_up(table, rows, k):
    return ops.take(table, rows[k], axis=0)


def _write(array, k, value):
    return ops.slice_update(array, (k, 0, 0), value[None])
