"""Texts to batches of ids: a `tf.data` pipeline for every backend.

After the texts are in a dataset (`text_dataset`) only graph ops follow, so
batches are made in parallel with training and no Python runs in between.
"""

import itertools
import os
import shutil
import tempfile
import weakref

import numpy as np
import tensorflow as tf

from keras_chargen.checks import check_integer, check_number
from keras_chargen.corpora import hide_gpus_from_tensorflow
from keras_chargen.graph_text import ragged_ids

hide_gpus_from_tensorflow()

MEMORY_BYTES = 1 << 26  # texts beyond this go to a temporary file
SHUFFLE_TEXTS = 1 << 17  # texts, or windows, shuffled among each other
MAX_BUCKETS = 5
_BLOCK = 1024  # texts handled by one call of a graph op
_ROUND = 8  # bucket widths are multiples of this
_HASH_BUCKETS = 1 << 20
_HASH_KEY = (0x6B65726173, 0x6368617267656E)


def text_dataset(texts):
    """Makes a dataset of single strings, valid UTF-8, from any texts.

    Up to `MEMORY_BYTES` are kept in memory. A longer iterable is written to
    a temporary file, one pass, and read from there in every epoch; the file
    goes when the dataset does.

    Args:
        texts: An iterable of str or bytes (a list, a corpus, an array), or a
            `tf.data.Dataset` of scalar strings. Lone surrogates and invalid
            bytes become U+FFFD.

    Returns:
        `tf.data.Dataset` of scalar strings.

    Raises:
        ValueError: There is no text, or a dataset has other elements.
        OSError: The temporary file cannot be written.
    """
    if isinstance(texts, tf.data.Dataset):
        spec = texts.element_spec
        if not isinstance(spec, tf.TensorSpec) or (
            spec.dtype != tf.string or spec.shape.rank != 0
        ):
            raise ValueError(
                "A dataset of texts must hold scalar strings. Received "
                f"elements of {spec}"
            )
        return _by_block(texts, _valid)
    encoded = map(_encode, texts)
    head, size = [], 0
    for text in encoded:
        head.append(text)
        size += len(text) + 33
        if size > MEMORY_BYTES:
            return _file_dataset(itertools.chain(head, encoded))
    if not head:
        raise ValueError("There must be at least one text. Received none")
    return tf.data.Dataset.from_tensor_slices(np.array(head, object))


def split(dataset, fraction):
    """Splits texts into a part to train on and one held out.

    A text's side depends on its own characters alone (a keyed hash), so equal
    texts stay together and adding texts moves none across.

    Args:
        dataset: `tf.data.Dataset` of scalar strings.
        fraction: Number in [0, 1), the share to hold out, about.

    Returns:
        Two datasets of scalar strings: training, held out.
    """
    fraction = check_number("fraction", fraction, 0, 1)
    if fraction == 1:
        raise ValueError("`fraction` must be below 1. Received: 1")
    bound = round(fraction * _HASH_BUCKETS)

    def keep(held_out):
        def choose(texts):
            places = tf.strings.to_hash_bucket_strong(
                texts, _HASH_BUCKETS, list(_HASH_KEY)
            )
            return tf.boolean_mask(texts, (places < bound) == held_out)

        return _by_block(dataset, choose)

    return keep(False), keep(True)


