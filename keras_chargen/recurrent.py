"""Recurrent layers: those of Keras, with faster loops, and minimal ones.

The weights are those of Keras's layers. The loop is that of `recurrences`
under JAX, and under TensorFlow on a CPU; on a GPU TensorFlow takes cuDNN. Under
Torch on a CPU it is `torch.lstm` and `torch.gru`: there Keras 3.15 steps
through a text in Python, and its gradient costs the square of the length; in
bfloat16, where the processor has products of it, they take half the time. All
else is left to Keras. The minimal layers, which Keras has not, are a product
for all steps at once and then a scan of `scans`.

`step` is what the cells do in one step, for a text written character by
character: ids stand for one-hot vectors, and of all gates one tanh is taken,
since a sigmoid is half of a tanh of half, plus a half.
"""

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_chargen import recurrences, scans
from keras_chargen.compilation import fuses_elementwise, loops_are_ours


class _Layer(keras.layers.RNN):
    """What the layers have in common: default activations.

    Outputs of all steps and the last states are returned.

    Args:
        units: Positive integer, width of outputs and states.
        one_hot_size: Optional positive integer D: inputs are ids `(B, T)`,
            which stand for one-hot vectors of D, not vectors `(B, T, D)`.
        weight_dropout: Number in [0, 1), share of the recurrent kernel that
            is 0 in a batch of training, the same in all its steps (Merity et
            al., 2018, "Regularizing and Optimizing LSTM Language Models").
        **kwargs: As for every Keras layer.
    """

    recurrence: type

    def __init__(self, units, one_hot_size=None, weight_dropout=0.0, **kwargs):
        # Ids are integers whatever the dtype of the layer.
        super().__init__(
            units, return_sequences=True, return_state=True, **kwargs
        )
        self.weight_dropout = weight_dropout
        self.one_hot_size = one_hot_size
        if one_hot_size is not None:
            self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, sequences_shape, initial_state_shape=None):
        if self.one_hot_size is not None:
            sequences_shape = (*sequences_shape, self.one_hot_size)
        super().build(sequences_shape)

    def call(self, sequences, initial_state=None, mask=None, training=False):
        """Reads `(B, T, D)`, or ids `(B, T)`.

        Returns:
            Outputs `(B, T, units)`, then each state `(B, units)` after the
            last step.
        """
        if training and self.weight_dropout:
            with self._dropped_weights():
                return self._read(sequences, initial_state, mask, training)
        return self._read(sequences, initial_state, mask, training)

    @contextlib.contextmanager
    def _dropped_weights(self):
        cell = self.cell
        kernel = cell.recurrent_kernel
        dropped = keras.random.dropout(
            ops.convert_to_tensor(kernel),
            self.weight_dropout,
            seed=cell.seed_generator,
        )
        # Whatever loop runs takes the kernel from here. Not by assignment,
        # which would have Keras track it as a weight.
        cell.__dict__["recurrent_kernel"] = dropped
        try:
            yield
        finally:
            cell.__dict__["recurrent_kernel"] = kernel

    def _read(self, sequences, initial_state, mask, training):
        cell = self.cell
        if (
            mask is None
            and cell.compute_dtype == "float32"
            and loops_are_ours()
        ):
            states = initial_state or self.get_initial_state(
                ops.shape(sequences)[0]
            )
            outputs, states = recurrences.run(
                self.recurrence,
                sequences,
                tuple(states),
                cell.kernel,
                cell.recurrent_kernel,
                cell.bias,
            )
            return (outputs, *states)
        if self.one_hot_size is not None:
            sequences = _one_hot(
                sequences, self.one_hot_size, self.compute_dtype
            )
        return super().call(
            sequences, initial_state=initial_state, mask=mask, training=training
        )

    def get_config(self):
        config = super().get_config()
        del config["return_sequences"], config["return_state"]
        return {
            **config,
            "one_hot_size": self.one_hot_size,
            "weight_dropout": self.weight_dropout,
        }


