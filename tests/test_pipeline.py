"""Texts become batches of ids by graph ops alone."""

import gc
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_chargen.tokenizer import CharTokenizer

tf = pytest.importorskip("tensorflow")
from keras_chargen import pipeline  # noqa: E402
from keras_chargen.pipeline import (  # noqa: E402
    count_widths,
    fit_buckets,
    lines,
    seek,
    split,
    streams,
    text_dataset,
    windows,
)

TOKENIZER = CharTokenizer([*"abcdefghijklmnopqrstuvwxyz "])
EOS = TOKENIZER.eos_id
WORD = st.text(st.sampled_from("abc "), max_size=20)


def some_texts(count=50, longest=30):
    choose = random.Random(0)
    return [
        "".join(choose.choices("abcdefgh ", k=choose.randint(1, longest)))
        for _ in range(count)
    ]


def arrays(dataset):
    return list(dataset.as_numpy_iterator())


def texts_of(dataset):
    """What the targets say, a str for each row that has a weight."""
    return [
        TOKENIZER.detokenize(row)
        for _, targets, weights in arrays(dataset)
        for row, weight in zip(targets, weights, strict=True)
        if weight.any()
    ]


def equal(a, b):
    return len(a) == len(b) and all(
        x.shape == y.shape and (x == y).all()
        for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True)
    )


# ---------------------------------------------------------- texts


@pytest.mark.parametrize(
    "texts",
    [
        ["ab", "", "c"],
        (text for text in ["ab", "", "c"]),
        [b"ab", "", b"c"],
        np.array(["ab", "", "c"]),
        tf.data.Dataset.from_tensor_slices(["ab", "", "c"]),
    ],
    ids=["list", "generator", "bytes", "array", "dataset"],
)
def test_texts_of_every_kind_become_a_dataset(texts):
    assert arrays(text_dataset(texts)) == [b"ab", b"", b"c"]


def test_a_dataset_of_texts_is_one_already():
    dataset = text_dataset(["ab"])
    assert text_dataset(dataset) is dataset


@pytest.mark.parametrize("wrap", [list, tf.data.Dataset.from_tensor_slices])
def test_invalid_bytes_become_the_replacement_character(wrap):
    assert arrays(text_dataset(wrap([b"a\xff"]))) == ["a\ufffd".encode()]


def test_a_lone_surrogate_becomes_the_replacement_character():
    (text,) = arrays(text_dataset(["a\ud800b"]))
    assert text == "a\ufffdb".encode()


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="at least one text"):
        text_dataset([])


@pytest.mark.parametrize("elements", [[1, 2], [["a"], ["b"]]])
def test_a_dataset_of_other_things_is_refused(elements):
    dataset = tf.data.Dataset.from_tensor_slices(elements)
    with pytest.raises(ValueError, match="must hold scalar strings"):
        text_dataset(dataset)