def lines(
    texts,
    tokenizer,
    batch_size=64,
    *,
    buckets=None,
    max_length=512,
    start=True,
    training=True,
    seed=0,
):
    """Makes batches in which every row is one text.

    A text becomes inputs `[<eos>] + ids` and targets `ids + [<eos>]`, padded
    with 0 on the right to the width of its bucket. Rows wider than
    `max_length` are cut into consecutive windows.

    Args:
        texts: As for `text_dataset`.
        tokenizer: Adapted `CharTokenizer`.
        batch_size: Positive integer B, rows of every batch.
        buckets: Optional ascending list of widths; by default at most
            `MAX_BUCKETS` are fitted to the texts so that little is padded.
        max_length: Positive integer, the widest batch.
        start: False gives inputs `ids` and targets `ids[1:] + [<eos>]`.
        training: True shuffles, differently in every epoch, and leaves out
            batches that are not full; False keeps the texts in order within
            a bucket and fills the last batches with rows of weight 0.
        seed: Non-negative integer: the same gives the same batches.

    Returns:
        `tf.data.Dataset` of `(inputs, targets, weights)`, each `(B, T)`, int32,
        int32, and float32: 1 where a target counts, else 0.

    Raises:
        ValueError: An argument is out of range, or `training` and no bucket
            fills one batch.
    """
    batch_size = check_integer("batch_size", batch_size, 1)
    max_length = check_integer("max_length", max_length, 1)
    seed = check_integer("seed", seed, 0)
    dataset = text_dataset(texts)
    # Widths, not lengths: with the first `<eos>` a row is one longer.
    widths = count_widths(dataset, start)
    minimum = batch_size if training else 1
    if widths.sum() < minimum:
        raise ValueError(
            f"`batch_size` must be at most the number of texts, "
            f"{widths.sum()}. Received: {batch_size}"
        )
    if buckets is None:
        buckets = fit_buckets(widths, max_length, minimum)
    else:
        buckets = _check_buckets(buckets)
    counts = _bucket_counts(widths, buckets)
    over = counts[-1] > 0
    groups = len(counts)
    if over and counts[-2:].min() < minimum:
        # Alone, the few would fill no batch in any epoch.
        groups -= 1
        counts = np.append(counts[:-2], counts[-2:].sum())
    if counts.max() < minimum:
        raise ValueError(
            "`batch_size` must be at most the number of texts in the fullest "
            f"bucket, {counts.max()}. Received: {batch_size}"
        )
    bounds = tf.constant(buckets, tf.int64)

    def bucket(width):
        return tf.searchsorted(bounds, width[None], out_type=tf.int64)[0]

    if training:
        dataset = _shuffle(dataset, int(widths.sum()), seed)
    dataset = dataset.group_by_window(
        lambda text: tf.minimum(bucket(_width(text, start)), groups - 1),
        lambda _, window: window.batch(batch_size, drop_remainder=training),
        window_size=batch_size,
    )

    def examples(block):
        rows = _with_eos(ragged_ids(block, tokenizer), tokenizer, start)
        # The width follows from the texts: ids may be fewer (`oov="drop"`).
        widest = tf.reduce_max(_width(block, start))
        place = bucket(widest)
        last = bounds[-1]
        width = tf.where(
            place < len(buckets),
            tf.gather(bounds, tf.minimum(place, len(buckets) - 1)),
            -(-widest // last) * last,
        )
        rows = rows.to_tensor(shape=(None, None))
        missing = width + 1 - tf.shape(rows, tf.int64)[1]
        empty = batch_size - tf.shape(rows, tf.int64)[0]
        rows = tf.pad(rows, [[0, empty], [0, missing]])
        return _pairs(tf.ensure_shape(rows, (batch_size, None)))

    dataset = dataset.map(examples, tf.data.AUTOTUNE, deterministic=True)
    if over:
        dataset = dataset.flat_map(
            lambda *batch: tf.data.Dataset.from_tensor_slices(
                tuple(_cut(part, batch_size, buckets[-1]) for part in batch)
            )
        )
    else:
        full = counts // batch_size if training else -(-counts // batch_size)
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(int(full.sum()))
        )
    return dataset.prefetch(tf.data.AUTOTUNE)