class LSTM(_Layer, keras.layers.LSTM):
    """`keras.layers.LSTM` with a loop of ours: see `_Layer`."""

    recurrence = recurrences.LSTM

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        if keras.backend.backend() == "jax" and self.compute_dtype != "float32":
            # cuDNN is open to float32 alone there; Keras 3.15 asks for all.
            self.use_cudnn = False

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

    def step(self, x, states):
        """Reads one input a row, without dropout.

        Args:
            x: Vectors `(B, D)`, or int32 `(B,)`: the place of the 1 in each
                of as many one-hot vectors.
            states: List of `(B, units)`, as the layer returns them.

        Returns:
            Outputs `(B, units)`, and the states after the step.
        """
        h, c = states
        cell = self.cell
        z = _read(cell, x, cell.bias) + _recall(cell, h)
        i, f, new, o = _gates(z, (True, True, False, True))
        c = f * c + i * new
        h = o * ops.tanh(c)
        return h, [h, c]


class GRU(_Layer, keras.layers.GRU):
    """`keras.layers.GRU` with a loop of ours: see `_Layer`."""

    recurrence = recurrences.GRU

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

    def step(self, x, states):
        """Reads one input a row: as `LSTM.step`."""
        (h,) = states
        cell = self.cell
        size = 2 * self.units
        read = _read(cell, x, cell.bias[0])  # (B, 3 * units)
        kept = _recall(cell, h) + ops.cast(cell.bias[1], cell.compute_dtype)
        update, reset = _gates(read[:, :size] + kept[:, :size], (True, True))
        new = ops.tanh(read[:, size:] + reset * kept[:, size:])
        h = new + update * (h - new)
        return h, [h]


