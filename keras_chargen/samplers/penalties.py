"""Transforms against repetition."""

import math

import keras
import numpy as np
from keras import ops

from keras_chargen.checks import check_integer, check_number, check_positive
from keras_chargen.compilation import round_up
from keras_chargen.samplers.base import LogitTransform

# A match that long is as good as forbidden; a larger power would overflow.
_MOST = 1e4


class _Counting(LogitTransform):
    """Knows how often each id came among the last `window` ids."""

    def numbers(self, tokenizer):
        numbers = super().numbers(tokenizer)
        return {**numbers, "window": np.int32(self.window)}

    def initial_state(self, batch_size, vocabulary_size):
        return np.zeros((batch_size, vocabulary_size), "float32")

    def update(self, logits, ids, context, *, window, **numbers):
        # What leaves the window; 0, which is no character, in a short text.
        place = ops.shape(context.recent)[1] - window
        leaving = ops.take(context.recent, place, axis=1)
        size = context.state.shape[1]
        return (
            context.state + ops.one_hot(ids, size) - ops.one_hot(leaving, size)
        )


@keras.saving.register_keras_serializable(package="keras_chargen")
class RepetitionPenalty(_Counting):
    """Lowers the logits of what was there by a factor.

    Positive logits are divided by it, negative ones multiplied. Source:
    Keskar et al., "CTRL", 2019.

    Args:
        penalty: Finite number > 0; above 1 discourages, 1 does nothing.
        window: Positive integer, how many of the last characters count.
    """

    def __init__(self, penalty=1.2, window=64):
        self.penalty = check_positive("penalty", penalty)
        self.window = check_integer("window", window, 1)

    def get_config(self):
        return {"penalty": self.penalty, "window": self.window}

    def __call__(self, logits, context, *, penalty, window):
        lower = ops.where(logits > 0, logits / penalty, logits * penalty)
        return ops.where(context.state > 0, lower, logits)


class _Subtracting(_Counting):
    """Takes a multiple of `strength` off the logits."""

    def __init__(self, strength, window):
        self.strength = check_number("strength", strength)
        self.window = check_integer("window", window, 1)

    def get_config(self):
        return {"strength": self.strength, "window": self.window}


@keras.saving.register_keras_serializable(package="keras_chargen")
class PresencePenalty(_Subtracting):
    """Takes a number off the logits of what was there.

    Source: OpenAI's API reference.

    Args:
        strength: Finite number; below 0 encourages.
        window: Positive integer, how many of the last characters count.
    """

    def __init__(self, strength=0.5, window=64):
        super().__init__(strength, window)

    def __call__(self, logits, context, *, strength, window):
        return logits - strength * ops.cast(context.state > 0, "float32")


@keras.saving.register_keras_serializable(package="keras_chargen")
class FrequencyPenalty(_Subtracting):
    """Takes a number off the logits for each time that an id was there.

    Source: OpenAI's API reference.

    Args:
        strength: Finite number; below 0 encourages.
        window: Positive integer, how many of the last characters count.
    """

    def __init__(self, strength=0.1, window=64):
        super().__init__(strength, window)

    def __call__(self, logits, context, *, strength, window):
        return logits - strength * context.state


class _Matching(LogitTransform):
    """Knows for each recent id how long a repetition it would continue.

    The state, int32 `(B, W)`, holds for each place of `context.recent` how
    many characters before it equal the last ones of the text.
    """

    def numbers(self, tokenizer):
        numbers = super().numbers(tokenizer)
        return {
            **numbers,
            "window": np.int32(self.window),
            "breaks": self.breaks(tokenizer),
        }

    def breaks(self, tokenizer):
        """Returns bool `(V,)`, the ids across which nothing matches."""
        return np.zeros(tokenizer.vocabulary_size(), bool)

    def initial_state(self, batch_size, vocabulary_size):
        return np.zeros((batch_size, recent_size(self.window)), "int32")

    def update(self, logits, ids, context, *, breaks, **numbers):
        # A match grows where the id before it, now one further left, is the
        # new last one of the text: both moves cancel.
        recent = context.recent[:, -context.state.shape[1] :]
        same = ops.logical_and(
            recent == ids[:, None],
            ops.logical_not(ops.take(breaks, ids))[:, None],
        )
        return ops.where(same, context.state + 1, 0)

    def longest(self, context, window, least, vocabulary_size):
        """Returns how long a match each id continues: float32 `(B, V)`.

        -1 where it is shorter than `least`, or the id was not there.
        """
        size = context.state.shape[1]
        recent = context.recent[:, -size:]
        inside = ops.arange(size) >= size - window
        lengths = ops.cast(ops.where(inside, context.state, -1), "float32")
        lengths = ops.where(lengths >= least, lengths, -1.0)
        nothing = ops.full((recent.shape[0], vocabulary_size), -1.0)

        def spread():
            here = recent[:, :, None] == ops.arange(vocabulary_size)
            # (B, W, V): most steps have nothing to look for, and skip it.
            return ops.max(ops.where(here, lengths[:, :, None], -1.0), axis=1)

        return ops.cond(ops.any(lengths >= 0), spread, lambda: nothing)