@pytest.fixture
def spills(monkeypatch, tmp_path):
    """Texts go to a file in this folder."""
    monkeypatch.setattr(pipeline, "MEMORY_BYTES", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_many_texts_are_read_once_and_kept_in_a_file(spills):
    texts = some_texts()
    dataset = text_dataset(iter(texts))
    assert len(list(spills.rglob("*.tfrecord"))) == 1
    for _ in range(2):
        assert [text.decode() for text in arrays(dataset)] == texts


def test_any_text_survives_the_file(spills):
    texts = ["", "a\nb\0", "", "\ufffd\U0010ffff", "x" * 200, "", ""]
    dataset = text_dataset(iter(texts))
    assert list(spills.rglob("*.tfrecord"))
    assert [text.decode() for text in arrays(dataset)] == texts


def test_the_file_goes_with_the_last_dataset_made_of_it(spills):
    dataset = lines(iter(some_texts()), TOKENIZER, 4)
    gc.collect()
    assert list(spills.rglob("*.tfrecord"))
    assert arrays(dataset)
    del dataset
    gc.collect()
    # TensorFlow leaves files of its own in the folder.
    assert not list(spills.rglob("*.tfrecord"))


def test_the_file_goes_when_reading_fails(spills):
    def texts():
        yield from some_texts()
        raise OSError("line 51 is gone")

    with pytest.raises(OSError, match="line 51 is gone"):
        text_dataset(texts())
    assert not list(spills.rglob("*.tfrecord"))


# ---------------------------------------------------------- split


def sides(texts, fraction=0.3):
    training, held_out = split(text_dataset(texts), fraction)
    return [
        [text.decode() for text in arrays(part)]
        for part in (training, held_out)
    ]


def test_every_text_is_on_one_side_in_order():
    texts = list(dict.fromkeys(some_texts(200)))
    training, held_out = sides(texts)
    assert [t for t in texts if t in set(training)] == training
    assert [t for t in texts if t not in set(training)] == held_out
    assert 0.2 < len(held_out) / len(texts) < 0.4


def test_order_and_other_texts_move_no_text_across():
    texts = some_texts(200)
    _, held_out = sides(texts)
    shuffled = random.Random(1).sample(texts, len(texts))
    _, again = sides([*some_texts(20, 5), *shuffled, "one more"])
    assert set(held_out) == set(again) & set(texts)


def test_equal_texts_stay_together():
    training, held_out = sides(some_texts(100, 3) * 3)
    assert not set(training) & set(held_out)


def test_a_dataset_of_the_user_is_split_as_its_texts():
    texts = some_texts(200)
    parts = split(tf.data.Dataset.from_tensor_slices(texts), 0.3)
    assert [[text.decode() for text in arrays(part)] for part in parts] == (
        sides(texts)
    )


def test_a_larger_share_holds_the_smaller_one():
    texts = some_texts(200)
    assert set(sides(texts, 0.1)[1]) <= set(sides(texts, 0.4)[1])


def test_nothing_held_out_is_everything_to_train_on():
    texts = some_texts()
    assert sides(texts, 0) == [texts, []]


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="`fraction` must be"):
        split(text_dataset(["a"]), fraction)


# ---------------------------------------------------------- lines


def test_a_text_is_framed_by_eos():
    dataset = lines(["abc"], TOKENIZER, 1, buckets=[6], training=False)
    ((inputs, targets, weights),) = arrays(dataset)
    assert inputs.tolist() == [[EOS, 1, 2, 3, 0, 0]]
    assert targets.tolist() == [[1, 2, 3, EOS, 0, 0]]
    assert weights.tolist() == [[1, 1, 1, 1, 0, 0]]
    assert inputs.dtype == targets.dtype == np.int32
    assert weights.dtype == np.float32


def test_without_start_the_first_character_is_only_an_input():
    dataset = lines(
        ["abc"], TOKENIZER, 1, buckets=[5], start=False, training=False
    )
    ((inputs, targets, weights),) = arrays(dataset)
    assert inputs.tolist() == [[1, 2, 3, 0, 0]]
    assert targets.tolist() == [[2, 3, EOS, 0, 0]]
    assert weights.tolist() == [[1, 1, 1, 0, 0]]


@settings(max_examples=10)
@given(st.lists(WORD, min_size=1, max_size=30), st.integers(1, 8))
def test_evaluation_counts_every_character_once(texts, batch_size):
    dataset = lines(texts, TOKENIZER, batch_size, training=False)
    assert sorted(texts_of(dataset)) == sorted(texts)
    batches = arrays(dataset)
    assert sum(w.sum() for *_, w in batches) == sum(len(t) + 1 for t in texts)
    for inputs, targets, weights in batches:
        assert inputs.shape == targets.shape == weights.shape
        assert len(inputs) == batch_size
        assert ((weights == 1) == (targets != 0)).all()
        assert (inputs[weights == 0] == 0).all()


def test_batches_in_training_are_full():
    dataset = lines(some_texts(50), TOKENIZER, 8)
    for _, _, weights in arrays(dataset):
        assert weights.any(axis=1).all()


