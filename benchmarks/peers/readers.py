"""What else turns a file into padded batches of integers, a text a row.

Each function opens the file anew and yields batches `(B, T)`, having learned
the characters from it first: what a user would do who trains on this file.
None shuffles or fits the widths, which ours does.
"""

import csv

from benchmarks.peers.notebook import LegacyTokenizer


def _texts(path, column):
    """Texts by Python's own means."""
    with open(
        path, encoding="utf-8", newline="\n" if column is None else ""
    ) as file:
        if column is None:
            for line in file:
                yield line.removesuffix("\n")
        else:
            for row in csv.reader(file):
                yield row[column]


def _dataset(path, column):
    """Texts by TensorFlow's own means."""
    import tensorflow as tf

    if column is None:
        return tf.data.TextLineDataset(path)
    return tf.data.experimental.CsvDataset(
        path, [tf.string], select_cols=[column]
    ).map(lambda text: text)


def text_vectorization(path, column, batch_size):
    """`keras.layers.TextVectorization`, in the graph."""
    import keras
    import tensorflow as tf

    texts = _dataset(path, column)
    layer = keras.layers.TextVectorization(
        standardize=None, split="character", output_mode="int"
    )
    layer.adapt(texts.batch(1024))
    return (
        texts.batch(batch_size)
        .map(layer, tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def string_lookup(path, column, batch_size):
    """`tf.strings.unicode_split` and `StringLookup`, in the graph."""
    import keras
    import tensorflow as tf

    texts = _dataset(path, column)
    layer = keras.layers.StringLookup(mask_token="")

    def split(texts):
        return tf.strings.unicode_split(texts, "UTF-8")

    layer.adapt(texts.batch(1024).map(split, tf.data.AUTOTUNE))
    return (
        texts.batch(batch_size)
        .map(lambda texts: layer(split(texts)).to_tensor(), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def character_tokenizer(texts):
    """A tokenizer of the `tokenizers` package whose words are characters."""
    from tokenizers import Tokenizer, models

    characters = sorted(set().union(*texts))
    vocabulary = {"<pad>": 0, **{c: i for i, c in enumerate(characters, 1)}}
    # Byte pairs without merges are characters: three times as fast here as
    # words split everywhere.
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.enable_padding()
    return tokenizer


class HuggingFace:
    """`tokenizers` at character level: batches on the host."""

    def __init__(self, path, column, batch_size):
        self.texts = list(_texts(path, column))
        self.tokenizer = character_tokenizer(self.texts)
        self.batch_size = batch_size

    def __iter__(self):
        import numpy as np

        for i in range(0, len(self.texts), self.batch_size):
            found = self.tokenizer.encode_batch_fast(
                self.texts[i : i + self.batch_size]
            )
            yield np.array([row.ids for row in found], "int32")


def legacy(path, column, batch_size):
    """The legacy Keras `Tokenizer` behind `py_function`."""
    import tensorflow as tf
    from keras.utils import pad_sequences

    tokenizer = LegacyTokenizer(_texts(path, column))

    def encode(texts):
        return pad_sequences(
            tokenizer.texts_to_sequences(
                [text.decode() for text in texts.numpy()]
            )
        )

    return (
        _dataset(path, column)
        .batch(batch_size)
        .map(lambda texts: tf.py_function(encode, [texts], tf.int32))
        .prefetch(tf.data.AUTOTUNE)
    )


def tutorial_windows(path, length, batch_size):
    """Windows as TensorFlow's tutorial on text generation makes them."""
    import keras
    import tensorflow as tf

    with open(path, encoding="utf-8") as file:
        text = file.read()
    layer = keras.layers.StringLookup(vocabulary=sorted(set(text)))
    ids = layer(tf.strings.unicode_split(text, "UTF-8"))
    return (
        tf.data.Dataset.from_tensor_slices(ids)
        .batch(length + 1, drop_remainder=True)
        .map(lambda ids: (ids[:-1], ids[1:]))
        .shuffle(10_000)
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