@keras.saving.register_keras_serializable(package="keras_chargen")
class DRY(_Matching):
    """Makes it ever harder to go on with a repetition, the longer it is.

    Source: "Don't Repeat Yourself", p-e-w, text-generation-webui #5677, 2024.

    An id that would continue a match of n characters, n >= `allowed_length`,
    loses `multiplier * base ** (n - allowed_length)`.

    Args:
        multiplier: Finite number >= 0.
        base: Finite number >= 1.
        allowed_length: Positive integer, characters that may match freely.
        window: Positive integer, how many of the last characters are looked
            at; the work grows with it.
        breakers: str of the characters across which nothing matches.
    """

    def __init__(
        self,
        multiplier=0.8,
        base=1.75,
        allowed_length=8,
        window=128,
        breakers="\n",
    ):
        self.multiplier = check_number("multiplier", multiplier, 0)
        self.base = check_number("base", base, 1)
        self.allowed_length = check_integer("allowed_length", allowed_length, 1)
        self.window = check_integer("window", window, 1)
        if not isinstance(breakers, str):
            raise ValueError(
                "`breakers` must be a str of characters. "
                f"Received: {breakers!r}"
            )
        self.breakers = breakers

    def get_config(self):
        return {
            "multiplier": self.multiplier,
            "base": self.base,
            "allowed_length": self.allowed_length,
            "window": self.window,
            "breakers": self.breakers,
        }

    def numbers(self, tokenizer):
        return {
            "multiplier": np.float32(self.multiplier),
            "growth": np.float32(np.log(self.base)),
            "allowed_length": np.float32(self.allowed_length),
            "window": np.int32(self.window),
            "breaks": self.breaks(tokenizer),
        }

    def breaks(self, tokenizer):
        breaks = super().breaks(tokenizer)
        known = [c for c in tokenizer.characters if c in self.breakers]
        breaks[[tokenizer.characters.index(c) + 1 for c in known]] = True
        return breaks

    def __call__(
        self,
        logits,
        context,
        *,
        multiplier,
        growth,
        allowed_length,
        window,
        breaks,
    ):
        beyond = (
            self.longest(context, window, allowed_length, logits.shape[-1])
            - allowed_length
        )
        power = ops.exp(ops.minimum(growth * beyond, math.log(_MOST)))
        return ops.where(beyond >= 0, logits - multiplier * power, logits)


@keras.saving.register_keras_serializable(package="keras_chargen")
class NoRepeatNGram(_Matching):
    """Forbids to write any n characters a second time.

    Source: Paulus et al., "A Deep Reinforced Model for Abstractive
    Summarization", 2018.

    Args:
        ngram_size: Positive integer n.
        window: Positive integer, how many of the last characters are looked
            at; the work grows with it.
    """

    def __init__(self, ngram_size=12, window=128):
        self.ngram_size = check_integer("ngram_size", ngram_size, 1)
        self.window = check_integer("window", window, 1)

    def get_config(self):
        return {"ngram_size": self.ngram_size, "window": self.window}

    def __call__(self, logits, context, *, ngram_size, window, breaks):
        longest = self.longest(
            context, window, ngram_size - 1, logits.shape[-1]
        )
        return ops.where(longest >= 0, -float("inf"), logits)


def recent_size(window):
    """Returns how many ids are kept for a window.

    Few shapes, so that compiled code serves several windows.
    """
    return max(16, round_up(window))
