"""Texts to batches of ids: a `tf.data` pipeline for every backend.

After the texts are in a dataset (`text_dataset`) only graph ops follow, so
batches are made in parallel with training and no Python runs in between. An
op costs more to call than a short text to handle, so texts go through in
blocks; what is a row of a batch is but a place in the ids of a block until
the batch is put together.
"""

import itertools
import os
import shutil
import tempfile
import weakref

import numpy as np
import tensorflow as tf

from keras_chargen import devices
from keras_chargen.checks import check_integer, check_share
from keras_chargen.compilation import cores
from keras_chargen.corpora import hide_gpus_from_tensorflow
from keras_chargen.graph_text import SEPARATOR, stream_ids
from keras_chargen.tokenizer import BLOCK_CHARACTERS, BLOCK_TEXTS, blocks

hide_gpus_from_tensorflow()

# Fixed numbers: TensorFlow 2.21 tunes them in a thread that sleeps ever longer,
# up to a minute, and an epoch may end only when it wakes.
_OPTIONS = tf.data.Options()
_OPTIONS.autotune.enabled = False
_PARALLEL = min(cores(), 16)
_PREFETCH = 16  # batches
MEMORY_BYTES = 1 << 26  # texts beyond this go to a temporary file
KEPT_IDS = 1 << 24  # ids of no more than this stay in memory: 64 MiB
SHUFFLE_ROWS = 1 << 17  # texts, or windows, shuffled among each other
SHUFFLE_IDS = 1 << 23  # and no more characters than this
MAX_BUCKETS = 16
FREE_BUCKETS = 8
# Compiling for one more width takes as long as training on five to ten times
# as many positions.
_BUCKET_CELLS = 1 << 15
_CHOICES = 512  # widths that buckets are chosen from
_HASH_BUCKETS = 1 << 20
_HASH_KEY = (0x6B65726173, 0x6368617267656E)
_INTEGERS = tf.TensorSpec([None], tf.int32)
_FLAG = tf.TensorSpec([], tf.bool)

# The same texts in blocks `(N,)`, by dataset of single ones: those of which
# it is known that they are valid UTF-8.
_BLOCKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

