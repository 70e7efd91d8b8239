"""Characters to ids and back."""

import sys

import keras
import numpy as np
from keras import ops

from keras_chargen.checks import check_choice

PADDING_ID = 0
EOS_TOKEN = "<eos>"
UNKNOWN_TOKEN = "<unk>"
REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
# Texts handled together, where one by one the calls would cost more than the
# work; not many more characters than this, so that they fit the cache.
BLOCK_TEXTS = 1024
BLOCK_CHARACTERS = 1 << 18


@keras.saving.register_keras_serializable(package="keras_chargen")
class CharTokenizer(keras.layers.Layer):
    """Maps the characters (Unicode code points) of a text to integer ids.

    Id 0 is padding. Characters are ids 1 to n by falling frequency, ties by
    first appearance, the order of the legacy Keras `Tokenizer`. `<eos>`, the
    boundary between texts, is n + 1. With `oov="unk"` one more id, n + 2,
    stands for characters that `adapt` never saw.

    Args:
        vocabulary: Optional list of distinct single characters, the order of
            which gives ids 1, 2, …. Without it, call `adapt`.
        oov: What becomes of a character outside the vocabulary: `"drop"` (it
            is left out), `"unk"` (the unknown id) or `"error"` (`ValueError`;
            inside a `tf.data` graph, `InvalidArgumentError`).
        **kwargs: `name` and the like, as for every Keras layer.

    Call arguments:
        inputs: A str or bytes, a (nested) list or NumPy array of them, or a
            `tf.Tensor` of strings. Bytes are read as UTF-8; invalid parts
            become U+FFFD.

    Returns:
        int32 ids, `(T,)` for one text and `(B, T)` for a batch, padded with 0
        on the right to the longest. A `tf.Tensor` gives a `tf.Tensor`, so the
        layer works in `tf.data` graphs under every backend; anything else
        gives a tensor of the active backend. No `<eos>` is added.

    Example:
    >>> tokenizer = CharTokenizer()
    >>> tokenizer.adapt(["hello", "help"])
    >>> tokenizer.get_vocabulary()
    ['', 'l', 'h', 'e', 'o', 'p', '<eos>']
    >>> tokenizer.detokenize(tokenizer("hole"))
    'hole'
    """

    def __init__(self, vocabulary=None, oov="drop", **kwargs):
        super().__init__(**kwargs)
        self.oov = check_choice("oov", oov, ("drop", "unk", "error"))
        self._characters = None
        self._table = None
        if vocabulary is not None:
            self._set_characters(vocabulary)

    def adapt(self, data):
        """Learns the vocabulary from texts, replacing what was known.

        Args:
            data: A str, an iterable of str or bytes (a list, a corpus), a
                NumPy array, or a `tf.data.Dataset` of (batches of) strings.

        Raises:
            ValueError: The data hold no character.
        """
        counts = CharacterCounts()
        for _ in counts.watch(_each_text(data)):
            pass
        self.adapt_counts(counts.by_character())

    def adapt_counts(self, counts):
        """Learns the vocabulary from a mapping of character to count.

        Args:
            counts: Mapping in order of first appearance, such as
                `CharacterCounts.by_character` gives.
        """
        if not counts:
            raise ValueError(
                "`adapt` needs at least one character. Received no text"
            )
        self._set_characters(sorted(counts, key=counts.get, reverse=True))

    def _set_characters(self, characters):
        characters = list(characters)
        for character in characters:
            if not isinstance(character, str) or len(character) != 1:
                raise ValueError(
                    "`vocabulary` must hold single characters. "
                    f"Received: {character!r}"
                )
        if len(set(characters)) < len(characters) or not characters:
            raise ValueError(
                "`vocabulary` must hold at least one character, each once. "
                f"Received {len(characters)}, {len(set(characters))} distinct"
            )
        self._characters = characters
        # Ids by code point: a lookup is one read. Code points past the end
        # share the last entry, so the table stays small enough for the cache.
        codes = [ord(character) for character in characters]
        unknown = len(characters) + 2 if self.oov == "unk" else -1
        self._table = np.full(max(codes) + 2, unknown, "int32")
        self._table[codes] = np.arange(1, len(codes) + 1)

    @property
    def characters(self):
        """The known characters in the order of their ids, from id 1."""
        if self._characters is None:
            raise ValueError(
                "This CharTokenizer has no vocabulary yet. Call "
                "`adapt(texts)` first"
            )
        return tuple(self._characters)

    @property
    def table(self):
        """Ids by code point, int32 `(P,)`; -1 is not in the vocabulary.

        The last entry serves all code points from P - 1 on.
        """
        self.characters  # noqa: B018 (raises before `adapt`)
        return self._table

    @property
    def eos_id(self):
        """The id of `<eos>`."""
        return len(self.characters) + 1

    @property
    def unknown_id(self):
        """The id of unknown characters, or None unless `oov="unk"`."""
        return self.eos_id + 1 if self.oov == "unk" else None

    def vocabulary_size(self):
        """Returns the number of ids, padding and `<eos>` included."""
        return len(self.characters) + 2 + (self.oov == "unk")

    def get_vocabulary(self):
        """Returns what each id stands for, a list of str; padding is `""`."""
        special = [EOS_TOKEN] + [UNKNOWN_TOKEN] * (self.oov == "unk")
        return ["", *self.characters, *special]

    def writable(self):
        """Returns bool `(V,)`: all ids but padding and the unknown id."""
        allowed = np.ones(self.vocabulary_size(), bool)
        allowed[PADDING_ID] = False
        if self.unknown_id is not None:
            allowed[self.unknown_id] = False
        return allowed

    def tokenize(self, inputs):
        """Maps texts to ids without padding, on the host.

        Args:
            inputs: A str or bytes, or a list or 1-D NumPy array of them.

        Returns:
            int32 NumPy array `(T,)`, or a list of them, one a text.
        """
        if isinstance(inputs, str | bytes):
            return self._tokenize_one(inputs)
        return [self._tokenize_one(text) for text in inputs]

    def _tokenize_one(self, text):
        text = _as_str(text)
        codes = _code_points(text)
        ids = self.table[np.minimum(codes, len(self.table) - 1)]
        if self.oov == "unk":
            return ids
        known = ids >= 0
        if known.all():
            return ids
        if self.oov == "error":
            unknown = sorted({text[i] for i in np.flatnonzero(~known)})
            raise ValueError(
                f"Text holds characters outside the vocabulary: {unknown!r}. "
                'Use oov="drop" or oov="unk" to accept them'
            )
        return ids[known]

    def detokenize(self, ids):
        """Maps ids back to text: skips padding, stops at `<eos>`.

        Args:
            ids: Integers, `(T,)` for one text or `(B, T)` (or a list of
                sequences of any lengths) for several: any backend's tensor,
                a NumPy array or a list. An unknown id reads U+FFFD.

        Returns:
            A str, or a list of str.

        Raises:
            ValueError: An id is outside `[0, vocabulary_size())`.
        """
        if not isinstance(ids, list | tuple):
            ids = _as_numpy(ids)
        if len(ids) and np.ndim(ids[0]) > 0:
            return [self._detokenize_one(row) for row in ids]
        if getattr(ids, "ndim", 1) == 2:
            return []
        return self._detokenize_one(ids)

    def _detokenize_one(self, ids):
        ids = np.asarray(_as_numpy(ids), "int64")
        size = self.vocabulary_size()
        if ids.size and (ids.min() < 0 or ids.max() >= size):
            raise ValueError(
                f"ids must be from 0 to {size - 1}. Received ids from "
                f"{ids.min()} to {ids.max()}"
            )
        ends = np.flatnonzero(ids == self.eos_id)
        ids = ids[: ends[0]] if ends.size else ids
        text = ["", *self.characters, "", REPLACEMENT_CHARACTER]
        return "".join([text[i] for i in ids])

    def __call__(self, inputs, **kwargs):
        if isinstance(inputs, keras.KerasTensor):
            return super().__call__(inputs, **kwargs)
        # Strings are no backend tensors, so the usual conversion of a
        # layer's inputs is passed by.
        return self.call(inputs)

    def call(self, inputs):
        if _is_tensorflow(inputs):
            from keras_chargen import graph_text

            return graph_text.padded_ids(inputs, self)
        return ops.convert_to_tensor(self._padded(inputs))

    def _padded(self, inputs):
        if isinstance(inputs, str | bytes):
            return self._tokenize_one(inputs)
        inputs = np.asarray(inputs, dtype=object)
        if inputs.ndim == 0:
            return self._tokenize_one(inputs.item())
        ids = pad(self.tokenize(inputs.reshape(-1)))
        return ids.reshape(*inputs.shape, ids.shape[1])

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((*inputs.shape, None), dtype="int32")

    def get_config(self):
        characters = self._characters
        config = super().get_config()
        config.update(
            vocabulary=None if characters is None else list(characters),
            oov=self.oov,
        )
        return config


