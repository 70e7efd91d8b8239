"""Dynamic evaluation: a model that learns from a text as it reads it.

A stretch of characters is scored, and only then do the weights follow its
gradient, so every character is judged by a model that knows nothing of it
(Krause, Kahembwe, Murray & Renals, 2018, "Dynamic Evaluation of Neural
Sequence Models": their rule with RMS and decay). It is another measure than
that of `scoring`: report it apart.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_chargen import scoring
from keras_chargen.checks import check_integer, check_number
from keras_chargen.compilation import (
    compile_function,
    has_gradients,
    kept,
    value_and_gradients,
)
from keras_chargen.tokenizer import pad

# What an update is divided by is at least about this share of the mean.
_EPSILON = 0.1
# Root mean square of an update before the learning rate: at most this. A
# character that the measured stretches lack has updates a thousand times the
# usual, which may spoil the weights for good.
_LARGEST = 10.0
# Stretches of the training texts that are measured.
_MEASURED = 1000


def score(model, texts, **settings):
    """Scores texts, the model learning from each: see `DynamicEvaluation`.

    Args:
        model: `CharRNN`.
        texts: A str, or an iterable of str.
        **settings: As for `DynamicEvaluation`.

    Returns:
        A `Score` for a str, else a list of them, one a text.
    """
    evaluation = DynamicEvaluation(model, **settings)
    if isinstance(texts, str):
        return next(evaluation.iter_scores([texts]))
    return list(evaluation.iter_scores(texts))


class DynamicEvaluation:
    """Scores texts with weights that learn from what has been scored.

    With the gradient g of the mean nats of a stretch, the trained weights w0
    and the root r of the mean of g², the weights w move by

        -learning_rate * u / max(rms(u) / 10, 1)
        + min(decay * r / mean(r), 1) * (w0 - w)

    of u = g / (r + 0.1 * mean(r)), where `mean` and `rms`, the root of the
    mean of u², are over all weights; a stretch that a text's end cuts short
    counts for as much of it as it holds. r is that of stretches of the
    training texts if there are any, else of those read so far. The bound on
    rms(u) is that of Shazeer & Stern, 2018, "Adafactor: Adaptive Learning
    Rates with Sublinear Memory Cost".

    The weights of the model itself are never touched, and every call begins
    with them. Gradients need the backend TensorFlow, JAX or Torch.

    Args:
        model: `CharRNN`.
        training_texts: Optional str, or iterable of str, of which the first
            1,000 stretches are measured.
        learning_rate: Number >= 0; with 0 the scores are those of `scoring`.
        decay: Number from 0 to 1: how far a stretch takes a weight back to
            where training left it.
        segment_length: Positive integer, characters of a stretch. Shorter
            ones learn sooner, longer ones are quicker to read.

    Raises:
        ValueError: Where a setting is out of range, or the backend has no
            gradients.
    """

    def __init__(
        self,
        model,
        training_texts=None,
        learning_rate=3e-4,
        decay=1e-4,
        segment_length=20,
    ):
        if not has_gradients():
            raise ValueError(
                "dynamic evaluation needs gradients: the backend must be "
                "tensorflow, jax or torch. Received: "
                f"{keras.backend.backend()}"
            )
        self.model = model
        self.learning_rate = check_number("learning_rate", learning_rate, 0)
        self.decay = check_number("decay", decay, 0, 1)
        self.segment_length = check_integer("segment_length", segment_length, 1)
        self._measured = None
        if training_texts is not None:
            self._measured = self._measure(training_texts)

    def iter_scores(self, texts):
        """Yields a `Score` for each of an iterable of texts.

        They are read one after the other, each from the initial state, and
        the weights learn on from text to text: the order counts.
        """
        reader = _Reader(self, self._measured)
        for text in texts:
            total, parts = scoring.EMPTY._replace(texts=1), []
            for nats, dropped in reader.read([text]):
                total += scoring.part_score(nats, dropped)
                parts.append(nats)
            yield total._replace(surprisal=np.concatenate(parts))

    def stream_score(self, pieces):
        """Scores one stream given in pieces: as `scoring.stream_score`."""
        reader = _Reader(self, self._measured)
        scores = (scoring.part_score(*found) for found in reader.read(pieces))
        return sum(scores, scoring.EMPTY._replace(texts=1))

    def _measure(self, texts):
        reader = _Reader(self, None, learns=False)
        for text in [texts] if isinstance(texts, str) else texts:
            for _ in reader.read([text]):
                if reader.count == _MEASURED:
                    return reader.squares, reader.count
        return (reader.squares, reader.count) if reader.count else None


class _Reader:
    """The weights and the squares of gradients, from stretch to stretch."""

    def __init__(self, evaluation, measured, learns=True):
        self.model = evaluation.model
        self.length = evaluation.segment_length
        self.rates = np.array(
            [evaluation.learning_rate, evaluation.decay], "float32"
        ) * np.float32(learns)
        self.trained = [
            ops.convert_to_tensor(variable.value)
            for variable in self.model.trainable_variables
        ]
        self.weights = self.trained
        self.observes = measured is None
        self.squares: list
        self.count: int
        self.squares, self.count = measured or (
            [ops.zeros_like(weight) for weight in self.trained],
            0,
        )
        self.step = kept(
            self.model,
            "dynamic evaluation",
            lambda: compile_function(_learn(self.model)),
        )

    def read(self, pieces):
        """Yields the nats `(n,)` of each stretch, and what was left out."""
        state = scoring.initial_state(self.model, 1)
        for ids, dropped in scoring.stretches(self.model, pieces, self.length):
            known = len(ids) - 1
            counts = np.zeros((1, self.length), "float32")
            counts[:, :known] = 1
            self.count += self.observes and known > 0
            self.weights, self.squares, state, nats = self.step(
                self.weights,
                self.trained,
                self.squares,
                np.array([self.observes, max(self.count, 1)], "float32"),
                self.rates,
                pad([ids[:-1]], self.length, 1),
                pad([ids[1:]], self.length, 1),
                counts,
                state,
            )
            yield ops.convert_to_numpy(nats)[0, :known], dropped


def _learn(model):
    """Returns the function that reads a stretch and moves the weights."""

    def learn(
        weights, trained, squares, seen, rates, inputs, targets, counts, state
    ):
        def read(weights):
            values = zip(model.trainable_variables, weights, strict=True)
            with keras.StatelessScope(state_mapping=[*values]):
                logits, following = model.call_with_state(inputs, state)
            nats = scoring.surprisal(targets, logits)  # (1, T)
            return ops.sum(nats * counts), (nats, following)

        # The sum is what keeps small gradients from vanishing in float16.
        (_, (nats, following)), gradients = value_and_gradients(read, weights)
        gradients = [gradient / inputs.shape[1] for gradient in gradients]
        squares = [
            square + seen[0] * gradient * gradient
            for square, gradient in zip(squares, gradients, strict=True)
        ]
        roots = [ops.sqrt(square / seen[1]) for square in squares]
        size = sum(math.prod(root.shape) for root in roots)
        mean = sum(ops.sum(root) for root in roots) / size + 1e-12
        updates = [
            gradient / (root + _EPSILON * mean)
            for gradient, root in zip(gradients, roots, strict=True)
        ]
        largest = ops.sqrt(sum(ops.sum(u * u) for u in updates) / size)
        rate = rates[0] / ops.maximum(largest / _LARGEST, 1.0)
        # A stretch that is cut short counts for what it holds.
        share = ops.mean(counts)

        def back(relative):
            return share * ops.minimum(rates[1] * relative, 1.0)

        weights = [
            weight - rate * update + back(root / mean) * (start - weight)
            for weight, start, update, root in zip(
                weights, trained, updates, roots, strict=True
            )
        ]
        return weights, squares, following, nats

    return learn
