"""A model that spells a word: it needs no Keras model and no training."""

import numpy as np
from keras import ops

from keras_chargen import CharTokenizer

WORD = "characters"


class Speller:
    """Writes on along a word; it needs no Keras model."""

    def __init__(self, word=WORD, oov="drop"):
        self.tokenizer = CharTokenizer([*dict.fromkeys(word)], oov=oov)
        ids = self.tokenizer.tokenize(word)
        self.table = np.append(ids, self.tokenizer.eos_id).astype("int32")
        self.steps = 0

    def initial_state(self, batch_size):
        return (ops.zeros((batch_size,), "int32"),)

    def step(self, ids, state):
        """The state counts what was read since the first `<eos>`."""
        self.steps += 1
        (place,) = state
        following = ops.take(self.table, ops.minimum(place, len(WORD)))
        ids = ops.arange(self.tokenizer.vocabulary_size(), dtype="int32")
        logits = 5.0 * ops.cast(following[:, None] == ids, "float32")
        return logits, (place + 1,)