class SimpleRNN(_Layer, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` with a loop of ours: see `_Layer`."""

    recurrence = recurrences.Simple

    def step(self, x, states):
        """Reads one input a row: as `LSTM.step`."""
        (h,) = states
        cell = self.cell
        h = ops.tanh(_read(cell, x, cell.bias) + _recall(cell, h))
        return h, [h]


class _Minimal(keras.layers.Layer):
    """What the minimal layers have in common (Feng et al., 2024).

    The gates see the input alone and not the last outputs, so what they read
    is one product for all steps, and what is left over time is a scan. Here
    they are as in section 3 of the paper: nothing keeps the outputs positive.

    The state is float32 whatever the dtype of the layer: in half precision a
    share near 1 would be 1, and what is new would be lost.

    Args:
        units: Positive integer, width of outputs and state.
        one_hot_size: Optional positive integer D: inputs are ids `(B, T)`,
            which stand for one-hot vectors of D, not vectors `(B, T, D)`.
        **kwargs: As for every Keras layer.
    """

    recurrence: type[scans.MinGRU] | type[scans.MinLSTM]

    def __init__(self, units, one_hot_size=None, **kwargs):
        # A cast of ours: Keras would cast the state too.
        super().__init__(autocast=False, **kwargs)
        self.units = units
        self.one_hot_size = one_hot_size
        self.input_spec = keras.layers.InputSpec(
            ndim=3 if one_hot_size is None else 2
        )

    def build(self, sequences_shape, initial_state_shape=None):
        width = self.recurrence.gates * self.units
        self.kernel = self.add_weight(
            (self.one_hot_size or sequences_shape[-1], width), name="kernel"
        )
        self.bias = self.add_weight((width,), "zeros", name="bias")

    def call(self, sequences, initial_state=None, training=False):
        """Reads `(B, T, D)`, or ids `(B, T)`, with T of at least 1.

        Returns:
            Outputs `(B, T, units)`, and the state `(B, units)` after the last
            step, float32.
        """
        (state,) = initial_state or self.get_initial_state(
            ops.shape(sequences)[0]
        )
        read = ops.cast(_read(self, sequences, self.bias), "float32")
        outputs = scans.run(self.recurrence, read, ops.cast(state, "float32"))
        return ops.cast(outputs, self.compute_dtype), outputs[:, -1]

    def step(self, x, states):
        """Reads one input a row: as `LSTM.step`."""
        read = ops.cast(_read(self, x, self.bias), "float32")
        h = scans.step(self.recurrence, read, states[0])
        return ops.cast(h, self.compute_dtype), [h]

    def get_initial_state(self, batch_size):
        """Returns the state before the first step: zeros."""
        return [ops.zeros((batch_size, self.units), "float32")]

    # Keras would trace `call` without a number of steps.
    def compute_output_spec(self, sequences, initial_state=None, training=None):
        rows, steps = sequences.shape[:2]
        return (
            keras.KerasTensor((rows, steps, self.units), self.compute_dtype),
            keras.KerasTensor((rows, self.units), "float32"),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "one_hot_size": self.one_hot_size,
        }


class MinGRU(_Minimal):
    """The minimal GRU: `h + z * (new - h)`, with `z` and `new` of the input.

    See `_Minimal`.
    """

    recurrence = scans.MinGRU


class MinLSTM(_Minimal):
    """The minimal LSTM: a forget gate and an input gate, scaled to sum to 1.

    See `_Minimal`.
    """

    recurrence = scans.MinLSTM


CELLS: dict[str, Any] = {
    "lstm": LSTM,
    "gru": GRU,
    "simple": SimpleRNN,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
}


def _read(cell, x, bias):
    """Returns `(..., n)`, the inputs times the kernel, plus the bias."""
    kernel = ops.cast(cell.kernel, cell.compute_dtype)
    # A row of the kernel is what the product with a one-hot vector gives.
    rows = "int" in keras.backend.standardize_dtype(x.dtype)
    if not rows:
        x = ops.cast(x, cell.compute_dtype)
    read = ops.take(kernel, x, axis=0) if rows else ops.matmul(x, kernel)
    return read + ops.cast(bias, cell.compute_dtype)


def _recall(cell, h):
    """Returns `(B, n)`, the last outputs times the recurrent kernel."""
    kernel = ops.cast(cell.recurrent_kernel, cell.compute_dtype)
    return ops.matmul(h, kernel)


def _gates(z, sigmoids):
    """Splits `(B, n * units)` into n gates, each a sigmoid or a tanh.

    Under XLA one tanh for all of them: that saves a quarter of the time of a
    step of one row.
    """
    if not fuses_elementwise():
        return [
            ops.sigmoid(gate) if is_so else ops.tanh(gate)
            for gate, is_so in zip(
                ops.split(z, len(sigmoids), -1), sigmoids, strict=True
            )
        ]
    units = z.shape[-1] // len(sigmoids)
    dtype = keras.backend.standardize_dtype(z.dtype)
    scale = np.repeat([0.5 if is_so else 1.0 for is_so in sigmoids], units)
    offset = np.repeat([0.5 if is_so else 0.0 for is_so in sigmoids], units)
    scale = ops.convert_to_tensor(scale, dtype)
    offset = ops.convert_to_tensor(offset, dtype)
    return ops.split(ops.tanh(z * scale) * scale + offset, len(sigmoids), -1)


def _one_hot(ids, size, dtype):
    if keras.backend.backend() != "torch":
        return ops.one_hot(ids, size, dtype=dtype)
    import torch

    # Torch's own makes 64-bit integers first: 4 % of the time of a step.
    dtype = getattr(torch, dtype)
    vectors = torch.zeros((*ids.shape, size), dtype=dtype, device=ids.device)
    return vectors.scatter_(-1, ids[..., None].long(), 1)


def _torch_on_cpu(x):
    # The symbolic pass that builds a model runs on the device "meta".
    return (
        keras.backend.backend() == "torch"
        and ops.is_tensor(x)
        and x.device.type == "cpu"
        and keras.backend.standardize_dtype(x.dtype) in ("float32", "bfloat16")
    )


def _run(name, sequences, states, kernels, biases):
    import torch

    # Torch keeps kernels transposed: (gates * units, inputs).
    weights = [ops.transpose(kernel) for kernel in kernels]
    weights += [ops.convert_to_tensor(bias) for bias in biases]
    weights = [weight.to(sequences.dtype) for weight in weights]
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
