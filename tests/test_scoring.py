"""Sums of nats, exact over any cut of texts and batches."""

import itertools
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_chargen import CharRNN, CharTokenizer, scoring
from keras_chargen.compilation import compile_function
from keras_chargen.scoring import (
    BitsPerCharacter,
    CharacterCount,
    Crossentropy,
    Score,
)

CHARACTERS = "abcdefgh "
TEXTS = ["abc", "", "hello? a bad cab", "a" * 40, "hgfedcba " * 6]


def make(start=True, oov="drop"):
    keras.utils.set_random_seed(2)
    tokenizer = CharTokenizer([*CHARACTERS], oov=oov)
    model = CharRNN(tokenizer, units=8, start=start)
    model.set_weights([3 * weight for weight in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def model():
    return make()


def nats_of(model, text):
    """The same by NumPy, a character at a time, in float64."""
    tokenizer = model.tokenizer
    ids = [*tokenizer.tokenize(text), tokenizer.eos_id]
    if model.start:
        ids = [tokenizer.eos_id, *ids]
    step = compile_function(model.step, model.variables)
    state = keras.tree.map_structure(
        ops.convert_to_numpy, model.initial_state(1)
    )
    total = 0.0
    for i, following in itertools.pairwise(ids):
        logits, state = step(np.array([i], "int32"), state)
        logits = np.array(ops.convert_to_numpy(logits)[0], "float64")
        top = logits.max()
        total += np.log(np.exp(logits - top).sum()) + top - logits[following]
    return total


@pytest.mark.parametrize("start", [True, False])
def test_nats_are_those_of_the_model_step_by_step(start):
    model = make(start)
    for text, score in zip(TEXTS, model.score(TEXTS), strict=True):
        assert score.nats == pytest.approx(nats_of(model, text), rel=1e-4)


def test_every_character_and_the_closing_eos_are_counted(model):
    counts = [(score.characters, score.dropped) for score in model.score(TEXTS)]
    # `l`, `o` and `?` are unknown and left out.
    assert counts == [(4, 0), (1, 0), (13, 4), (41, 0), (55, 0)]


def test_without_start_the_first_character_is_not_scored():
    scores = make(start=False).score(["abc", ""])
    assert [score.characters for score in scores] == [3, 0]


def test_unknown_characters_are_scored_where_they_have_an_id():
    (score,) = make(oov="unk").score(["a?b"])
    assert (score.characters, score.dropped) == (4, 0)


def test_unknown_characters_are_refused_where_they_are_an_error():
    with pytest.raises(ValueError, match="outside the vocabulary"):
        make(oov="error").score("a?b")


def test_a_str_gives_one_score_and_a_list_a_list(model):
    assert isinstance(model.score("abc"), Score)
    assert model.score([]) == []


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_figures_do_not_depend_on_the_batch(model, batch_size):
    expected = [score.nats for score in model.score(TEXTS, batch_size=2)]
    scores = model.score(TEXTS, batch_size=batch_size)
    assert [s.nats for s in scores] == pytest.approx(expected, rel=1e-5)


def test_figures_do_not_depend_on_the_window(monkeypatch):
    whole = make().score(TEXTS)
    monkeypatch.setattr(scoring, "WINDOW", 16)
    parts = make().score(TEXTS)
    assert [s.nats for s in parts] == pytest.approx(
        [s.nats for s in whole], rel=1e-5
    )
    assert [s.characters for s in parts] == [s.characters for s in whole]


def test_a_text_longer_than_a_window_is_scored_whole(model):
    text = "bad cab " * 80
    assert len(text) > 2 * scoring.WINDOW
    score = model.score(text)
    assert score.characters == len(text) + 1
    assert score.nats == pytest.approx(nats_of(model, text), rel=1e-4)


def test_texts_are_read_as_they_are_needed(model):
    read = []

    def texts():
        for text in itertools.cycle(["abc", "b"]):
            read.append(text)
            yield text

    scores = scoring.iter_scores(model, texts(), batch_size=2)
    assert next(scores).characters == 4
    assert len(read) <= 32


@pytest.mark.parametrize("batch_size", [0, -1, 2.0])
def test_a_batch_size_out_of_range_is_refused_at_the_call(model, batch_size):
    with pytest.raises(ValueError, match="`batch_size` must be"):
        scoring.iter_scores(model, ["a"], batch_size)


STREAM = "a bad cab, hahaha. " * 40


@settings(max_examples=8)
@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_a_stream_is_scored_as_one_text_however_it_is_cut(model, cuts):
    bounds = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(bounds)]
    total = scoring.stream_score(model, iter(pieces))
    whole = model.score(STREAM)
    assert total[:3] == whole[:3]
    assert total.nats == pytest.approx(whole.nats, rel=1e-5)


def test_a_stream_without_start_loses_its_first_character_alone():
    model = make(start=False)
    total = scoring.stream_score(model, ["ab", "c"])
    assert total.characters == 3
    assert total.nats == pytest.approx(nats_of(model, "abc"), rel=1e-4)


def blocks_of(model, text, places, length):
    """Nats of blocks read from nothing, a character at a time."""
    ids = model.tokenizer.tokenize(text)
    step = compile_function(model.step, model.variables)
    total = 0.0
    for place in places:
        state = keras.tree.map_structure(
            ops.convert_to_numpy, model.initial_state(1)
        )
        row = ids[place : place + length + 1]
        for i, following in itertools.pairwise(row):
            logits, state = step(np.array([i], "int32"), state)
            logits = np.array(ops.convert_to_numpy(logits)[0], "float64")
            total += np.log(np.exp(logits).sum()) - logits[following]
    return total


def test_blocks_in_a_row_count_every_character_but_the_first(model):
    text = "a bad cab, hahaha. " * 3
    score = scoring.block_score(model, text, block_length=16, batch_size=2)
    known = len(model.tokenizer.tokenize(text))
    assert score[:3] == (-(-(known - 1) // 16), known - 1, len(text) - known)
    expected = blocks_of(model, text, range(0, known - 1, 16), 16)
    assert score.nats == pytest.approx(expected, rel=1e-4)


def test_blocks_at_random_places_are_those_of_the_seed(model):
    text = "a bad cab " * 4
    places = np.random.default_rng(5).integers(len(text) - 16, size=5)
    score = scoring.block_score(model, text, 16, blocks=5, seed=5)
    assert score[:3] == (5, 5 * 16, 0)
    expected = blocks_of(model, text, places, 16)
    assert score.nats == pytest.approx(expected, rel=1e-4)
    assert scoring.block_score(model, text, 16, 5, seed=6).nats != score.nats


def test_blocks_do_not_depend_on_the_pieces_of_a_stream(model):
    whole = scoring.block_score(model, "a bad cab " * 4, 16)
    assert scoring.block_score(model, ["a bad cab "] * 4, 16) == whole


def test_a_stream_no_longer_than_a_block_is_refused(model):
    assert scoring.block_score(model, "a" * 17, 16).characters == 16
    for text in ("a" * 16, []):
        with pytest.raises(ValueError, match="a block of 16 needs"):
            scoring.block_score(model, text, 16)


@pytest.mark.parametrize("name", ["block_length", "blocks", "batch_size"])
def test_a_number_of_blocks_out_of_range_is_refused(model, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        scoring.block_score(model, "a" * 99, **{name: 0})


def test_scores_add_up():
    total = Score(1, 4, 0, 2.0) + Score(2, 4, 3, 6.0)
    assert total == Score(3, 8, 3, 8.0)
    assert total.nats_per_character == 1
    assert total.bits_per_character == pytest.approx(1 / math.log(2))
    assert total.perplexity == pytest.approx(math.e)


def test_nothing_scored_has_no_mean():
    assert math.isnan(scoring.EMPTY.bits_per_character)
    assert math.isnan(scoring.EMPTY.perplexity)


def test_a_perplexity_too_large_is_infinite():
    assert Score(1, 1, 0, 1e6).perplexity == math.inf


# ---------------------------------------------------------- metrics


def uneven_batches():
    random = np.random.default_rng(0)
    for rows, steps in ((4, 3), (2, 9), (1, 1)):
        targets = random.integers(0, 6, (rows, steps)).astype("int32")
        logits = random.normal(0, 3, (rows, steps, 6)).astype("float32")
        weights = random.choice([0.0, 1.0, 2.5], (rows, steps))
        yield targets, logits, weights.astype("float32")


def bits(targets, logits):
    logits = logits.astype("float64")
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (np.log(np.exp(logits).sum(-1)) - chosen) / math.log(2)


def test_bits_per_character_is_the_mean_over_all_batches_at_once():
    metric = BitsPerCharacter()
    total = count = 0.0
    for targets, logits, weights in uneven_batches():
        metric.update_state(targets, logits, weights)
        weights = weights * (targets != 0)
        total += (bits(targets, logits) * weights).sum()
        count += weights.sum()
    assert float(metric.result()) == pytest.approx(total / count, rel=1e-5)
    metric.reset_state()
    assert float(metric.result()) == 0


def test_without_weights_padding_alone_is_left_out():
    metric = BitsPerCharacter()
    targets, logits, _ = next(uneven_batches())
    metric.update_state(targets, logits)
    expected = bits(targets, logits)[targets != 0].mean()
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


def test_what_has_no_weight_may_be_impossible():
    metric = BitsPerCharacter()
    logits = np.array([[[0, 0, 0], [0, 0, -np.inf]]], "float32")
    metric.update_state(np.array([[1, 2]]), logits, np.array([[1.0, 0.0]]))
    assert float(metric.result()) == pytest.approx(math.log2(3))


def test_the_loss_is_that_of_keras():
    theirs = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    for targets, logits, weights in uneven_batches():
        expected = float(theirs(targets, logits, weights))
        found = float(Crossentropy()(targets, logits, weights))
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_saved_with_its_reduction():
    saved = keras.saving.serialize_keras_object(Crossentropy("sum"))
    loaded = keras.saving.deserialize_keras_object(saved)
    assert type(loaded) is Crossentropy and loaded.reduction == "sum"


def test_characters_with_a_weight_are_counted():
    metric = CharacterCount()
    expected = 0
    for targets, logits, weights in uneven_batches():
        metric.update_state(targets, logits, weights)
        expected += ((targets != 0) & (weights > 0)).sum()
    result = metric.result()
    metric.reset_state()
    # What was read before stays as it was.
    assert float(result) == expected
    assert float(metric.result()) == 0


@pytest.mark.parametrize("metric", [BitsPerCharacter, CharacterCount])
def test_metrics_are_saved_by_name(metric):
    saved = keras.saving.serialize_keras_object(metric(name="other"))
    loaded = keras.saving.deserialize_keras_object(saved)
    assert type(loaded) is metric and loaded.name == "other"


@pytest.mark.trains
def test_fit_and_score_agree(model):
    model = make()
    model.compile()
    rows = [
        [model.tokenizer.eos_id, *ids, model.tokenizer.eos_id]
        for ids in model.tokenizer.tokenize(TEXTS)
    ]
    ids = np.zeros((len(rows), 60), "int32")
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    logs = model.evaluate(
        ids[:, :-1],
        ids[:, 1:],
        sample_weight=(ids[:, 1:] > 0).astype("float32"),
        batch_size=2,
        verbose=0,
        return_dict=True,
    )
    total = sum(model.score(TEXTS), scoring.EMPTY)
    assert logs["bits_per_character"] == pytest.approx(
        total.bits_per_character, rel=1e-4
    )


def test_smoothed_labels_are_spread_over_all_characters():
    logits = np.array([[[2.0, 0.0, -1.0]]], "float32")
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = Crossentropy(label_smoothing=0.3)(np.array([[1]]), logits)
    expected = -(0.7 * logs[0, 0, 1] + 0.3 * logs[0, 0].mean())
    assert float(found) == pytest.approx(expected, rel=1e-5)
    saved = keras.saving.serialize_keras_object(
        Crossentropy(label_smoothing=0.3)
    )
    loaded = keras.saving.deserialize_keras_object(saved)
    assert loaded.label_smoothing == 0.3


def test_labels_are_smoothed_by_a_share():
    with pytest.raises(ValueError, match="`label_smoothing` must be below 1"):
        Crossentropy(label_smoothing=1)