@pytest.mark.parametrize("block", [7, 1 << 17])
@pytest.mark.parametrize("batch_size", [3, 8])
def test_training_leaves_out_less_than_a_batch(monkeypatch, batch_size, block):
    monkeypatch.setattr(pipeline, "BLOCK_TEXTS", 7)
    monkeypatch.setattr(pipeline, "SHUFFLE_ROWS", block)
    texts = [f"{text}{i:03}" for i, text in enumerate(some_texts(50))]
    tokenizer = CharTokenizer([*"abcdefgh 0123456789"])
    dataset = lines(texts, tokenizer, batch_size, buckets=[8, 12, 20, 34])
    left_out = []
    for _ in range(2):
        read = [
            tokenizer.detokenize(row)
            for _, targets, _ in arrays(dataset)
            for row in targets
        ]
        assert len(read) == len(set(read)) == 50 // batch_size * batch_size
        left_out.append(set(texts) - set(read))
        assert left_out[-1] < set(texts)
    # Not the same in every epoch, unless the last block is all there is.
    assert left_out[0] != left_out[1] or block < len(texts)


def test_a_row_is_padded_beyond_its_bucket_only_at_the_end():
    texts = some_texts(500)
    dataset = lines(texts, TOKENIZER, 8, buckets=[8, 16, 32], training=False)
    beyond = [
        bool((weights.sum(1) <= before).any())
        for _, _, weights in arrays(dataset)
        for before in [{8: 0, 16: 8, 32: 16}[weights.shape[1]]]
    ]
    assert sum(beyond) <= 3
    assert beyond == sorted(beyond)


def test_widths_come_from_a_short_list():
    dataset = lines(some_texts(500), TOKENIZER, 8)
    widths = {inputs.shape[1] for inputs, *_ in arrays(dataset)}
    assert 1 < len(widths) <= pipeline.MAX_BUCKETS


def test_a_row_goes_to_the_narrowest_bucket_that_holds_it():
    dataset = lines(
        ["a", "abc", "abcd"], TOKENIZER, 1, buckets=[4, 8], training=False
    )
    assert [inputs.shape[1] for inputs, *_ in arrays(dataset)] == [4, 4, 8]


def test_the_number_of_batches_is_known():
    for training in (True, False):
        dataset = lines(some_texts(77), TOKENIZER, 8, training=training)
        assert dataset.cardinality() == len(arrays(dataset))


@pytest.mark.parametrize("make", [lines, windows])
def test_the_same_seed_gives_the_same_batches(make):
    arguments = {"sequence_length": 10} if make is windows else {}
    first, again, other = (
        make(some_texts(), TOKENIZER, 4, seed=seed, **arguments)
        for seed in (7, 7, 8)
    )
    first, again, other = arrays(first), arrays(again), arrays(other)
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("make", [lines, windows])
def test_every_epoch_has_its_own_order(make):
    arguments = {"sequence_length": 10} if make is windows else {}
    dataset = make(some_texts(), TOKENIZER, 1, **arguments)
    first, second = arrays(dataset), arrays(dataset)
    assert not equal(first, second)
    if make is lines:
        assert sorted(texts_of(dataset)) == sorted(some_texts())


@pytest.mark.parametrize("make", [lines, windows, streams])
def test_an_epoch_can_be_sought_from_any_batch_on(make):
    arguments = {} if make is lines else {"sequence_length": 10}
    if make is windows:
        arguments["random_offset"] = True
    dataset = make(some_texts(), TOKENIZER, 4, seed=3, **arguments)
    epochs = [arrays(dataset) for _ in range(3)]
    fresh = make(some_texts(), TOKENIZER, 4, seed=3, **arguments)
    seek(fresh, 2, 5)
    rest = len(epochs[2]) - 5
    assert equal(arrays(fresh.take(rest)), epochs[2][5:])
    # What comes after is not left out, nor are the numbers drawn twice.
    seek(fresh, 0)
    assert equal(arrays(fresh), epochs[0])
    assert equal(arrays(fresh), epochs[1])


def test_only_data_to_train_on_can_be_sought():
    for dataset in (
        lines(["abc"], TOKENIZER, 1, training=False),
        lines(["abc"], TOKENIZER, 1).take(1),
        None,
    ):
        with pytest.raises(ValueError, match="must come from `lines`"):
            seek(dataset, 1)


