"""How likely texts are under a model: log-probabilities, bits per character."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_chargen.checks import check_integer, check_share
from keras_chargen.compilation import compile_function, kept
from keras_chargen.devices import mean_of_batch, sum_of_batch
from keras_chargen.tokenizer import EOS_TOKEN, PADDING_ID, pad

WINDOW = 256  # characters that a model reads at once; the state goes on
_SHORTEST = 16


class Score(NamedTuple):
    """What `score` says of texts, one or several together.

    Attributes:
        texts: Number of texts.
        characters: Number of characters scored, each text's closing `<eos>`
            among them; an unknown character that `oov="drop"` left out is
            not.
        dropped: Number of characters left out.
        nats: Sum of the negative natural log-probabilities.
        surprisal: Of one text, float32 `(characters,)`, the nats of each;
            None for several together.
    """

    texts: int
    characters: int
    dropped: int
    nats: float
    surprisal: Any = None

    @property
    def nats_per_character(self):
        """Mean nats, NaN where nothing was scored."""
        return self.nats / self.characters if self.characters else math.nan

    @property
    def bits_per_character(self):
        """Mean nats / ln 2, NaN where nothing was scored."""
        return self.nats_per_character / math.log(2)

    @property
    def perplexity(self):
        """exp(mean nats), inf where that is too large for a float."""
        try:
            return math.exp(self.nats_per_character)
        except OverflowError:
            return math.inf

    def __add__(self, other):
        return Score(*(a + b for a, b in zip(self[:4], other[:4], strict=True)))


EMPTY = Score(0, 0, 0, 0.0)


def part_score(nats, dropped=0, texts=0):
    """Returns a `Score` of the nats `(n,)` of a part of a text."""
    return Score(texts, len(nats), dropped, float(nats.sum(dtype="float64")))


def score(model, texts, batch_size=64):
    """Scores texts of any length.

    A text longer than `WINDOW` is read in parts with the state carried, so
    the figures do not depend on how it was cut.

    Args:
        model: `CharRNN`.
        texts: A str, or an iterable of str; it is read batch by batch.
        batch_size: Positive integer, texts read side by side.

    Returns:
        A `Score` for a str, else a list of them, one a text.
    """
    if isinstance(texts, str):
        return next(iter_scores(model, [texts], batch_size))
    return list(iter_scores(model, texts, batch_size))


def iter_scores(model, texts, batch_size=64):
    """Yields a `Score` for each of an iterable of texts, in their order."""
    batch_size = check_integer("batch_size", batch_size, 1)
    return _iter_scores(model, texts, batch_size)


def _iter_scores(model, texts, batch_size):
    waiting = []
    for text in texts:
        waiting.append(text)
        # A wide look-ahead, so that texts of like lengths share a batch.
        if len(waiting) == 16 * batch_size:
            yield from _score_block(model, waiting, batch_size)
            waiting = []
    yield from _score_block(model, waiting, batch_size)


def _score_block(model, texts, batch_size):
    ids = model.tokenizer.tokenize(texts)
    targets = [_with_boundaries(model, row) for row in ids]
    order = sorted(range(len(texts)), key=lambda i: len(targets[i]))
    results = [EMPTY] * len(texts)
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        rows = [targets[i] for i in places]
        for i, nats in zip(
            places, _surprisal(model, rows, batch_size), strict=True
        ):
            dropped = len(texts[i]) - len(ids[i])
            results[i] = part_score(nats, dropped, 1)._replace(surprisal=nats)
    return results


def align(model, text, score):
    """Says which character of a text has which surprisal.

    Args:
        model: `CharRNN`.
        text: str.
        score: What `score` said of it.

    Returns:
        List of `(character, nats)`, the last one `"<eos>"`; nats is None for
        a character that was not scored: left out as unknown, or the first
        input of a model with `start=False`.
    """
    tokenizer = model.tokenizer
    known = set(tokenizer.characters)
    read = [c in known or tokenizer.unknown_id is not None for c in text]
    if not model.start and True in read:
        read[read.index(True)] = False
    nats = iter(score.surprisal.tolist())
    pairs = [
        (c, next(nats) if was_read else None)
        for c, was_read in zip(text, read, strict=True)
    ]
    return [*pairs, (EOS_TOKEN, next(nats, None))]


def stream_score(model, pieces):
    """Scores one stream given in pieces, such as a file of any size.

    Args:
        model: `CharRNN`.
        pieces: Iterable of str; joined they are the stream.

    Returns:
        A `Score`; the stream counts as one text.
    """
    state = initial_state(model, 1)
    total = Score(1, 0, 0, 0.0)
    for ids, dropped in stretches(model, pieces, WINDOW):
        nats, state = _read(model, [ids], WINDOW, 1, state)
        nats = nats[0, : max(len(ids) - 1, 0)]
        total += part_score(nats, dropped)
    return total


def block_score(
    model, pieces, block_length=256, blocks=None, seed=0, batch_size=64
):
    """Scores blocks of a stream, each read without what stands before it.

    The measure of nanoGPT: a block is read from the initial state, its first
    character is only an input, and all others and the one after it count.
    Early characters of a block have little to go by, so figures are higher
    than those of `stream_score`.

    Args:
        model: `CharRNN`.
        pieces: A str, or an iterable of str that joined are the stream. It is
            kept in memory, as ids.
        block_length: Positive integer, characters of a block that count.
        blocks: Positive integer, how many at random places, which may
            overlap; None takes all that follow one another, so that every
            character of the stream but its first counts once.
        seed: Non-negative integer, of the places.
        batch_size: Positive integer, blocks read side by side.

    Returns:
        A `Score`, where a block counts as a text.

    Raises:
        ValueError: Where the stream is not longer than a block, or an
            argument is out of range.
    """
    block_length = check_integer("block_length", block_length, 1)
    batch_size = check_integer("batch_size", batch_size, 1)
    if blocks is not None:
        blocks = check_integer("blocks", blocks, 1)
    seed = check_integer("seed", seed, 0)
    length, parts = 0, []
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        length += len(piece)
        parts.append(model.tokenizer.tokenize(piece))
    ids = np.concatenate(parts) if parts else np.zeros(0, "int32")
    if len(ids) <= block_length:
        raise ValueError(
            f"a block of {block_length} needs a stream that is longer. "
            f"Received: {len(ids)} known characters"
        )
    if blocks is None:
        places = np.arange(0, len(ids) - 1, block_length)
    else:
        # As nanoGPT draws them.
        last = len(ids) - block_length
        places = np.random.default_rng(seed).integers(last, size=blocks)
    total = Score(0, 0, length - len(ids), 0.0)
    for first in range(0, len(places), batch_size):
        rows = [
            ids[place : place + block_length + 1]
            for place in places[first : first + batch_size]
        ]
        for nats in _surprisal(model, rows, batch_size):
            total += part_score(nats, texts=1)
    return total


def stretches(model, pieces, length):
    """Cuts a stream into rows of ids, of which each begins with the last's end.

    Args:
        model: `CharRNN`.
        pieces: Iterable of str; joined they are the stream.
        length: Positive integer, how many ids of a row are scored at most:
            all but its first.

    Yields:
        Ids int32, `(length + 1,)` or in the last row fewer, and the number of
        characters left out since the last row.
    """
    tokenizer = model.tokenizer
    eos = np.full(1, tokenizer.eos_id, "int32")
    left, dropped = eos if model.start else eos[:0], 0
    for piece in pieces:
        ids = tokenizer.tokenize(piece)
        dropped += len(piece) - len(ids)
        left = np.append(left, ids)
        first = 0
        while len(left) - first > length:
            yield left[first : first + length + 1], dropped
            first, dropped = first + length, 0
        left = left[first:]
    # What is left has one id at least: no more than `length` with the `<eos>`.
    yield np.append(left, eos), dropped


def _with_boundaries(model, ids):
    eos = [model.tokenizer.eos_id]
    parts = [eos, ids, eos] if model.start else [ids, eos]
    return np.concatenate(parts).astype("int32")


def _surprisal(model, rows, size):
    """Returns nats, float32, for each row from its second id on."""
    longest = max(len(row) for row in rows) - 1
    # Few shapes, so that compiled code serves again: 16, 32, … WINDOW.
    width = _SHORTEST
    while width < min(longest, WINDOW):
        width *= 2
    state = initial_state(model, size)
    parts = []
    for first in range(0, max(longest, 1), width):
        piece = [row[first : first + width + 1] for row in rows]
        nats, state = _read(model, piece, width, size, state)
        parts.append(nats)
    nats = np.concatenate(parts, axis=1)
    return [nats[i, : len(row) - 1] for i, row in enumerate(rows)]


def _read(model, rows, width, size, state):
    inputs = pad([row[:-1] for row in rows], width, size)
    targets = pad([row[1:] for row in rows], width, size)
    nats, state = _program(model)(inputs, targets, state)
    return ops.convert_to_numpy(nats), state


def initial_state(model, size):
    """Returns `model.initial_state(size)` as NumPy arrays."""
    return keras.tree.map_structure(
        ops.convert_to_numpy, model.initial_state(size)
    )


def _program(model):
    def read(inputs, targets, state):
        logits, state = model.call_with_state(inputs, state)
        return surprisal(targets, logits), state

    return kept(model, "score", lambda: compile_function(read, model.variables))


def surprisal(targets, logits):
    """Returns nats: -ln of the probability of each target.

    Args:
        targets: Integer `(…)`.
        logits: Float `(…, V)`.

    Returns:
        float32 `(…)`.
    """
    logits = ops.cast(logits, "float32")
    targets = ops.cast(targets, "int32")
    if keras.backend.backend() == "torch":
        # Torch has it as one pass, where classes are the last axis of two.
        nats = ops.sparse_categorical_crossentropy(
            ops.reshape(targets, (-1,)),
            ops.reshape(logits, (-1, logits.shape[-1])),
            from_logits=True,
        )
        return ops.reshape(nats, targets.shape)
    chosen = ops.take_along_axis(logits, targets[..., None], axis=-1)
    return ops.logsumexp(logits, axis=-1) - chosen[..., 0]


@keras.saving.register_keras_serializable(package="keras_chargen")
class Crossentropy(keras.losses.Loss):
    """Crossentropy in nats, the mean over the characters that count.

    What `keras.losses.SparseCategoricalCrossentropy` gives from logits; under
    Torch a step of training takes 3 % less time with this one.

    Args:
        reduction: As for every Keras loss.
        label_smoothing: Number in [0, 1), share of each target that is spread
            evenly over all characters (Szegedy et al., 2016).
        **kwargs: `name`, `dtype`.
    """

    def __init__(
        self,
        reduction="mean_with_sample_weight",
        label_smoothing=0.0,
        **kwargs,
    ):
        super().__init__(reduction=reduction, **kwargs)
        self.label_smoothing = check_share("label_smoothing", label_smoothing)

    def __call__(self, y_true, y_pred, sample_weight=None):
        loss = super().__call__(y_true, y_pred, sample_weight)
        if sample_weight is None or self.reduction != "mean_with_sample_weight":
            return loss
        return mean_of_batch(loss, ops.sum(sample_weight))

    def call(self, y_true, y_pred):
        """Returns nats `(B, T)` of targets `(B, T)`, logits `(B, T, V)`."""
        nats = surprisal(y_true, y_pred)
        if not self.label_smoothing:
            return nats
        logits = ops.cast(y_pred, "float32")
        even = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
        return nats + self.label_smoothing * (even - nats)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable(package="keras_chargen")
class BitsPerCharacter(keras.metrics.Metric):
    """Mean bits that the model needs for a character that counts.

    Sums over all batches and divides once, so batches of any shape weigh
    what they hold. Padding (target 0) never counts.

    Args:
        name: Name in the logs.
        dtype: dtype of the sums, float32 by default.
    """

    def __init__(self, name="bits_per_character", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.bits = self.add_variable((), initializer="zeros", name="bits")
        self.characters = self.add_variable(
            (), initializer="zeros", name="characters"
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch.

        Args:
            y_true: Integer targets `(B, T)`.
            y_pred: Logits `(B, T, V)`.
            sample_weight: Optional `(B, T)` or `(B, 1)`.
        """
        weights = _weights(y_true, sample_weight, self.dtype)
        nats = ops.cast(surprisal(y_true, y_pred), self.dtype)
        # where, for 0 times an infinite surprisal is NaN.
        nats = ops.where(weights > 0, nats, ops.zeros_like(nats)) * weights
        self.bits.assign_add(ops.sum(nats) / math.log(2))
        self.characters.assign_add(ops.sum(weights))

    def result(self):
        return self.bits / ops.maximum(self.characters, 1e-7)


@keras.saving.register_keras_serializable(package="keras_chargen")
class CharacterCount(keras.metrics.Metric):
    """Characters seen so far in an epoch (targets with a weight)."""

    def __init__(self, name="characters", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.count = self.add_variable((), initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch; see `BitsPerCharacter.update_state`."""
        weights = _weights(y_true, sample_weight, self.dtype)
        self.count.assign_add(ops.sum(ops.cast(weights > 0, self.dtype)))

    def result(self):
        # A value of its own: the variable goes back to 0 when a validation
        # begins, before the logs are read.
        return sum_of_batch(self.count + 0.0)


def _weights(y_true, sample_weight, dtype):
    weights = ops.cast(ops.not_equal(y_true, PADDING_ID), dtype)
    if sample_weight is not None:
        weights = weights * ops.cast(sample_weight, dtype)
    return weights
