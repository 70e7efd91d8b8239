"""Transforms that leave out the unlikely, or the too likely."""

import keras
from keras import ops

from keras_chargen.checks import check_integer, check_number, check_positive
from keras_chargen.samplers.base import LogitTransform
from keras_chargen.samplers.threshold import RANGE, heaviest, relative

OUT = -float("inf")


@keras.saving.register_keras_serializable(package="keras_chargen")
class TopK(LogitTransform):
    """Keeps the k likeliest.

    Those equal to the k-th stay with it. Source: Fan et al., "Hierarchical
    Neural Story Generation", 2018.

    Args:
        top_k: Positive integer.
    """

    def __init__(self, top_k=10):
        self.top_k = check_integer("top_k", top_k, 1)

    def get_config(self):
        return {"top_k": self.top_k}

    def __call__(self, logits, context, *, top_k):
        target = ops.zeros_like(logits[:, 0]) + top_k
        allowed = ops.cast(logits > OUT, "float32")
        return ops.where(heaviest(logits, allowed, target), logits, OUT)


@keras.saving.register_keras_serializable(package="keras_chargen")
class TopP(LogitTransform):
    """Keeps the fewest likeliest whose probability sums to p or more.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration"
    (nucleus sampling), 2020.

    Args:
        top_p: Number in (0, 1]; 1 keeps all.
    """

    def __init__(self, top_p=0.9):
        self.top_p = check_positive("top_p", top_p, 1)

    def get_config(self):
        return {"top_p": self.top_p}

    def __call__(self, logits, context, *, top_p):
        weights = _weights(logits)
        target = top_p * ops.sum(weights, axis=-1)
        # Rounding hides what is tiny from a sum.
        keep = ops.logical_or(heaviest(logits, weights, target), top_p >= 1)
        return ops.where(keep, logits, OUT)


@keras.saving.register_keras_serializable(package="keras_chargen")
class MinP(LogitTransform):
    """Keeps what has at least this share of the largest probability.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2025.

    Args:
        min_p: Number in [0, 1]; 0 keeps all, 1 the likeliest.
    """

    def __init__(self, min_p=0.05):
        self.min_p = check_number("min_p", min_p, 0, 1)

    def get_config(self):
        return {"min_p": self.min_p}

    def __call__(self, logits, context, *, min_p):
        return ops.where(_weights(logits) >= min_p, logits, OUT)


@keras.saving.register_keras_serializable(package="keras_chargen")
class Typical(LogitTransform):
    """Keeps those whose surprisal is nearest to the entropy.

    So many that their probability sums to `typical_p` or more. Source:
    Meister et al., "Locally Typical Sampling", 2023.

    Args:
        typical_p: Number in (0, 1]; 1 keeps all.
    """

    def __init__(self, typical_p=0.9):
        self.typical_p = check_positive("typical_p", typical_p, 1)

    def get_config(self):
        return {"typical_p": self.typical_p}

    def __call__(self, logits, context, *, typical_p):
        weights = _weights(logits)
        total = ops.sum(weights, axis=-1, keepdims=True)
        shifted = relative(logits)
        # Entropy and surprisal, both less ln(total).
        entropy = -ops.sum(weights * shifted, axis=-1, keepdims=True) / total
        possible = shifted > -RANGE
        keys = ops.where(possible, -ops.abs(entropy + shifted), OUT)
        keep = heaviest(keys, weights, typical_p * total[:, 0])
        keep = ops.logical_or(keep, typical_p >= 1)
        keep = ops.logical_and(keep, possible)
        return ops.where(keep, logits, OUT)


@keras.saving.register_keras_serializable(package="keras_chargen")
class TopNSigma(LogitTransform):
    """Keeps logits within n standard deviations of the largest.

    Temperature does not move the border. Source: Tang et al., "Top-n-sigma:
    Not All Logits Are You Need", 2024.

    Args:
        n_sigma: Number >= 0; 0 keeps the likeliest.
    """

    def __init__(self, n_sigma=1.0):
        self.n_sigma = check_number("n_sigma", n_sigma, 0)

    def get_config(self):
        return {"n_sigma": self.n_sigma}

    def __call__(self, logits, context, *, n_sigma):
        allowed = logits > OUT
        count = ops.sum(ops.cast(allowed, "float32"), axis=-1, keepdims=True)
        largest = ops.max(logits, axis=-1, keepdims=True)
        shifted = ops.where(allowed, logits - largest, 0.0)
        mean = ops.sum(shifted, axis=-1, keepdims=True) / count
        off = ops.where(allowed, shifted - mean, 0.0)
        variance = ops.sum(off * off, axis=-1, keepdims=True) / count
        least = -n_sigma * ops.sqrt(variance)
        keep = ops.logical_and(shifted >= least, allowed)
        return ops.where(keep, logits, OUT)


@keras.saving.register_keras_serializable(package="keras_chargen")
class XTC(LogitTransform):
    """Leaves out the top choices, now and then.

    Of all that reach the threshold only the least likely stays. Source:
    "Exclude Top Choices", p-e-w, text-generation-webui #6335, 2024.

    Args:
        probability: Number in [0, 1], how often.
        threshold: Number in (0, 1]; above 0.5 nothing is ever left out.
    """

    uses_chance = True

    def __init__(self, probability=0.5, threshold=0.1):
        self.probability = check_number("probability", probability, 0, 1)
        self.threshold = check_positive("threshold", threshold, 1)

    def get_config(self):
        return {"probability": self.probability, "threshold": self.threshold}

    def __call__(self, logits, context, *, probability, threshold):
        weights = _weights(logits)
        share = weights / ops.sum(weights, axis=-1, keepdims=True)
        top = share >= threshold
        least = ops.min(
            ops.where(top, share, 2.0), axis=-1, keepdims=True
        )  # 2 where no id reaches the threshold
        happens = (context.chance < probability)[:, None]
        out = ops.logical_and(happens, share > least)
        return ops.where(out, OUT, logits)


def _weights(logits):
    """Probabilities in units of the largest."""
    return ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
