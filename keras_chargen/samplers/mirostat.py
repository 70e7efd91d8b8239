"""Sampling at a steady surprisal."""

import math

import keras
import numpy as np
from keras import ops

from keras_chargen.checks import check_positive
from keras_chargen.samplers.base import LogitTransform


@keras.saving.register_keras_serializable(package="keras_chargen")
class Mirostat(LogitTransform):
    """Mirostat 2: keeps the surprisal of what is written steady.

    Cuts off what surprises more than μ bits, and moves μ so that what is
    written surprises by τ bits on average. Source: Basu et al., "Mirostat",
    2021, algorithm 2.

    A row's μ begins at 2τ; after each character it falls by
    η · (surprisal - τ), the surprisal being that under the distribution that
    was cut. The likeliest id always stays.

    Args:
        tau: Finite number > 0, bits per character.
        eta: Finite number in (0, 1], how fast μ moves.
    """

    def __init__(self, tau=2.0, eta=0.1):
        self.tau = check_positive("tau", tau)
        self.eta = check_positive("eta", eta, 1)

    def get_config(self):
        return {"tau": self.tau, "eta": self.eta}

    def initial_state(self, batch_size, vocabulary_size):
        return np.full((batch_size,), 2 * self.tau, "float32")

    def __call__(self, logits, context, *, tau, eta):
        shifted = logits - ops.max(logits, axis=-1, keepdims=True)
        total = ops.sum(ops.exp(shifted), axis=-1, keepdims=True)
        bits = (ops.log(total) - shifted) / math.log(2)
        keep = ops.logical_or(bits <= context.state[:, None], shifted == 0)
        return ops.where(keep, logits, -float("inf"))

    def update(self, logits, ids, context, *, tau, eta):
        chosen = ops.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
        bits = (ops.logsumexp(logits, axis=-1) - chosen) / math.log(2)
        # What a prompt forces may be impossible: it teaches nothing.
        bits = ops.where(context.writes, bits, tau)
        return context.state - eta * (bits - tau)