class CharacterCounts:
    """Counts texts and their characters as they pass by.

    Attributes:
        texts: Integer, how many passed.
        characters: Integer, how many characters they have together.
    """

    def __init__(self):
        self.texts = 0
        self.characters = 0
        self._order = {}  # keys: characters as they first appeared
        self._known = np.zeros(0, bool)  # by code point, as are the counts
        self._counts = np.zeros(0, "int64")

    def watch(self, texts):
        """Yields the texts, an iterable of str, once they are counted."""
        for block in blocks(texts):
            self.texts += len(block)
            joined = "".join(block)
            for start in range(0, len(joined), BLOCK_CHARACTERS):
                self._add(joined[start : start + BLOCK_CHARACTERS])
            yield from block

    def _add(self, text):
        self.characters += len(text)
        counts = np.bincount(_code_points(text))
        missing = len(counts) - len(self._counts)
        if missing > 0:
            self._counts = np.pad(self._counts, (0, missing))
            self._known = np.pad(self._known, (0, missing))
        present = np.flatnonzero(counts)
        self._counts[: len(counts)] += counts
        if not self._known[present].all():
            self._order.update(dict.fromkeys(text))
            self._known[present] = True

    def by_character(self):
        """Returns a dict of counts, in the order of first appearance."""
        return {c: int(self._counts[ord(c)]) for c in self._order}


