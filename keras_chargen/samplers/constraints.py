"""Transforms that say which characters may, must or shall come."""

import keras
import numpy as np
from keras import ops

from keras_chargen.checks import check_integer, check_number
from keras_chargen.samplers.base import LogitTransform
from keras_chargen.tokenizer import EOS_TOKEN

OUT = -float("inf")


@keras.saving.register_keras_serializable(package="keras_chargen")
class LogitBias(LogitTransform):
    """Adds a number to the logits of some characters.

    Args:
        biases: Dict of character to finite number; the key `"<eos>"` is the
            end of a text.

    Raises:
        ValueError: Another key or value; in `numbers`, a character outside
            the vocabulary.
    """

    def __init__(self, biases):
        if not isinstance(biases, dict):
            raise ValueError(
                "`biases` must be a dict of character to number. "
                f"Received: {biases!r}"
            )
        for key in biases:
            if not isinstance(key, str) or (len(key) != 1 and key != EOS_TOKEN):
                raise ValueError(
                    "`biases` must have single characters (or "
                    f"{EOS_TOKEN!r}) as keys. Received: {key!r}"
                )
        self.biases = {k: check_number("biases", v) for k, v in biases.items()}

    def get_config(self):
        return {"biases": self.biases}

    def numbers(self, tokenizer):
        places = {c: i + 1 for i, c in enumerate(tokenizer.characters)}
        places[EOS_TOKEN] = tokenizer.eos_id
        bias = np.zeros(tokenizer.vocabulary_size(), "float32")
        for key, value in self.biases.items():
            if key not in places:
                raise ValueError(
                    "`biases` names a character outside the vocabulary: "
                    f"{key!r}"
                )
            bias[places[key]] = value
        return {"bias": bias}

    def __call__(self, logits, context, *, bias):
        return logits + bias


class _Allowing(LogitTransform):
    """Leaves out what `allowed` says."""

    def __init__(self, characters):
        if not isinstance(characters, str) or not characters:
            raise ValueError(
                "`characters` must be a non-empty str. "
                f"Received: {characters!r}"
            )
        self.characters = characters

    def get_config(self):
        return {"characters": self.characters}

    def allowed(self, tokenizer):
        """Returns bool `(V,)`."""
        raise NotImplementedError

    def numbers(self, tokenizer):
        allowed = self.allowed(tokenizer)
        if not (allowed & tokenizer.writable())[: tokenizer.eos_id].any():
            raise ValueError(
                f"{self!r} leaves no character of the vocabulary to write"
            )
        return {"allowed": allowed}

    def __call__(self, logits, context, *, allowed):
        return ops.where(allowed, logits, OUT)

    def _among(self, tokenizer):
        among = np.zeros(tokenizer.vocabulary_size(), bool)
        for i, character in enumerate(tokenizer.characters):
            among[i + 1] = character in self.characters
        return among


@keras.saving.register_keras_serializable(package="keras_chargen")
class BanCharacters(_Allowing):
    """Forbids characters.

    Args:
        characters: Non-empty str; what the model does not know is left out.
    """

    def allowed(self, tokenizer):
        return ~self._among(tokenizer)


@keras.saving.register_keras_serializable(package="keras_chargen")
class AllowCharacters(_Allowing):
    """Forbids all characters but some; a text may still end.

    Args:
        characters: Non-empty str; what the model does not know is left out.
    """

    def allowed(self, tokenizer):
        allowed = self._among(tokenizer)
        allowed[tokenizer.eos_id] = True
        return allowed


@keras.saving.register_keras_serializable(package="keras_chargen")
class MinLength(LogitTransform):
    """Holds `<eos>` back until enough characters are written.

    Args:
        min_new_tokens: Non-negative integer.
    """

    def __init__(self, min_new_tokens):
        self.min_new_tokens = check_integer("min_new_tokens", min_new_tokens, 0)

    def get_config(self):
        return {"min_new_tokens": self.min_new_tokens}

    def numbers(self, tokenizer):
        ends = np.zeros(tokenizer.vocabulary_size(), bool)
        ends[tokenizer.eos_id] = True
        return {"min_new_tokens": np.int32(self.min_new_tokens), "ends": ends}

    def __call__(self, logits, context, *, min_new_tokens, ends):
        early = (context.position < min_new_tokens)[:, None]
        return ops.where(ops.logical_and(early, ends), OUT, logits)
