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

from keras_chargen.compilation import compile_part, split_batch


class LSTM:
    """Long short-term memory (Hochreiter & Schmidhuber, 1997).

    Gates are in Keras's order: input, forget, new, output.
    """

    states = 2
    scales = (0.5, 0.5, 1.0, 0.5)

    @staticmethod
    def saved(units):
        """Widths of what `forward` saves of each step for `backward`."""
        return (units, 4 * units)

    @staticmethod
    def forward(read, recalled, states):
        """One step.

        Args:
            read: `(B, gates * units)`, scaled input times kernel, plus bias.
            recalled: The same of the last outputs.
            states: Tuple of `(B, units)`.

        Returns:
            The new states, and what is saved.
        """
        _, c = states
        gates = ops.tanh(read + recalled)
        i, f, new, o = ops.split(gates, 4, axis=-1)
        c = (0.5 * f + 0.5) * c + (0.5 * i + 0.5) * new
        return ((0.5 * o + 0.5) * ops.tanh(c), c), (c, gates)

    @staticmethod
    def backward(dstates, states, saved):
        """The gradient of one step.

        Args:
            dstates: Gradients of the new states, each `(B, units)`.
            states: The states before the step.
            saved: What `forward` saved.

        Returns:
            The gradients of `read` and of `recalled`, and those of the states
            but for what comes through `recalled`.
        """
        dh, dc = dstates
        c, gates = saved
        i, f, new, o = ops.split(gates, 4, axis=-1)
        squashed = ops.tanh(c)
        dc = dc + dh * (0.5 * o + 0.5) * (1 - squashed * squashed)
        dgates = ops.concatenate(
            [
                dc * 0.5 * new * (1 - i * i),
                dc * 0.5 * states[1] * (1 - f * f),
                dc * (0.5 * i + 0.5) * (1 - new * new),
                dh * 0.5 * squashed * (1 - o * o),
            ],
            axis=-1,
        )
        return dgates, dgates, (ops.zeros_like(dh), dc * (0.5 * f + 0.5))


class GRU:
    """Gated recurrent unit (Cho et al., 2014), reset after the product.

    Gates are in Keras's order: update, reset, new.
    """

    states = 1
    scales = (0.5, 0.5, 1.0)

    @staticmethod
    def saved(units):
        """As `LSTM.saved`."""
        return (2 * units, units, units)

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
        return (h,), (gates, new, kept)

    @staticmethod
    def backward(dstates, states, saved):
        """As `LSTM.backward`."""
        (dh,), (h,) = dstates, states
        gates, new, kept = saved
        update, reset = ops.split(gates, 2, axis=-1)
        share = 0.5 * update + 0.5
        dnew = dh * (1 - share) * (1 - new * new)
        dupdate = dh * 0.5 * (h - new) * (1 - update * update)
        dreset = dnew * 0.5 * kept * (1 - reset * reset)
        return (
            ops.concatenate([dupdate, dreset, dnew], axis=-1),
            ops.concatenate(
                [dupdate, dreset, dnew * (0.5 * reset + 0.5)], axis=-1
            ),
            (dh * share,),
        )