def blocks(texts):
    """Cuts an iterable of texts into lists of `BLOCK_TEXTS`, fewer if long."""
    block, size = [], 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= BLOCK_CHARACTERS or len(block) == BLOCK_TEXTS:
            yield block
            block, size = [], 0
    if block:
        yield block


def pad(rows, length=None, count=None):
    """Stacks id sequences into one int32 array, padded with 0 on the right.

    Args:
        rows: List of 1-D integer arrays.
        length: Width of the result; by default that of the longest row.
        count: Number of rows of the result; by default `len(rows)`.

    Returns:
        int32 `(count, length)`.
    """
    if length is None:
        length = max((len(row) for row in rows), default=0)
    batch = np.zeros((len(rows) if count is None else count, length), "int32")
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
    return batch


def _code_points(text):
    # surrogatepass: a lone surrogate is a code point like any other here.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _as_str(text):
    if isinstance(text, str):
        return text
    if isinstance(text, bytes):
        return text.decode("utf-8", "replace")
    raise ValueError(
        f"A text must be a str or bytes. Received: {type(text).__name__}"
    )


def _each_text(data):
    if isinstance(data, str | bytes):
        yield _as_str(data)
        return
    if _is_dataset(data) and getattr(data.element_spec, "shape", None) == ():
        data = data.batch(BLOCK_TEXTS)
    for item in data:
        if isinstance(item, str | bytes):
            yield _as_str(item)
            continue
        # The question costs more than a text, so it comes last.
        if _is_tensorflow(item):
            item = item.numpy()
        yield from map(_as_str, np.asarray(item, object).reshape(-1))


def _as_numpy(ids):
    if isinstance(ids, np.ndarray | list | tuple):
        return ids
    if _is_tensorflow(ids):
        return ids.numpy()
    return ops.convert_to_numpy(ids)


def _is_dataset(value):
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(value, tensorflow.data.Dataset)


def _is_tensorflow(value):
    # Asks without importing TensorFlow: no such tensor exists before that.
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and tensorflow.is_tensor(value)