# The variable of the next epoch and batch, by dataset to train on.
_POSITIONS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


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
        if texts in _BLOCKS:
            return texts
        spec = texts.element_spec
        if not isinstance(spec, tf.TensorSpec) or (
            spec.dtype != tf.string or spec.shape.rank != 0
        ):
            raise ValueError(
                "A dataset of texts must hold scalar strings. Received "
                f"elements of {spec}"
            )
        some = list(texts.take(BLOCK_TEXTS).as_numpy_iterator())
        size = sum(map(len, some))
        return _unbatch(_batch(texts, len(some), size).map(_valid, _PARALLEL))
    encoded = map(_encode, blocks(texts))
    head, size = [], 0
    for block in encoded:
        head.append(block)
        size += sum(map(len, block)) + 33 * len(block)
        if size > MEMORY_BYTES:
            return _file_dataset(head, encoded)
    head = [text for block in head for text in block]
    if not head:
        raise ValueError("There must be at least one text. Received none")
    dataset = tf.data.Dataset.from_tensor_slices(np.array(head, object))
    return _unbatch(_batch(dataset, len(head), size))


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
    fraction = check_share("fraction", fraction)
    bound = round(fraction * _HASH_BUCKETS)
    blocks = _BLOCKS[text_dataset(dataset)]

    def part(held_out):
        def choose(texts):
            places = tf.strings.to_hash_bucket_strong(
                texts, _HASH_BUCKETS, list(_HASH_KEY)
            )
            return tf.boolean_mask(texts, (places < bound) == held_out)

        return _unbatch(blocks.map(choose, _PARALLEL, deterministic=True))

    return part(False), part(True)


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
            what fills no batch at the end; False keeps the texts in order
            within a bucket and fills the last batch with rows of weight 0.
            What is left of all buckets at the end shares batches of the
            widths of its widest rows.
        seed: Non-negative integer: the same gives the same batches.

    Returns:
        `tf.data.Dataset` of `(inputs, targets, weights)`, each `(B, T)`, int32,
        int32, and float32: 1 where a target counts, else 0.

    Raises:
        ValueError: An argument is out of range, or `training` and the texts
            fill no batch.
    """
    batch_size = check_integer("batch_size", batch_size, 1)
    max_length = check_integer("max_length", max_length, 1)
    seed = check_integer("seed", seed, 0)
    if buckets is not None:
        buckets = _check_buckets(buckets)
        max_length = buckets[-1]
    dataset = text_dataset(texts)
    parts = _encoded(dataset, tokenizer)
    widths, sizes = count_widths(parts, start)
    parts = _kept(parts, sizes)
    texts, longest = int(widths.sum()), len(widths) - 1
    widths = _cut(widths, max_length)
    count = int(widths.sum())
    kind = "texts" if count == texts else "pieces of texts"
    everyone = devices.exchange(widths)
    _check_count(batch_size, everyone, kind, training)
    if buckets is None:
        minimum = batch_size * len(everyone) if training else 1
        buckets = fit_buckets(everyone.sum(0), max_length, minimum)

    def rows(ids, lengths):
        # One `<eos>` is the last target of a text and the first input of the
        # next.
        ids = tf.concat([[tokenizer.eos_id], ids], 0)
        starts = tf.cumsum(lengths, exclusive=True)
        if not start:
            starts, lengths = starts + 1, lengths - 1
        if longest > max_length or not start:
            starts, lengths = _cut_rows(starts, lengths, max_length)
        return ids, starts, lengths

    if training:
        parts = _joined(parts, sizes, count)
    blocks = parts.map(rows, _PARALLEL, deterministic=True)
    batches = _batches(
        lambda seed: blocks, buckets, batch_size, count, training, seed
    )
    return _in_step(batches, everyone, buckets, batch_size, training, seed)


def windows(
    texts,
    tokenizer,
    batch_size=64,
    *,
    sequence_length=256,
    joined=False,
    start=True,
    random_offset=False,
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
        random_offset: True: in each epoch the first window begins elsewhere
            within the first `sequence_length` characters, so that the model
            sees each character after other numbers of characters. For
            training alone.
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
    if random_offset and not training:
        raise ValueError(
            "`random_offset` must be False where `training` is: what is scored "
            "is read whole"
        )
    dataset = text_dataset(texts)
    parts = _encoded(dataset, tokenizer, separated=not joined)
    sizes = parts.map(lambda ids, _: tf.size(ids))
    sizes = np.array(list(sizes.as_numpy_iterator()), "int64")
    parts = _kept(parts, sizes)
    targets = int(sizes.sum()) + joined + start - 1
    # What an offset leaves out may be a window.
    count = -(-targets // length) - bool(random_offset)
    everyone = devices.exchange(np.array([count]))
    kind = f"windows of {length} characters"
    _check_count(batch_size, everyone, kind, training)
    if training:
        parts = _joined(parts, sizes, count)
    stream = parts.map(lambda ids, _: ids)
    mark = tf.data.Dataset.from_tensors([tf.constant(tokenizer.eos_id)])
    stream = mark.concatenate(stream) if start else stream
    stream = stream.concatenate(mark) if joined else stream

    def blocks(seed):
        begun = _begin_later(stream, length, seed) if random_offset else stream
        return _cut_stream(begun, length)

    batches = _batches(blocks, [length], batch_size, count, training, seed)
    return _in_step(batches, everyone, [length], batch_size, training, seed)


def streams(
    texts,
    tokenizer,
    batch_size=32,
    *,
    sequence_length=128,
    joined=False,
    reset=0.05,
    seed=0,
):
    """Makes batches each row of which goes on where it stopped in the last.

    For `CharRNN.carry_state(batch_size)`. The texts, each closed by `<eos>`,
    are one ring; in every epoch it is cut at another place into `batch_size`
    streams of equal length, and what is left at their ends, fewer than
    `sequence_length` characters each, is not read in that epoch. All ids stay
    in memory, one byte each where there are at most 256 of them.

    Args:
        texts: As for `text_dataset`.
        tokenizer: Adapted `CharTokenizer`.
        batch_size: Positive integer B, streams side by side.
        sequence_length: Positive integer T, through which the gradient goes.
        joined: True: the texts are pieces of one, nothing goes between.
        reset: Number in [0, 1), share of the rows that begin with a state of
            zeros all the same, so that the model learns to begin anywhere.
        seed: As for `lines`.

    Returns:
        As `lines`, all batches `(batch_size, sequence_length)` and all weights
        1. The first id of a row that begins with zeros is `~id`, below 0.

    Raises:
        ValueError: An argument is out of range, a stream has no
            `sequence_length` characters, or several devices share the batches.
    """
    devices.refuse_several("a batch of streams")
    batch_size = check_integer("batch_size", batch_size, 1)
    length = check_integer("sequence_length", sequence_length, 1)
    reset = check_share("reset", reset)
    seed = check_integer("seed", seed, 0)
    parts = _encoded(text_dataset(texts), tokenizer, separated=not joined)
    ids = tf.constant(_one_array(parts, tokenizer, joined))
    count = int(ids.shape[0])
    stride = count // batch_size
    if stride < length:
        _refuse("sequence_length", length, "characters of a stream", stride)
    steps = stride // length
    places = tf.range(batch_size, dtype=tf.int64)[:, None] * stride
    places += tf.range(length + 1, dtype=tf.int64)
    ones = tf.ones((batch_size, length))

    def epoch(seed):
        begin = tf.random.stateless_uniform(
            [], tf.stack([seed, 0]), maxval=count, dtype=tf.int64
        )

        def batch(step):
            found = tf.gather(ids, (begin + step * length + places) % count)
            found = tf.cast(found, tf.int32)
            drawn = tf.random.stateless_uniform(
                [batch_size, 1], tf.stack([seed, step + 1])
            )
            starts = tf.logical_or(step == 0, drawn < reset)
            first = tf.where(starts, ~found[:, :1], found[:, :1])
            inputs = tf.concat([first, found[:, 1:-1]], 1)
            return inputs, found[:, 1:], ones

        return tf.data.Dataset.range(steps).map(
            batch, _PARALLEL, deterministic=True
        )

    return _by_epoch(epoch, seed, steps)


def seek(dataset, epoch, batch=0):
    """Makes the next iteration that of a given epoch.

    The batches of an epoch depend on the seed and its number alone; without
    this, every iteration has the next number, and Keras looks at the first
    batch of one more before it trains.

    Args:
        dataset: As `lines`, `windows` or `streams` give it, to train on.
        epoch: Non-negative integer.
        batch: Non-negative integer, how many batches are left out. Above 0
            the iteration is to be left before its end, where TensorFlow would
            miss them.

    Raises:
        ValueError: It is another dataset.
    """
    try:
        position = _POSITIONS[dataset]
    except (KeyError, TypeError):
        raise ValueError(
            "the data must come from `lines`, `windows` or `streams`, to train "
            f"on. Received: {dataset!r}"
        ) from None
    position.assign([epoch, batch])


def _by_epoch(make, seed, steps):
    """Makes a dataset that is another in every epoch.

    Args:
        make: Function of an int64 scalar tensor, the seed of an epoch, that
            gives the dataset of its batches.
        seed: Non-negative integer.
        steps: Integer, how many batches each of them has.

    Returns:
        `tf.data.Dataset`, of which `seek` knows.
    """
    # Where the ops of a dataset run, which are never on a GPU.
    with tf.device("CPU:0"):
        position = tf.Variable([0, 0], dtype=tf.int64, trainable=False)

    def begin(_):
        epoch, batch = tf.unstack(position.read_value())
        position.assign(tf.stack([epoch + 1, 0]))
        drawn = tf.random.stateless_uniform(
            [], tf.stack([seed % (1 << 63), epoch]), None, None, tf.int64
        )
        return drawn, batch

    dataset = (
        tf.data.Dataset.from_tensors(0)
        .map(begin)
        .flat_map(lambda drawn, batch: make(drawn).skip(batch))
        .with_options(_OPTIONS)
        .apply(tf.data.experimental.assert_cardinality(steps))
        .prefetch(_PREFETCH)
    )
    _POSITIONS[dataset] = position
    return dataset


def count_widths(parts, start=True):
    """Counts texts by the width of the row they need.

    Args:
        parts: As `_encoded` gives them.
        start: As for `lines`: the first `<eos>` makes a row one wider.

    Returns:
        Two NumPy int64 arrays: entry w of the first counts the texts of width
        w; the second has the ids of each part.
    """
    total, sizes = np.zeros(1, "int64"), []
    counts = parts.map(
        lambda ids, lengths: (
            tf.math.bincount(lengths - int(not start)),
            tf.size(ids),
        )
    )
    for block, size in counts.as_numpy_iterator():
        total = np.pad(total, (0, max(0, len(block) - len(total))))
        total[: len(block)] += block
        sizes.append(size)
    return total, np.array(sizes, "int64")


def fit_buckets(widths, max_length=512, minimum=1, max_buckets=MAX_BUCKETS):
    """Chooses the bucket widths that leave the least padding.

    Dynamic programming over the widths; where they go beyond 512, over as
    many multiples of a number. XLA compiles a model for every width, so more
    than `FREE_BUCKETS` are taken only where each spares so much padding that
    it pays within some epochs.

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
    step = -(-min(present[-1], max_length) // _CHOICES) or 1
    rounded = -(-np.maximum(present, 1) // step) * step
    rounded = np.minimum(rounded, max_length)
    choices, groups = np.unique(rounded, return_inverse=True)
    counts = np.bincount(groups, weights=widths[present]).astype("int64")
    before = np.concatenate([[0], np.cumsum(counts)])
    # area[j, i]: cells of a bucket of the widths i to j.
    inside = before[1:, None] - before[:-1]
    area = np.where(inside < minimum, np.inf, inside * choices[:, None])
    # cost[j]: least cells of the first j widths in so many buckets.
    cost = np.array([0, *[np.inf] * len(choices)])
    least, origins = np.inf, []
    for count in range(1, max_buckets + 1):
        total = cost[:-1] + area
        origin = np.argmin(total, axis=1)
        cost = np.array([np.inf, *np.min(total, axis=1)])
        spared = float(least) - float(cost[-1])
        if not spared > (_BUCKET_CELLS if count > FREE_BUCKETS else 0):
            break
        least = cost[-1]
        origins.append(origin)
    buckets, end = [], len(choices)
    for origin in reversed(origins):
        buckets.append(int(choices[end - 1]))
        end = origin[end - 1]
    return buckets[::-1]


def _encoded(dataset, tokenizer, separated=True):
    """Maps the blocks of a dataset of texts to ids.

    Returns:
        Dataset of the ids of a block in a row, int32 `(M,)`, and the lengths
        of their parts that end with `<eos>`, int32 `(N,)`.
    """

    def encode(texts):
        ids = stream_ids(texts, tokenizer, separated)
        ends = tf.where(ids == tokenizer.eos_id)[:, 0] + 1
        return ids, tf.cast(ends - tf.concat([[0], ends[:-1]], 0), tf.int32)

    return _BLOCKS[dataset].map(encode, _PARALLEL, deterministic=True)


def _one_array(parts, tokenizer, joined):
    """Returns all ids as a NumPy array `(N,)` of few bytes."""
    size = tokenizer.vocabulary_size()
    dtype = next(
        t for t in ("uint8", "uint16", "int32") if size - 1 <= np.iinfo(t).max
    )
    arrays = [ids.astype(dtype) for ids, _ in parts.as_numpy_iterator()]
    arrays += [np.full(1, tokenizer.eos_id, dtype)] if joined else []
    return np.concatenate(arrays)


def _kept(parts, sizes):
    """Keeps ids in memory from the first epoch on, where they are few."""
    return parts.cache() if sizes.sum() <= KEPT_IDS else parts


def _check_count(batch_size, everyone, rows, training):
    count = int(everyone.sum(1).min())
    if count < (batch_size if training else 1):
        _refuse("batch_size", batch_size, rows, count)


def _refuse(name, value, what, count):
    raise ValueError(
        f"`{name}` must be at most the number of {what}, {count}. "
        f"Received: {value}"
    )


def _joined(parts, sizes, rows):
    """Joins parts to blocks within which their rows are shuffled.

    Args:
        parts: As `_encoded` gives them.
        sizes: NumPy array, the ids of each part.
        rows: Integer, the rows that all of them make.
    """
    count = len(sizes)
    most = min(SHUFFLE_IDS * count // sizes.sum(), SHUFFLE_ROWS * count // rows)
    return parts.ragged_batch(max(1, min(most, count))).map(
        lambda ids, lengths: (ids.flat_values, lengths.flat_values)
    )


def _cut(widths, longest):
    """Counts rows by width after texts are cut: `count_widths` of the rows."""
    over = np.arange(len(widths))
    rows = np.bincount(over % longest, widths, minlength=longest + 1)
    rows[0] = 0
    rows[longest] = (widths * (over // longest)).sum()
    return rows.astype("int64")


def _cut_rows(starts, lengths, longest):
    """Cuts rows into such of at most `longest`, and leaves out empty ones."""
    pieces = -(-lengths // longest)
    before = tf.repeat(tf.cumsum(pieces, exclusive=True), pieces)
    offsets = (tf.range(tf.size(before)) - before) * longest
    lengths = tf.repeat(lengths, pieces) - offsets
    return tf.repeat(starts, pieces) + offsets, tf.minimum(lengths, longest)


def _begin_later(stream, length, seed):
    """Leaves out fewer than `length` of the first ids, by the epoch's seed."""
    number = tf.random.stateless_uniform(
        [], tf.stack([seed, -1]), maxval=length, dtype=tf.int32
    )

    def advance(left, ids):
        count = tf.minimum(left, tf.size(ids))
        return left - count, ids[count:]

    return stream.scan(number, advance)


def _cut_stream(stream, length):
    """Maps parts of a stream of ids to blocks of rows, as `_batches` has them.

    Args:
        stream: Dataset of int32 `(N,)`.
        length: Positive integer, targets of every row but the last.
    """
    flush = tf.data.Dataset.from_tensors((tf.zeros(0, tf.int32), True))
    stream = stream.map(lambda ids: (ids, False)).concatenate(flush)

    def advance(left, element):
        ids, last = element
        ids = tf.concat([left, ids], 0)
        targets = tf.maximum(tf.size(ids) - 1, 0)
        count = tf.where(last, -(-targets // length), targets // length)
        starts = tf.range(count) * length
        lengths = tf.minimum(targets - starts, length)
        return ids[count * length :], (ids, starts, lengths)

    return stream.scan(tf.zeros(0, tf.int32), advance)


def _batches(blocks_of, buckets, batch_size, count, training, seed):
    """Makes batches of rows.

    Args:
        blocks_of: Function of the seed of an epoch, an int64 scalar tensor,
            that gives a dataset of `(ids (N,), starts (R,), lengths (R,))`:
            the inputs of a row are `lengths` ids from `starts` on, its targets
            as many from the next. All int32.
        buckets: Ascending list of int, the widths of batches.
        batch_size: Positive integer, B.
        count: Integer, rows of all blocks.
        training: As for `lines`.
        seed: As for `lines`.

    Returns:
        As `lines`.
    """
    none = tf.zeros(0, tf.int32)
    flush = tf.data.Dataset.from_tensors((none, none, none, True))
    bounds = tf.constant(buckets)

    # Traced once: `scan` itself would trace it for the empty first state too.
    @tf.function(input_signature=[(_INTEGERS,) * 2, (*(_INTEGERS,) * 3, _FLAG)])
    def advance(left, block):
        ids, lengths = left
        new_ids, new_starts, new_lengths, last = block
        starts = tf.cumsum(lengths + 1, exclusive=True)
        starts = tf.concat([starts, tf.size(ids) + new_starts], 0)
        lengths = tf.concat([lengths, new_lengths], 0)
        ids = tf.concat([ids, new_ids], 0)
        places = tf.searchsorted(bounds, lengths)
        chosen, left = _choose(places, len(buckets), batch_size)
        rest = _rest(places, left, batch_size, training)
        end = tf.cast(last, tf.int32)
        chosen = tf.concat([chosen, rest[: end * tf.shape(rest)[0]]], 0)
        left = left[end * tf.size(left) :]
        # In the order in which they would fill up one text after the other.
        chosen = tf.gather(chosen, tf.argsort(chosen[:, -1]))
        kept = tf.gather(starts, left), tf.gather(lengths, left)
        # The last batch may be filled up with the row behind all others.
        starts, lengths, places = (
            tf.gather(tf.pad(values, [[0, 1]]), chosen)
            for values in (starts, lengths, places)
        )
        widths = tf.gather(bounds, tf.reduce_max(places, 1))
        left, lengths_left = kept
        left = tf.ragged.range(left, left + lengths_left + 1).flat_values
        state = tf.gather(ids, left), lengths_left
        return state, (ids, starts, lengths, widths)

    def batches_of(ids, starts, lengths, widths):
        ids = tf.pad(ids, [[0, buckets[-1] + 1]])

        def batch(starts, lengths, width):
            columns = tf.range(width + 1)
            # Beyond its end a row goes on into the next one, not counted.
            found = tf.gather(ids, starts[:, None] + columns)  # (B, width + 1)
            counts = tf.cast(columns[:-1] < lengths[:, None], tf.int32)
            inputs, targets = found[:, :-1] * counts, found[:, 1:] * counts
            return inputs, targets, tf.cast(counts, tf.float32)

        slices = tf.data.Dataset.from_tensor_slices((starts, lengths, widths))
        return slices.map(batch, _PARALLEL, deterministic=True)

    full = count // batch_size if training else -(-count // batch_size)

    def batches(seed):
        blocks = blocks_of(seed)
        if training:
            blocks = tf.data.Dataset.zip(blocks, tf.data.Dataset.counter()).map(
                lambda block, number: _shuffle(block, tf.stack([seed, number])),
                _PARALLEL,
                deterministic=True,
            )
        blocks = blocks.map(lambda *block: (*block, False)).concatenate(flush)
        blocks = blocks.scan((none, none), advance).prefetch(1)
        # A random offset may leave one more.
        return blocks.flat_map(batches_of).take(full)

    if training:
        return _by_epoch(batches, seed, full)
    return (
        batches(seed)
        .apply(tf.data.experimental.assert_cardinality(full))
        .prefetch(_PREFETCH)
    )


def _in_step(batches, everyone, buckets, batch_size, training, seed):
    """Lets processes that train together have batches of one width each time.

    The order of widths is drawn anew in every epoch, the same in all of them;
    a process sets aside what it has too early. Batches that have no partner
    of their width share the widest.

    Args:
        batches: Dataset of this process's batches.
        everyone: Integers `(processes, W)`, the rows of each by width; where W
            is 1, in the one bucket.
        buckets: As for `_batches`.
        batch_size: As for `_batches`.
        training: As for `lines`. True leaves out batches that not every
            process has a partner for; with False those who have none make up
            for it by rows of weight 0.
        seed: As for `lines`.

    Returns:
        Dataset like `batches`, and `batches` where there is one process.
    """
    if len(everyone) == 1:
        return batches
    ends = np.minimum(buckets, everyone.shape[1] - 1)
    rows = everyone.cumsum(1)[:, ends]
    full = np.diff(rows, prepend=0) // batch_size  # (processes, buckets)
    if training:
        planned = full.min(0)
        rest = (rows[:, -1] // batch_size).min() - planned.sum()
    else:
        planned = full.max(0)
        rest = (-(-rows[:, -1] // batch_size) - full.sum(1)).max()
    number, epochs = devices.process()[0], itertools.count()

    def in_step():
        random = np.random.default_rng([seed, next(epochs)])
        source = batches.as_numpy_iterator()
        due = dict(zip(buckets, full[number], strict=True))
        early: dict = {width: [] for width in buckets}
        for width in random.permutation(np.repeat(buckets, planned)):
            batch = None
            if due[width]:
                due[width] -= 1
                while not early[width]:
                    batch = next(source)
                    early[batch[0].shape[1]].append(batch)
                batch = early[width].pop(0)
            yield _widen(batch, batch_size, width)
        left = itertools.chain(*early.values(), source)
        for _ in range(rest):
            yield _widen(next(left, None), batch_size, buckets[-1])

    return (
        tf.data.Dataset.from_generator(
            in_step, output_signature=batches.element_spec
        )
        .apply(tf.data.experimental.assert_cardinality(planned.sum() + rest))
        .prefetch(_PREFETCH)
    )


def _widen(batch, rows, width):
    """Pads a batch of arrays on the right; None is one of padding alone."""
    if batch is None:
        empty = np.zeros((rows, width), "int32")
        return empty, empty, empty.astype("float32")
    missing = width - batch[0].shape[1]
    return tuple(np.pad(array, ((0, 0), (0, missing))) for array in batch)


def _shuffle(block, seed):
    ids, starts, lengths = block
    order = tf.random.experimental.stateless_shuffle(
        tf.range(tf.size(starts)), seed
    )
    return ids, tf.gather(starts, order), tf.gather(lengths, order)


def _choose(places, groups, batch_size):
    """Chooses rows for full batches of one place each, earlier rows first.

    Args:
        places: Integers `(R,)` below `groups`, one a row.
        groups: Integer.
        batch_size: Integer, B.

    Returns:
        Indices of rows `(N, B)`, and of the rows left `(L,)`, ascending.
    """
    order = tf.argsort(places, stable=True)
    counts = tf.math.bincount(places, minlength=groups, maxlength=groups)
    ordered = tf.gather(places, order)
    first = tf.cumsum(counts, exclusive=True)
    rank = tf.range(tf.size(places)) - tf.gather(first, ordered)
    full = rank < tf.gather(counts // batch_size * batch_size, ordered)
    left, chosen = tf.dynamic_partition(order, tf.cast(full, tf.int32), 2)
    return tf.reshape(chosen, (-1, batch_size)), tf.sort(left)


def _rest(places, left, batch_size, training):
    """As `_choose`, for rows that fill no batch of one place."""
    if training:
        left = left[: tf.size(left) // batch_size * batch_size]
    left = tf.gather(left, tf.argsort(tf.gather(places, left), stable=True))
    missing = -tf.size(left) % batch_size
    left = tf.pad(left, [[0, missing]], constant_values=tf.size(places))
    return tf.reshape(left, (-1, batch_size))


def _check_buckets(buckets):
    buckets = [check_integer("buckets", width, 1) for width in buckets]
    if not buckets or sorted(set(buckets)) != buckets:
        raise ValueError(
            f"`buckets` must be ascending integers. Received: {buckets}"
        )
    return buckets


def _batch(dataset, texts, characters):
    """Makes blocks of a dataset of which so many texts hold `characters`."""
    size = BLOCK_CHARACTERS * texts // max(characters, 1)
    return dataset.batch(max(1, min(size, BLOCK_TEXTS)))


def _unbatch(blocks):
    blocks = blocks.with_options(_OPTIONS)
    dataset = blocks.unbatch()
    _BLOCKS[dataset] = blocks
    return dataset


def _valid(texts):
    return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", "replace")


def _encode(block):
    try:
        return list(map(str.encode, block))
    except (TypeError, UnicodeEncodeError):
        return list(map(_encode_one, block))


def _encode_one(text):
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        wide = text.encode("utf-16", "surrogatepass")
        return wide.decode("utf-16", "replace").encode("utf-8")


def _file_dataset(head, blocks):
    """Writes blocks of texts to a file, a record each."""
    folder = tempfile.mkdtemp(prefix="keras_chargen_")
    try:
        path = os.path.join(folder, "texts.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for block in itertools.chain(head, blocks):
                writer.write(SEPARATOR.join([*block, b""]))
        records = tf.data.TFRecordDataset(path)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, tf.errors.OpError):
            raise OSError(
                f"cannot write the texts to a temporary file: {error.message}"
            ) from error
        raise
    # What is made of a dataset refers to it, so it lives as long as they do.
    weakref.finalize(records, shutil.rmtree, folder, ignore_errors=True)
    return _unbatch(
        records.map(
            lambda record: tf.strings.split(record, SEPARATOR)[:-1],
            _PARALLEL,
            deterministic=True,
        )
    )