class Simple:
    """The simple recurrent layer (Elman, 1990)."""

    states = 1
    scales = (1.0,)

    @staticmethod
    def saved(units):
        """As `LSTM.saved`."""
        return (units,)

    @staticmethod
    def forward(read, recalled, states):
        """As `LSTM.forward`."""
        h = ops.tanh(read + recalled)
        return (h,), (h,)

    @staticmethod
    def backward(dstates, states, saved):
        """As `LSTM.backward`."""
        (dh,), (h,) = dstates, saved
        dh = dh * (1 - h * h)
        return dh, dh, (ops.zeros_like(dh),)


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
        parts = split_batch((rows, *states))
        results = [forward(*weights, *part) for part in parts]
        # The outputs and the last states; what is saved stays in parts.
        joined = [
            ops.concatenate(values, axis=0)
            for values in zip(*(r[: 1 + count] for r in results), strict=True)
        ]

        def gradient(*upstream):
            upstream = split_batch(keras.tree.flatten(upstream))
            found = [
                backward(*weights, *part, result[0], result[1 + count :], ups)
                for part, result, ups in zip(
                    parts, results, upstream, strict=True
                )
            ]
            of_weights, of_rows = zip(*found, strict=True)
            return (
                *map(sum, zip(*of_weights, strict=True)),
                *(ops.concatenate(x, 0) for x in zip(*of_rows, strict=True)),
            )

        return tuple(joined), gradient

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
    """Returns `forward` and `backward` over all steps of a part of a batch."""

    def forward(kernel, recurrent_kernel, bias, rows, *states):
        units = recurrent_kernel.shape[0]
        scale = _scale(cell, units)
        first, second = _biases(bias)
        if are_ids:
            table = (kernel + first) * scale
            read = ops.take(table, ops.transpose(rows), axis=0)
        else:
            rows = ops.transpose(rows, (1, 0, 2))
            read = ops.matmul(rows, kernel * scale) + first * scale
        recurrent_kernel = recurrent_kernel * scale
        steps, size = ops.shape(read)[:2]

        def advance(k, states, kept):
            recalled = ops.matmul(states[0], recurrent_kernel)
            if second is not None:
                recalled = recalled + second * scale
            states, saved = cell.forward(read[k], recalled, states)
            return k + 1, states, _write(kept, k, (states[0], *saved))

        kept = tuple(
            ops.zeros((steps, size, n)) for n in (units, *cell.saved(units))
        )
        _, states, kept = ops.while_loop(
            lambda k, *_: k < steps,
            advance,
            (ops.zeros((), "int32"), states, kept),
        )
        return (ops.transpose(kept[0], (1, 0, 2)), *states, *kept[1:])

    def backward(kernel, recurrent_kernel, bias, rows, *rest):
        states, (outputs, saved, (douts, *dstates)) = rest[:-3], rest[-3:]
        units, width = recurrent_kernel.shape
        scale = _scale(cell, units)
        outputs, douts = (ops.transpose(x, (1, 0, 2)) for x in (outputs, douts))
        steps, size = ops.shape(douts)[:2]
        # The states before each step: outputs, and the cells of an LSTM.
        before = tuple(
            ops.concatenate([first[None], x[:-1]], axis=0)
            for first, x in zip(states, (outputs, saved[0]), strict=False)
        )
        turned = ops.transpose(recurrent_kernel * scale)
        # The reset gate of a GRU stands between the two.
        both = cell is GRU

        def retreat(k, dstates, kept):
            dh, *others = dstates
            dread, drecalled, dstates = cell.backward(
                (dh + douts[k], *others),
                tuple(x[k] for x in before),
                tuple(x[k] for x in saved),
            )
            dh = dstates[0] + ops.matmul(drecalled, turned)
            found = (dread, drecalled) if both else (dread,)
            return k - 1, (dh, *dstates[1:]), _write(kept, k, found)

        kept = tuple(ops.zeros((steps, size, width)) for _ in range(1 + both))
        _, dstates, kept = ops.while_loop(
            lambda k, *_: k >= 0,
            retreat,
            (steps - 1, tuple(dstates), kept),
        )
        dread, drecalled = kept[0], kept[-1]
        flat = ops.reshape(dread, (-1, width))
        flat_recalled = ops.reshape(drecalled, (-1, width))
        flat_outputs = ops.reshape(before[0], (-1, units))
        drecurrent = ops.matmul(ops.transpose(flat_outputs), flat_recalled)
        if are_ids:
            dkernel = ops.segment_sum(
                flat, ops.reshape(ops.transpose(rows), (-1,)), kernel.shape[0]
            )
            drows = ()
            # Each step reads one row, with the bias on it.
            dbias = ops.sum(dkernel, axis=0)
        else:
            flat_rows = ops.reshape(
                ops.transpose(rows, (1, 0, 2)), (-1, kernel.shape[0])
            )
            dkernel = ops.matmul(ops.transpose(flat_rows), flat)
            drows = ops.matmul(dread, ops.transpose(kernel * scale))
            drows = (ops.transpose(drows, (1, 0, 2)),)
            dbias = ops.sum(flat, axis=0)
        if both:
            dbias = ops.stack([dbias, ops.sum(flat_recalled, axis=0)])
        of_weights = (dkernel * scale, drecurrent * scale, dbias * scale)
        return of_weights, (*dstates, *drows)

    return compile_part(forward), compile_part(backward)


def _scale(cell, units):
    return ops.convert_to_tensor(
        np.repeat(np.array(cell.scales, "float32"), units)
    )


def _biases(bias):
    return (bias, None) if len(bias.shape) == 1 else (bias[0], bias[1])


def _write(kept, k, values):
    return tuple(
        ops.slice_update(x, (k, 0, 0), value[None])
        for x, value in zip(kept, values, strict=True)
    )