@pytest.mark.parametrize("make", [lines, windows])
def test_evaluation_has_one_order(make):
    dataset = make(some_texts(), TOKENIZER, 4, training=False)
    assert equal(arrays(dataset), arrays(dataset))


def test_rows_too_long_are_cut_and_nothing_is_lost():
    text = "abcdefghij" * 3
    dataset = lines([text, "ab"], TOKENIZER, 1, buckets=[8], training=False)
    rows = [
        (inputs[0], targets[0], weights[0])
        for inputs, targets, weights in arrays(dataset)
    ]
    assert {len(inputs) for inputs, *_ in rows} == {8}
    ids = np.concatenate([targets for _, targets, _ in rows[:4]])
    assert TOKENIZER.detokenize(ids) == text
    assert sum(weights.sum() for *_, weights in rows) == 31 + 3
    # What a window ends on is what the next begins with.
    for (_, targets, _), (inputs, _, _) in itertools.pairwise(rows[:4]):
        assert targets[-1] == inputs[0]


@pytest.mark.parametrize("start", [True, False])
def test_no_row_of_what_is_cut_is_empty(start):
    texts = ["abcdefghij" * 30, "ab", "", "abc"]
    dataset = lines(texts, TOKENIZER, 2, buckets=[4, 8], start=start)
    for _ in range(2):
        for _, _, weights in arrays(dataset):
            assert weights.any(axis=1).all()
            assert weights.shape[1] in (4, 8)


@settings(max_examples=10)
@given(
    st.lists(WORD, min_size=1, max_size=20),
    st.integers(1, 7),
    st.booleans(),
)
def test_what_is_cut_is_counted_once(texts, longest, start):
    if not start and not any(texts):
        return
    dataset = lines(
        texts,
        TOKENIZER,
        3,
        max_length=longest,
        start=start,
        training=False,
    )
    batches = arrays(dataset)
    targets = sum(len(text) + start for text in texts)
    assert sum(weights.sum() for *_, weights in batches) == targets
    assert dataset.cardinality() == len(batches)
    assert max(weights.shape[1] for *_, weights in batches) <= longest


def test_unknown_characters_are_left_out_of_rows():
    dataset = lines(["a?b", "??"], TOKENIZER, 2, training=False)
    assert sorted(texts_of(dataset)) == ["", "ab"]


def test_a_batch_larger_than_the_corpus_is_refused():
    with pytest.raises(
        ValueError, match=r"`batch_size` must be at most .* 3\. Received: 4"
    ):
        lines(["a", "b", "c"], TOKENIZER, 4)
    with pytest.raises(ValueError, match="`batch_size` must be at most"):
        windows(["abc"], TOKENIZER, 4, sequence_length=4)


@pytest.mark.parametrize("make", [lines, windows])
@pytest.mark.parametrize("training", [True, False])
def test_a_dataset_without_texts_is_refused(make, training):
    none = tf.data.Dataset.from_tensor_slices(["a"]).take(0)
    with pytest.raises(ValueError, match=r"the number of .*\b0\b.*Received: 1"):
        make(none, TOKENIZER, 1, training=training)


def test_evaluation_takes_a_batch_larger_than_the_corpus():
    assert texts_of(lines(["abc"], TOKENIZER, 4, training=False)) == ["abc"]


@pytest.mark.parametrize("buckets", [[], [8, 4], [4, 4], [0], [2.5]])
def test_widths_that_do_not_ascend_are_refused(buckets):
    with pytest.raises(ValueError, match="`buckets` must be"):
        lines(["a"], TOKENIZER, 1, buckets=buckets)