def windows(
    texts,
    tokenizer,
    batch_size=64,
    *,
    sequence_length=256,
    joined=False,
    start=True,
    training=True,
    seed=0,
):
    """Makes batches of windows of one stream: the texts joined by `<eos>`.

    Windows of `sequence_length` + 1 ids start every `sequence_length` ids, so
    each id but the first is a target once; the last window is padded.

    Args:
        texts: As for `text_dataset`.
        tokenizer: Adapted `CharTokenizer`.
        batch_size: Positive integer B, rows of every batch.
        sequence_length: Positive integer T.
        joined: True: the texts are pieces of one, nothing goes between.
        start: Whether the stream opens with `<eos>`.
        training: As for `lines`.
        seed: As for `lines`.

    Returns:
        As `lines`, all batches `(batch_size, sequence_length)`.

    Raises:
        ValueError: An argument is out of range, or `training` and the texts
            fill no batch.
    """
    batch_size = check_integer("batch_size", batch_size, 1)
    length = check_integer("sequence_length", sequence_length, 1)
    seed = check_integer("seed", seed, 0)
    stream = id_stream(text_dataset(texts), tokenizer, joined, start)
    total = sum(len(ids) for ids in stream.as_numpy_iterator())
    count = -(-(total - 1) // length)
    if count < (batch_size if training else 1):
        raise ValueError(
            f"`batch_size` must be at most the number of windows, {count} of "
            f"{length} characters. Received: {batch_size}"
        )
    dataset = _frames(stream, length)
    if training:
        dataset = _shuffle(dataset, count, seed)
    dataset = dataset.batch(batch_size, drop_remainder=training)

    def examples(rows):
        missing = batch_size - tf.shape(rows)[0]
        return _pairs(
            tf.ensure_shape(
                tf.pad(rows, [[0, missing], [0, 0]]), (batch_size, length + 1)
            )
        )

    dataset = dataset.map(examples, tf.data.AUTOTUNE, deterministic=True)
    batches = count // batch_size if training else -(-count // batch_size)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(batches))
    return dataset.prefetch(tf.data.AUTOTUNE)


def id_stream(dataset, tokenizer, joined=False, start=True):
    """Maps texts to one stream of ids.

    Args:
        dataset: `tf.data.Dataset` of scalar strings.
        tokenizer: Adapted `CharTokenizer`.
        joined: As for `windows`.
        start: As for `windows`.

    Returns:
        `tf.data.Dataset` of int32 `(N,)`, parts of the stream in order; its
        last id is `<eos>`.
    """
    eos = tf.constant([tokenizer.eos_id], tf.int32)

    def ids(texts):
        rows = ragged_ids(texts, tokenizer)
        rows = rows if joined else _with_eos(rows, tokenizer, start=False)
        return rows.flat_values

    stream = dataset.batch(_BLOCK).map(ids, tf.data.AUTOTUNE)
    mark = tf.data.Dataset.from_tensors(eos)
    if start:
        stream = mark.concatenate(stream)
    return stream.concatenate(mark) if joined else stream


def count_widths(dataset, start=True):
    """Counts texts by the width of the row they need.

    Args:
        dataset: `tf.data.Dataset` of scalar strings.
        start: As for `lines`.

    Returns:
        NumPy int64 array: entry w counts the texts of width w.
    """
    total = np.zeros(1, "int64")
    widths = dataset.batch(_BLOCK).map(lambda texts: _width(texts, start))
    for block in widths.as_numpy_iterator():
        counts = np.bincount(block, minlength=len(total))
        counts[: len(total)] += total
        total = counts
    return total


def fit_buckets(widths, max_length=512, minimum=1, max_buckets=MAX_BUCKETS):
    """Chooses the bucket widths that leave the least padding.

    Dynamic programming over the widths, rounded up to multiples of 8.

    Args:
        widths: As `count_widths` gives them.
        max_length: Positive integer, the widest bucket.
        minimum: Positive integer: every bucket holds as many texts, so that
            each fills a batch.
        max_buckets: Positive integer.

    Returns:
        Ascending list of int.
    """
    present = np.flatnonzero(widths)
    rounded = -(-np.maximum(present, 1) // _ROUND) * _ROUND
    rounded = np.minimum(rounded, max_length)
    choices, groups = np.unique(rounded, return_inverse=True)
    counts = np.bincount(groups, weights=widths[present]).astype("int64")
    before = np.concatenate([[0], np.cumsum(counts)])
    n = len(choices)
    # cost[j]: least area of the first j widths in so many buckets.
    cost = np.full(n + 1, np.inf)
    cost[0] = 0
    best: tuple[float, list[int]] = (np.inf, [])
    cuts: dict[int, list[int]] = {0: []}
    for _ in range(min(max_buckets, n)):
        following, chosen = np.full(n + 1, np.inf), {}
        for j in range(1, n + 1):
            inside = before[j] - before[:j]
            area = cost[:j] + inside * choices[j - 1]
            area[inside < minimum] = np.inf
            i = int(np.argmin(area))
            if np.isfinite(area[i]):
                following[j] = area[i]
                chosen[j] = [*cuts[i], int(choices[j - 1])]
        cost, cuts = following, chosen
        if cost[n] < best[0]:
            best = cost[n], cuts[n]
    return best[1]


def _with_eos(rows, tokenizer, start):
    eos = tf.fill([rows.nrows(), 1], tokenizer.eos_id)
    return tf.concat([eos, rows, eos] if start else [rows, eos], axis=1)


def _pairs(rows):
    inputs, targets = rows[:, :-1], rows[:, 1:]
    counts = targets != 0
    return (
        tf.where(counts, inputs, 0),
        targets,
        tf.cast(counts, tf.float32),
    )


def _cut(part, batch_size, width):
    # (B, n * width) -> (n, B, width); a narrower bucket stays one batch.
    width = tf.minimum(tf.shape(part)[1], width)
    part = tf.reshape(part, (batch_size, -1, width))
    return tf.transpose(part, (1, 0, 2))


def _frames(stream, length):
    flush = tf.data.Dataset.from_tensors((tf.zeros(0, tf.int32), True))
    stream = stream.map(lambda ids: (ids, False)).concatenate(flush)

    def advance(left, element):
        ids, last = element
        ids = tf.concat([left, ids], 0)
        missing = tf.where(last, -(tf.size(ids) - 1) % length, 0)
        ids = tf.pad(ids, [[0, missing]])
        count = (tf.size(ids) - 1) // length
        frames = tf.reshape(ids[: count * length], (-1, length))
        following = ids[length : count * length + 1 : length]
        frames = tf.concat([frames, following[:, None]], 1)
        return ids[count * length :], frames

    return stream.scan(tf.zeros(0, tf.int32), advance).unbatch()


def _width(texts, start):
    lengths = tf.strings.length(texts, "UTF8_CHAR")
    return tf.cast(lengths, tf.int64) + int(start)


def _shuffle(dataset, count, seed):
    return dataset.shuffle(
        min(count, SHUFFLE_TEXTS), seed, reshuffle_each_iteration=True
    )


def _bucket_counts(widths, buckets):
    # The last count is of the rows wider than every bucket.
    places = np.searchsorted(buckets, np.arange(len(widths)))
    counts = np.bincount(places, widths, minlength=len(buckets) + 1)
    return counts.astype("int64")


def _check_buckets(buckets):
    buckets = [check_integer("buckets", width, 1) for width in buckets]
    if not buckets or sorted(set(buckets)) != buckets:
        raise ValueError(
            f"`buckets` must be ascending integers. Received: {buckets}"
        )
    return buckets


def _by_block(dataset, function):
    # A call of a graph function costs more than a short text: share it.
    return dataset.batch(_BLOCK).map(function).unbatch()


def _valid(texts):
    return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", "replace")


def _encode(text):
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        wide = text.encode("utf-16", "surrogatepass")
        return wide.decode("utf-16", "replace").encode("utf-8")


def _file_dataset(texts):
    folder = tempfile.mkdtemp(prefix="keras_chargen_")
    try:
        path = os.path.join(folder, "texts.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for text in texts:
                writer.write(text)
        dataset = tf.data.TFRecordDataset(path)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, tf.errors.OpError):
            raise OSError(
                f"cannot write the texts to a temporary file: {error.message}"
            ) from error
        raise
    # What is made of a dataset refers to it, so it lives as long as they do.
    weakref.finalize(dataset, shutil.rmtree, folder, ignore_errors=True)
    return dataset
