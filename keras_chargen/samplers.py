"""What turns logits and one uniform number into an id."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_chargen.checks import check_choice, check_number


class Context(NamedTuple):
    """What a transform may look at besides the logits.

    Attributes:
        position: int32 `(B,)`, characters written in each row so far.
    """

    position: Any


class LogitTransform:
    """Base of the pure functions from logits to logits.

    A subclass takes its numbers in `__init__`, returns them from
    `get_config`, and receives them back in `__call__` as scalar tensors, so
    that compiled code serves every value. A forbidden id gets `-inf`; at
    least one id must stay.
    """

    def get_config(self):
        """Returns the numbers of this transform by name."""
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __call__(self, logits, context, **numbers):
        """Maps float32 `(B, V)` to float32 `(B, V)`."""
        raise NotImplementedError

    def __repr__(self):
        numbers = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({numbers})"


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
        self.temperature = check_number("temperature", temperature, 0)
        if self.temperature == 0:
            raise ValueError(
                "`temperature` of this transform must be > 0. Received: 0. "
                'For the likeliest character use sampler="greedy"'
            )

    def get_config(self):
        return {"temperature": self.temperature}

    def __call__(self, logits, context, *, temperature):  # type: ignore[override]
        # From the largest, so that a tiny temperature cannot overflow.
        logits = logits - ops.max(logits, axis=-1, keepdims=True)
        return logits / temperature


@keras.saving.register_keras_serializable(package="keras_chargen")
class Sampler:
    """A chain of logit transforms and a choice.

    Transforms apply in the order of the list. Named chains put penalties
    first, then temperature, then cuts, as Hugging Face does; llama.cpp
    applies temperature last.

    Args:
        name: `"greedy"` takes the likeliest id, of equals the lowest;
            `"random"` draws from the distribution.
        temperature: For `"random"`: finite, >= 0; 0 is greedy.
        transforms: Further `LogitTransform`s, applied before temperature.

    Call arguments:
        logits: float32 `(B, V)`.
        uniform: float32 `(B,)` in [0, 1): the draw inverts the cumulative
            distribution at this number. Greedy does not look at it.
        context: `Context`.
        numbers: The tensors of `self.numbers()`; they may be traced.

    Returns:
        int32 `(B,)`, ids whose logit is above `-inf`.
    """

    def __init__(self, name="random", temperature=1.0, transforms=()):
        self.name = check_choice("sampler", name, ("greedy", "random"))
        self.temperature = check_number("temperature", temperature, 0)
        for transform in transforms:
            if not isinstance(transform, LogitTransform):
                raise ValueError(
                    "`transforms` must be LogitTransform objects. "
                    f"Received: {transform!r}"
                )
        self.transforms = tuple(transforms)

    @property
    def greedy(self):
        """Whether the likeliest id is taken, and nothing drawn."""
        return self.name == "greedy" or self.temperature == 0

    @property
    def chain(self):
        """The transforms in the order in which they apply."""
        # A temperature moves no maximum, so greedy leaves it out.
        if self.greedy:
            return self.transforms
        return (*self.transforms, Temperature(self.temperature))

    def numbers(self):
        """Returns the numbers of each transform, float32 scalars by name."""
        return tuple(
            {k: np.float32(v) for k, v in transform.get_config().items()}
            for transform in self.chain
        )

    def signature(self):
        """Returns a hashable that is equal where compiled code can serve."""
        return (self.greedy, *(type(transform) for transform in self.chain))

    def __call__(self, logits, uniform, context, numbers):
        for transform, values in zip(self.chain, numbers, strict=True):
            logits = transform(logits, context, **values)
        likeliest = ops.cast(ops.argmax(logits, axis=-1), "int32")
        if self.greedy:
            return likeliest
        return invert_distribution(logits, uniform, likeliest)

    def get_config(self):
        return {
            "name": self.name,
            "temperature": self.temperature,
            "transforms": [
                keras.saving.serialize_keras_object(transform)
                for transform in self.transforms
            ],
        }

    @classmethod
    def from_config(cls, config):
        transforms = [
            keras.saving.deserialize_keras_object(transform)
            for transform in config["transforms"]
        ]
        return cls(**{**config, "transforms": transforms})

    def __repr__(self):
        chain = " -> ".join(map(repr, self.chain))
        choice = "greedy" if self.greedy else "random"
        return (
            f"Sampler({chain} -> {choice})" if chain else f"Sampler({choice})"
        )


def get(sampler, temperature=None):
    """Returns a `Sampler` from a name or a `Sampler`.

    Args:
        sampler: `"greedy"`, `"random"` or a `Sampler`.
        temperature: Optional number for a named sampler: finite, >= 0; 0 is
            greedy.

    Raises:
        ValueError: An unknown name, a temperature out of range, or a
            temperature beside a `Sampler`, which has its own.
    """
    if isinstance(sampler, Sampler):
        if temperature is not None:
            raise ValueError(
                "`temperature` goes with a named sampler. Received both "
                f"temperature={temperature!r} and {sampler!r}"
            )
        return sampler
    return Sampler(sampler, 1.0 if temperature is None else temperature)


def invert_distribution(logits, uniform, fallback):
    """Draws ids by inverting the cumulative distribution.

    Args:
        logits: float32 `(B, V)`; `-inf` where an id is out.
        uniform: float32 `(B,)` in [0, 1).
        fallback: int32 `(B,)`, ids that are in; they stand where rounding
            would pick one that is out.

    Returns:
        int32 `(B,)`.
    """
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    cumulative = ops.cumsum(weights, axis=-1)  # (B, V), not normalized
    threshold = uniform[:, None] * cumulative[:, -1:]
    ids = ops.sum(ops.cast(cumulative <= threshold, "int32"), axis=-1)
    ids = ops.minimum(ids, ops.shape(logits)[-1] - 1)
    picked = ops.take_along_axis(weights, ids[:, None], axis=-1)[:, 0]
    return ops.where(picked > 0, ids, fallback)