@pytest.mark.parametrize("make", [lines, windows])
@pytest.mark.parametrize(
    "name, value", [("batch_size", 0), ("batch_size", 1.5), ("seed", -1)]
)
def test_numbers_out_of_range_are_named(make, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
        make(["a"], TOKENIZER, **{name: value})


# ---------------------------------------------------------- buckets


def test_widths_are_counted_with_the_first_eos():
    dataset = text_dataset(["", "ab", "a?b", "abcd"])
    parts = pipeline._encoded(dataset, TOKENIZER)
    counts, sizes = count_widths(parts)
    assert counts.tolist() == [0, 1, 0, 2, 0, 1]
    assert sizes.tolist() == [12]
    assert count_widths(parts, start=False)[0].tolist() == [1, 0, 2, 0, 1]


def area(widths, buckets):
    return sum(
        count * min(b for b in buckets if b >= min(width, max(buckets)))
        for width, count in enumerate(widths)
    )


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60).filter(any),
    st.integers(1, 3),
)
def test_fitted_buckets_leave_the_least_padding(widths, most):
    widths = np.array(widths)
    choices = sorted({max(w, 1) for w in np.flatnonzero(widths)})
    best = min(
        area(widths, [*some, choices[-1]])
        for n in range(most)
        for some in itertools.combinations(choices[:-1], n)
    )
    buckets = fit_buckets(widths, max_buckets=most)
    assert buckets == sorted(set(buckets)) and len(buckets) <= most
    assert area(widths, buckets) == best


def test_every_bucket_fills_a_batch():
    widths = np.bincount([1] * 3 + [20] * 10 + [40] * 2)
    assert fit_buckets(widths, minimum=4) == [40]
    assert fit_buckets(widths, minimum=3) == [1, 40]


def test_no_bucket_is_wider_than_the_widest_batch():
    assert fit_buckets(np.bincount([5, 900]), max_length=64)[-1] == 64


def test_only_a_corpus_that_gains_by_it_has_many_buckets():
    widths = np.ones(100, int)
    assert len(fit_buckets(widths)) == pipeline.FREE_BUCKETS
    assert len(fit_buckets(widths * 1_000)) > pipeline.FREE_BUCKETS
    assert len(fit_buckets(widths * 10**6)) == pipeline.MAX_BUCKETS


def test_buckets_for_long_rows_are_multiples_of_a_number():
    widths = np.ones(5001, int)
    *buckets, last = fit_buckets(widths, max_length=5000)
    assert last == 5000
    assert all(width % 10 == 0 for width in buckets)


# ---------------------------------------------------------- windows


def stream_of(dataset):
    """The ids that the windows go through, each target counted once."""
    rows = [
        (inputs[i], targets[i][weights[i] > 0])
        for inputs, targets, weights in arrays(dataset)
        for i in range(len(inputs))
    ]
    return [rows[0][0][0], *np.concatenate([targets for _, targets in rows])]


@settings(max_examples=10)
@given(
    st.lists(WORD, min_size=1, max_size=10),
    st.integers(1, 12),
    st.integers(1, 4),
)
def test_windows_go_through_the_stream_once(texts, length, batch_size):
    dataset = windows(
        texts,
        TOKENIZER,
        batch_size,
        sequence_length=length,
        training=False,
    )
    stream = [EOS]
    for text in texts:
        stream += [*TOKENIZER.tokenize(text), EOS]
    assert stream_of(dataset) == stream
    assert {x.shape for batch in arrays(dataset) for x in batch} == {
        (batch_size, length)
    }
    assert dataset.cardinality() == len(arrays(dataset))


def test_pieces_of_one_text_are_joined_by_nothing():
    dataset = windows(
        ["ab", "c", "d"],
        TOKENIZER,
        1,
        sequence_length=3,
        joined=True,
        training=False,
    )
    assert stream_of(dataset) == [EOS, 1, 2, 3, 4, EOS]


def test_a_stream_may_begin_with_its_first_character():
    dataset = windows(
        ["ab"], TOKENIZER, 1, sequence_length=3, start=False, training=False
    )
    assert stream_of(dataset) == [1, 2, EOS]


