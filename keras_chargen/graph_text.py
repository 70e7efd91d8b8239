"""Characters to ids as TensorFlow graph ops, for `tf.data` under any backend.

A gather over a table of code points: 20 million characters/s and more per core
(`benchmarks/throughput.py`), where a hash table lookup reaches a few.
"""

import tensorflow as tf


def ragged_ids(texts, tokenizer):
    """Maps a batch of texts to ids.

    Args:
        texts: String tensor `(N,)`, UTF-8; invalid parts become U+FFFD.
        tokenizer: Adapted `CharTokenizer`.

    Returns:
        int32 `tf.RaggedTensor` `(N, None)`.
    """
    codes = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
    table = tokenizer.table
    ids = tf.gather(table, tf.minimum(codes.flat_values, len(table) - 1))
    if tokenizer.oov == "error":
        with tf.control_dependencies(
            [
                tf.debugging.assert_non_negative(
                    ids, "Text holds characters outside the vocabulary"
                )
            ]
        ):
            ids = tf.identity(ids)
    rows = codes.with_flat_values(ids)
    if tokenizer.oov == "drop":
        # Masking costs as much as the lookup: only where there is a reason.
        rows = tf.cond(
            tf.reduce_all(ids >= 0),
            lambda: rows,
            lambda: tf.ragged.boolean_mask(rows, rows >= 0),
        )
    return rows


def padded_ids(texts, tokenizer):
    """As `ragged_ids`, for texts of any rank: `(…)` → int32 `(…, T)`."""
    texts = tf.convert_to_tensor(texts)
    ids = ragged_ids(tf.reshape(texts, [-1]), tokenizer).to_tensor()
    shape = tf.concat([tf.shape(texts), [tf.shape(ids)[1]]], 0)
    ids = tf.reshape(ids, shape)
    ids.set_shape([*texts.shape, None])
    return ids
