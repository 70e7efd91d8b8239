"""Keras's recurrent layers, with Torch's own loop where Keras has a slow one.

On a CPU, Keras 3.15 steps through a text in Python under Torch, and its
gradient costs the square of the length. `torch.lstm` and `torch.gru` take the
same weights. Under other backends and on a GPU these are Keras's layers.
"""

import keras
from keras import ops


class LSTM(keras.layers.LSTM):
    """`keras.layers.LSTM` with default activations, without dropout."""

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """Replaces Keras's loop; the contract is that of Keras."""
        if not _torch_on_cpu(sequences):
            return super().inner_loop(
                sequences, initial_state, mask, training=training
            )
        cell = self.cell
        outputs, h, c = _run(
            "lstm",
            sequences,
            tuple(state[None] for state in initial_state),
            (cell.kernel, cell.recurrent_kernel),
            (cell.bias, ops.zeros_like(cell.bias)),
        )
        return h[0], outputs, [h[0], c[0]]


class GRU(keras.layers.GRU):
    """`keras.layers.GRU` with default activations, without dropout."""

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """Replaces Keras's loop; the contract is that of Keras."""
        if not _torch_on_cpu(sequences):
            return super().inner_loop(
                sequences, initial_state, mask, training=training
            )
        cell = self.cell
        outputs, h = _run(
            "gru",
            sequences,
            initial_state[0][None],
            (_reset_first(cell.kernel), _reset_first(cell.recurrent_kernel)),
            (_reset_first(cell.bias[0]), _reset_first(cell.bias[1])),
        )
        return h[0], outputs, [h[0]]


CELLS = {"lstm": LSTM, "gru": GRU, "simple": keras.layers.SimpleRNN}


def _torch_on_cpu(x):
    # The symbolic pass that builds a model runs on the device "meta".
    return (
        keras.backend.backend() == "torch"
        and ops.is_tensor(x)
        and x.device.type == "cpu"
        and keras.backend.standardize_dtype(x.dtype) == "float32"
    )


def _run(name, sequences, states, kernels, biases):
    import torch

    # Torch keeps kernels transposed: (gates * units, inputs).
    weights = [ops.transpose(kernel) for kernel in kernels]
    weights += [ops.convert_to_tensor(bias) for bias in biases]
    return getattr(torch, name)(
        sequences,
        states,
        weights,
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=torch.is_grad_enabled(),
        bidirectional=False,
        batch_first=True,
    )


def _reset_first(weights):
    # Keras orders the gates of a GRU update, reset, new; Torch reset first.
    update, reset, new = ops.split(ops.convert_to_tensor(weights), 3, axis=-1)
    return ops.concatenate([reset, update, new], axis=-1)
