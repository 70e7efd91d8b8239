"""What a logit transform is, and what it may look at."""

from typing import Any, NamedTuple

import numpy as np


class Context(NamedTuple):
    """What a transform may look at besides the logits.

    Attributes:
        position: int32 `(B,)`, characters written in each row so far.
        recent: int32 `(B, W)`, the last ids of each row's text, prompt
            included, newest last; 0 where the text is shorter. W is at least
            the `window` of every transform of the chain.
        chance: float32 `(B,)` in [0, 1), a number of this step for what
            happens by chance; None unless `LogitTransform.uses_chance`.
        writes: bool `(B,)`, whether the row writes; else it reads its prompt.
        state: What the transform's own `initial_state` and `update` gave.
    """

    position: Any
    recent: Any = None
    chance: Any = None
    writes: Any = None
    state: Any = ()


class LogitTransform:
    """Base of the pure functions from logits to logits.

    A subclass takes its numbers in `__init__`, returns them from
    `get_config`, and receives them back in `__call__` as tensors, so that
    compiled code serves every value. A forbidden id gets `-inf`; where a
    chain forbids all ids of a row, the row's logits stay as they came.

    Attributes:
        window: Integer, how many of the last ids `context.recent` must hold.
        uses_chance: Whether `context.chance` is needed.
    """

    window = 0
    uses_chance = False

    def get_config(self):
        """Returns the arguments of this transform by name."""
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def numbers(self, tokenizer):
        """Returns what `__call__` and `update` take by name, as NumPy arrays.

        Args:
            tokenizer: The model's `CharTokenizer`, for what speaks of
                characters.
        """
        return {k: np.float32(v) for k, v in self.get_config().items()}

    def signature(self):
        """Returns a hashable that is equal where compiled code can serve."""
        # What is not handed to `__call__` as a tensor is part of the code.
        config = self.get_config()
        code = {k: v for k, v in vars(self).items() if k not in config}
        return (type(self), repr(sorted(code.items())))

    def initial_state(self, batch_size, vocabulary_size):
        """Returns NumPy arrays `(B, …)`, nested; `()` where none is kept."""
        return ()

    def update(self, logits, ids, context, **numbers):
        """Returns the state after a step.

        Args:
            logits: float32 `(B, V)`, what `__call__` gave in this step.
            ids: int32 `(B,)`, what follows: read or written.
            context: `Context` as `__call__` saw it.
            **numbers: As for `__call__`.
        """
        return context.state

    def __call__(self, logits, context, **numbers):
        """Maps float32 `(B, V)` to float32 `(B, V)`."""
        raise NotImplementedError

    def __repr__(self):
        numbers = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({numbers})"
