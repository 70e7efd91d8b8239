"""Characters to ids as TensorFlow graph ops, for `tf.data` under any backend.

A gather over a table of code points: tens of millions of characters a second
and core (`benchmarks/reading.py`), where a hash table lookup reaches a few.
"""

import numpy as np
import tensorflow as tf

SEPARATOR = b"\xff"  # stands between texts: no byte of valid UTF-8
_NO_CHARACTER = -2  # in place of a byte that goes on with a character


def ragged_ids(texts, tokenizer):
    """Maps a batch of texts to ids.

    Args:
        texts: String tensor `(N,)`, UTF-8; invalid parts become U+FFFD.
        tokenizer: Adapted `CharTokenizer`.

    Returns:
        int32 `tf.RaggedTensor` `(N, None)`.
    """
    codes = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
    ids = _look_up(codes.flat_values, tokenizer)
    if tokenizer.oov == "error":
        ids = _checked(ids, ids >= 0)
    rows = codes.with_flat_values(ids)
    if tokenizer.oov == "drop":
        # Masking costs as much as the lookup: only where there is a reason.
        rows = tf.cond(
            tf.reduce_all(ids >= 0),
            lambda: rows,
            lambda: tf.ragged.boolean_mask(rows, rows >= 0),
        )
    return rows


def stream_ids(texts, tokenizer, separated=True):
    """Maps texts to one sequence of ids.

    Args:
        texts: String tensor `(N,)`, valid UTF-8.
        tokenizer: Adapted `CharTokenizer`.
        separated: Whether `<eos>` follows each text.

    Returns:
        int32 `(M,)`.
    """
    separator = SEPARATOR if separated else b""
    text = tf.strings.reduce_join(texts, separator=separator)
    text += tf.where(tf.size(texts) > 0, separator, b"")
    data = tf.io.decode_raw(text, tf.uint8)
    table = tokenizer.table
    by_byte = np.full(256, _NO_CHARACTER, "int32")
    by_byte[:128] = table[np.minimum(np.arange(128), len(table) - 1)]
    by_byte[SEPARATOR[0]] = tokenizer.eos_id
    ids = tf.gather(by_byte, tf.cast(data, tf.int32))
    # Most characters are single bytes and known, so the others are looked for
    # and put in: a fifth of the time of decoding all of them.
    return tf.cond(
        tf.reduce_all(ids >= 0),
        lambda: ids,
        lambda: _with_long_characters(ids, data, tokenizer),
    )


def _with_long_characters(ids, data, tokenizer):
    """Looks up the characters of several bytes, and does as `oov` says."""
    places = tf.where((data >= 0xC0) & (data != SEPARATOR[0]))
    data = tf.cast(tf.pad(data, [[0, 3]]), tf.int32)
    found = tf.gather(data, places + tf.range(4, dtype=tf.int64))  # (N, 4)
    # The first byte tells the length: here 0 for two bytes, 2 for four.
    length = tf.searchsorted([0xE0, 0xF0], found[:, 0], side="right")
    bits = tf.gather([[32, *[64] * 3], [16, *[64] * 3], [8, *[64] * 3]], length)
    shifts = [[64, 1, 0, 0], [64**2, 64, 1, 0], [64**3, 64**2, 64, 1]]
    code = tf.reduce_sum(found % bits * tf.gather(shifts, length), axis=1)
    ids = tf.tensor_scatter_nd_update(ids, places, _look_up(code, tokenizer))
    if tokenizer.oov == "error":
        ids = _checked(ids, ids != -1)
    return ids[ids >= 0]


def padded_ids(texts, tokenizer):
    """As `ragged_ids`, for texts of any rank: `(…)` → int32 `(…, T)`."""
    texts = tf.convert_to_tensor(texts)
    ids = ragged_ids(tf.reshape(texts, [-1]), tokenizer).to_tensor()
    shape = tf.concat([tf.shape(texts), [tf.shape(ids)[1]]], 0)
    ids = tf.reshape(ids, shape)
    ids.set_shape([*texts.shape, None])
    return ids


def _look_up(codes, tokenizer):
    table = tokenizer.table
    return tf.gather(table, tf.minimum(codes, len(table) - 1))


def _checked(ids, known):
    check = tf.debugging.assert_equal(
        tf.reduce_all(known),
        True,
        "Text holds characters outside the vocabulary",
    )
    with tf.control_dependencies([check]):
        return tf.identity(ids)