@pytest.mark.parametrize("make", [lines, windows])
def test_a_corpus_of_several_blocks_is_read_whole(monkeypatch, make):
    monkeypatch.setattr(pipeline, "BLOCK_CHARACTERS", 100)
    monkeypatch.setattr(pipeline, "SHUFFLE_IDS", 100)
    texts = some_texts(60)
    arguments = {"sequence_length": 7} if make is windows else {}
    whole = make(texts, TOKENIZER, 4, training=False, **arguments)
    if make is lines:
        assert sorted(texts_of(whole)) == sorted(texts)
    else:
        ids = [[*TOKENIZER.tokenize(text), EOS] for text in texts]
        assert stream_of(whole) == [EOS, *itertools.chain(*ids)]
    dataset = make(texts, TOKENIZER, 1, **arguments)
    counted = [sum(w.sum() for *_, w in arrays(d)) for d in (whole, dataset)]
    assert counted[0] == counted[1]


def test_windows_longer_than_a_block_of_texts_are_whole():
    texts = ["ab"] * 3000
    dataset = windows(texts, TOKENIZER, 1, sequence_length=5000, training=False)
    assert stream_of(dataset) == [EOS, *[1, 2, EOS] * 3000]


def test_a_window_without_length_is_refused():
    with pytest.raises(ValueError, match="`sequence_length` must be"):
        windows(["abc"], TOKENIZER, 1, sequence_length=0)


def test_each_epoch_begins_its_windows_at_another_offset():
    texts = some_texts(20)
    dataset = windows(
        texts, TOKENIZER, 1, sequence_length=9, random_offset=True
    )
    whole = windows(texts, TOKENIZER, 1, sequence_length=9)
    epochs = [arrays(dataset) for _ in range(8)]
    assert {len(epoch) for epoch in epochs} == {len(whole) - 1}
    assert dataset.cardinality() == len(whole) - 1
    found = [{x.tobytes() for x, _, _ in epoch} for epoch in epochs]
    assert not found[0] == found[1] == found[2]
    # Each window is one of the stream's, wherever it begins.
    stream = [
        EOS,
        *itertools.chain(*([*TOKENIZER.tokenize(t), EOS] for t in texts)),
    ]
    places = {tuple(stream[i : i + 9]) for i in range(len(stream))}
    for x, y, w in itertools.chain(*epochs):
        if w.all():
            assert tuple(x[0]) in places and tuple(y[0]) in places


def test_what_is_scored_is_not_offset():
    with pytest.raises(ValueError, match="`random_offset` must be False"):
        windows(["abc"], TOKENIZER, 1, random_offset=True, training=False)


# ---------------------------------------------------------- streams


@given(
    texts=st.lists(WORD, min_size=1, max_size=20),
    length=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    joined=st.booleans(),
)
@settings(max_examples=30)
def test_a_row_goes_on_where_it_stopped(texts, length, batch_size, joined):
    ring = list(TOKENIZER.tokenize("".join(texts)))
    if not joined:
        ring = [i for t in texts for i in (*TOKENIZER.tokenize(t), EOS)]
    else:
        ring.append(EOS)
    arguments = {"sequence_length": length, "joined": joined, "reset": 0.5}
    if len(ring) // batch_size < length:
        with pytest.raises(ValueError, match="`sequence_length` must be at"):
            streams(texts, TOKENIZER, batch_size, **arguments)
        return
    dataset = streams(texts, TOKENIZER, batch_size, **arguments)
    batches = arrays(dataset)
    steps = len(ring) // batch_size // length
    assert len(batches) == dataset.cardinality() == steps
    stride = len(ring) // batch_size
    inputs = np.concatenate([np.maximum(x, ~x) for x, _, _ in batches], 1)
    targets = np.concatenate([y for _, y, _ in batches], 1)
    assert inputs.shape == (batch_size, steps * length)
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    # The rows are a stride of the ring apart, from one place on.
    begins = [
        begin
        for begin in range(len(ring))
        if all(
            ring[(begin + row * stride + k) % len(ring)] == inputs[row, k]
            for row in range(batch_size)
            for k in range(steps * length)
        )
    ]
    assert begins
    for x, y, weights in batches:
        assert x.dtype == y.dtype == np.int32 and (y > 0).all()
        assert (x[:, 1:] > 0).all() and (weights == 1).all()
    assert (batches[0][0][:, 0] < 0).all()


