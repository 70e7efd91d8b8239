"""Transforms that sharpen or flatten the whole distribution."""

import keras
import numpy as np
from keras import ops

from keras_chargen.checks import check_positive
from keras_chargen.samplers.base import LogitTransform


@keras.saving.register_keras_serializable(package="keras_chargen")
class Temperature(LogitTransform):
    """Divides the logits by a temperature (Ackley et al., 1985).

    Args:
        temperature: Finite number > 0. Below 1 the likely become likelier;
            towards 0 the choice becomes greedy.

    Raises:
        ValueError: Another temperature; 0 is the sampler `"greedy"`.
    """

    def __init__(self, temperature):
        self.temperature = check_positive("temperature", temperature)

    def get_config(self):
        return {"temperature": self.temperature}

    def __call__(self, logits, context, *, temperature):
        return _divide(logits, temperature)


@keras.saving.register_keras_serializable(package="keras_chargen")
class TemperatureCycle(LogitTransform):
    """Takes one temperature after the other, a character each, in a circle.

    Source: textgenrnn, Woolf, 2017.

    Args:
        temperatures: Non-empty list of finite numbers > 0; character i is
            drawn at `temperatures[i % len(temperatures)]`.
    """

    def __init__(self, temperatures):
        if not isinstance(temperatures, list | tuple) or not temperatures:
            raise ValueError(
                "`temperatures` must be a non-empty list of numbers > 0. "
                f"Received: {temperatures!r}"
            )
        self.temperatures = [
            check_positive("temperatures", value) for value in temperatures
        ]

    def get_config(self):
        return {"temperatures": self.temperatures}

    def __call__(self, logits, context, *, temperatures):
        place = context.position % temperatures.shape[0]
        return _divide(logits, ops.take(temperatures, place)[:, None])

    def numbers(self, tokenizer):
        return {"temperatures": np.array(self.temperatures, "float32")}


@keras.saving.register_keras_serializable(package="keras_chargen")
class DynamicTemperature(LogitTransform):
    """Low temperature where the model is sure, high where it is not.

    Source: Zhang et al., "EDT", 2024; the form is llama.cpp's.

    The temperature is `low + (high - low) * (H / H_max) ** exponent`, H being
    the entropy and H_max that of an even distribution over the ids allowed.

    Args:
        low: Finite number > 0.
        high: Finite number >= `low`.
        exponent: Finite number > 0.
    """

    def __init__(self, low=0.5, high=1.5, exponent=1.0):
        self.low = check_positive("low", low)
        self.high = check_positive("high", high)
        self.exponent = check_positive("exponent", exponent)
        if self.low > self.high:
            raise ValueError(
                f"`low` must be at most `high`. Received: {low!r} and {high!r}"
            )

    def get_config(self):
        return {"low": self.low, "high": self.high, "exponent": self.exponent}

    def __call__(self, logits, context, *, low, high, exponent):
        allowed = ops.isfinite(logits)
        shifted = logits - ops.max(logits, axis=-1, keepdims=True)
        weights = ops.exp(shifted)
        total = ops.sum(weights, axis=-1, keepdims=True)
        mean = ops.sum(
            weights * ops.where(allowed, shifted, 0.0), axis=-1, keepdims=True
        )
        entropy = ops.log(total) - mean / total
        count = ops.sum(ops.cast(allowed, "float32"), axis=-1, keepdims=True)
        # One id alone has neither entropy nor choice.
        largest = ops.log(ops.maximum(count, 2.0))
        share = ops.clip(entropy / largest, 0.0, 1.0)
        return shifted / (low + (high - low) * share**exponent)


def _divide(logits, temperature):
    # From the largest, so that a tiny temperature cannot overflow.
    return (logits - ops.max(logits, axis=-1, keepdims=True)) / temperature