def test_a_share_of_rows_begins_anew():
    dataset = streams(some_texts(900), TOKENIZER, 8, sequence_length=4)
    marks = np.array([x[:, 0] < 0 for x, _, _ in arrays(dataset)][1:])
    assert 0.005 < marks.mean() < 0.05
    none = streams(some_texts(), TOKENIZER, 2, sequence_length=4, reset=0)
    assert not any((x < 0).any() for x, _, _ in arrays(none)[1:])


def test_an_epoch_cuts_the_ring_elsewhere_and_a_seed_says_where():
    first, again, other = (
        streams(some_texts(), TOKENIZER, 4, sequence_length=5, seed=seed)
        for seed in (1, 1, 2)
    )
    epochs = [arrays(first), arrays(first)]
    assert not equal(*epochs)
    assert equal(epochs[0], arrays(again)) and equal(epochs[1], arrays(again))
    assert not equal(epochs[0], arrays(other))


# ---------------------------------------------------------- all of it


@pytest.mark.parametrize("make", [lines, windows, streams])
def test_no_python_runs_between_texts_and_batches(make):
    dataset = make(some_texts(200), TOKENIZER, 4)
    graph = tf.raw_ops.DatasetToGraphV2(
        input_dataset=dataset._variant_tensor
    ).numpy()
    assert b"DecodeRaw" in graph or make is streams
    assert b"PyFunc" not in graph


@pytest.mark.trains
@pytest.mark.parametrize("make", [lines, windows])
def test_one_dataset_trains_under_every_backend(make):
    from keras_chargen import CharRNN

    model = CharRNN(TOKENIZER, units=8)
    model.compile()
    arguments = {lines: {"buckets": [32]}, windows: {"sequence_length": 16}}
    arguments = arguments[make]
    history = model.fit(
        make(some_texts(200), TOKENIZER, 8, **arguments),
        validation_data=make(
            some_texts(20), TOKENIZER, 8, training=False, **arguments
        ),
        epochs=3,
        shuffle=False,
        verbose=0,
    ).history
    assert history["loss"][2] < history["loss"][0]
    assert history["val_bits_per_character"][2] < np.log2(29)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_tensorflow_claims_a_gpu_only_as_the_backend(backend):
    # The session of a backend need not have the others installed.
    if backend != keras.backend.backend():
        pytest.importorskip(backend)
    source = """
import keras, tensorflow as tf
calls = []
tf.config.set_visible_devices = lambda *args: calls.append(args)
import keras_chargen.pipeline
print(calls)
"""
    result = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [] if backend == "tensorflow" else [([], "GPU")]
    assert result.stdout.strip() == str(expected)


@pytest.mark.parametrize("make", [pipeline.lines, pipeline.windows])
def test_no_thread_of_tensorflow_tunes_a_dataset(make):
    # It may sleep for a minute before it lets an epoch end.
    dataset = make(["abc"] * 999, CharTokenizer("abc"), 2)
    assert dataset.options().autotune.enabled is False


@pytest.mark.parametrize("make", [pipeline.lines, pipeline.windows])
@pytest.mark.parametrize("most, passes", [(1 << 24, 1), (10, 3)])
def test_few_ids_stay_in_memory(make, most, passes, monkeypatch):
    monkeypatch.setattr(pipeline, "KEPT_IDS", most)
    read = []

    def texts():
        read.append(1)
        yield from ["abc", "cab", "bc"] * 200

    given = pipeline.tf.data.Dataset.from_generator(
        texts, output_signature=pipeline.tf.TensorSpec((), "string")
    )
    dataset = make(given, CharTokenizer("abc"), 4, training=False)
    before = len(read)
    epochs = [list(dataset.as_numpy_iterator()) for _ in range(3)]
    assert len(read) - before == passes
    for epoch in epochs[1:]:
        for a, b in zip(epochs[0], epoch, strict=True):
            np.testing.assert_array_equal(a[0], b[0])
