"""Dynamic evaluation: scored first, learned from after."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_chargen import (
    CharRNN,
    CharTokenizer,
    DynamicEvaluation,
    dynamic,
)
from keras_chargen.compilation import compile_function, kept

trains = pytest.mark.trains
CHARACTERS = "abcd "
TEXTS = ["abc", "", "a bad cab, a dab", "d" * 9]
OTHER_STYLE = "dada abba " * 30


def make(cell="lstm", start=True, units=3, **options):
    keras.utils.set_random_seed(3)
    tokenizer = CharTokenizer([*CHARACTERS])
    return CharRNN(tokenizer, cell=cell, units=units, start=start, **options)


@pytest.fixture(scope="module")
def model():
    return make()


def reference(model, texts, learning_rate, decay, length, largest=10):
    """Nats of each character: gradients by differences, the rest by NumPy."""
    tokenizer = model.tokenizer
    eos = tokenizer.eos_id
    rows = []
    for text in texts:
        ids = np.array([eos, *tokenizer.tokenize(text), eos], "int32")
        for first in range(0, len(ids) - 1, length):
            rows.append((first == 0, ids[first : first + length + 1]))
    variables = model.trainable_variables
    trained = [np.array(value) for value in model.get_weights()]
    run = compile_function(model.call_with_state, model.variables)

    def nats(weights, ids, state):
        for variable, weight in zip(variables, weights, strict=True):
            variable.assign(weight)
        logits, state = run(ids[None, :-1], state)
        logits = np.array(ops.convert_to_numpy(logits), "float64")[0]
        chosen = logits[np.arange(len(ids) - 1), ids[1:]]
        found = np.log(np.exp(logits).sum(-1)) - chosen
        return found, keras.tree.map_structure(ops.convert_to_numpy, state)

    def gradient(weights, ids, state, h=1e-2):
        found = []
        for i, weight in enumerate(weights):
            slopes = np.zeros(weight.shape)
            for place in np.ndindex(weight.shape):
                moved = [w.copy() for w in weights]
                both = []
                for sign in (1, -1):
                    moved[i][place] = weight[place] + sign * h
                    both.append(nats(moved, ids, state)[0].sum())
                slopes[place] = (both[0] - both[1]) / (2 * h * length)
            found.append(slopes)
        return found

    weights = trained
    state = nothing = keras.tree.map_structure(
        ops.convert_to_numpy, model.initial_state(1)
    )
    squares, result = [0.0] * len(weights), []
    for count, (begins, row) in enumerate(rows, 1):
        before = nothing if begins else state
        found, state = nats(weights, row, before)
        result.append(found)
        if count == len(rows):
            break
        slopes = gradient(weights, row, before)
        squares = [s + g * g for s, g in zip(squares, slopes, strict=True)]
        roots = [np.sqrt(s / count) for s in squares]
        mean = np.concatenate([root.ravel() for root in roots]).mean()
        share = (len(row) - 1) / length
        updates = [
            g / (r + 0.1 * mean) for g, r in zip(slopes, roots, strict=True)
        ]
        flat = np.concatenate([update.ravel() for update in updates])
        rate = learning_rate / max(np.sqrt((flat**2).mean()) / largest, 1)
        weights = [
            w - rate * u + np.minimum(decay * r / mean, 1) * share * (w0 - w)
            for w, w0, u, r in zip(
                weights, trained, updates, roots, strict=True
            )
        ]
        weights = [w.astype("float32") for w in weights]
    model.set_weights(trained)
    return np.concatenate(result)


@trains
@pytest.mark.parametrize("largest", [10, 0.3])
def test_the_rule_is_that_of_the_paper(largest, monkeypatch):
    monkeypatch.setattr(dynamic, "_LARGEST", largest)
    model = make(units=2, embedding_dim=2)
    # Stretches of 6 and of 2, which counts for a third, and then the judge.
    texts = ["a bad c", "ad"]
    expected = reference(model, texts, 0.1, 0.8, 6, largest)
    scores = dynamic.score(
        model, texts, learning_rate=0.1, decay=0.8, segment_length=6
    )
    found, static = (
        np.concatenate([score.surprisal for score in some])
        for some in (scores, model.score(texts))
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)
    # It did move: the static figures lie far from these.
    np.testing.assert_allclose(found[:6], static[:6], atol=1e-5)
    assert np.abs(static[6:] - expected[6:]).max() > 0.05


@trains
@pytest.mark.parametrize(
    "cell, start", [("lstm", True), ("gru", False), ("simple", True)]
)
def test_a_model_that_learns_nothing_scores_as_it_does_at_rest(cell, start):
    model = make(cell, start)
    expected = model.score(TEXTS)
    found = dynamic.score(model, TEXTS, learning_rate=0, segment_length=7)
    for one, other in zip(found, expected, strict=True):
        assert one[:3] == other[:3]
        np.testing.assert_allclose(one.surprisal, other.surprisal, atol=1e-5)
        assert one.nats == pytest.approx(other.nats, rel=1e-5)


@trains
def test_it_learns_a_style_that_training_did_not_show(model):
    static = model.score(OTHER_STYLE).nats
    for training in (None, "a bad cab " * 9):
        learned = model.score(
            OTHER_STYLE,
            dynamic_evaluation=True,
            training_texts=training,
            learning_rate=0.02,
        ).nats
        assert learned < 0.95 * static


@trains
def test_the_weights_learn_on_from_text_to_text(model):
    first, again = dynamic.score(model, ["a cab"] * 2, learning_rate=0.02)
    assert again.nats < first.nats


@trains
def test_decay_holds_the_weights_where_training_left_them(model):
    free, held = (
        dynamic.score(model, OTHER_STYLE, learning_rate=0.02, decay=decay).nats
        for decay in (0.0, 1.0)
    )
    static = model.score(OTHER_STYLE).nats
    assert free < held < static


@trains
def test_training_texts_say_how_far_a_weight_moves(model):
    expected = dynamic.score(model, OTHER_STYLE).nats
    found = [
        dynamic.score(model, OTHER_STYLE, training_texts=texts).nats
        for texts in ("ab" * 50, ["ab" * 50], ["dc" * 50], [])
    ]
    assert found[0] == found[1] != found[2]
    assert found[3] == expected


@trains
def test_no_more_of_the_training_texts_is_read_than_is_measured(
    model, monkeypatch
):
    monkeypatch.setattr(dynamic, "_MEASURED", 3)
    texts = itertools.repeat("abba")
    assert dynamic.score(model, "ab", training_texts=texts).characters == 3


@trains
def test_each_call_begins_with_the_trained_weights(model):
    evaluation = DynamicEvaluation(model, learning_rate=0.02)
    first = evaluation.stream_score(["a cab", " a dab"])
    assert evaluation.stream_score(["a cab a", " dab"]) == first


@trains
def test_a_stream_is_scored_as_one_text(model):
    evaluation = DynamicEvaluation(model, learning_rate=0.02)
    pieces = [OTHER_STYLE[:70], "?", OTHER_STYLE[70:]]
    score = evaluation.stream_score(pieces)
    (whole,) = evaluation.iter_scores(["".join(pieces)])
    assert score[:4] == whole[:4]
    assert (score.texts, score.dropped) == (1, 1)


@trains
def test_the_weights_of_the_model_stay_as_they_were():
    model = make()
    before = model.get_weights()

    def texts():
        yield OTHER_STYLE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dynamic.score(model, texts(), learning_rate=0.1)
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


@trains
def test_new_weights_of_a_model_are_those_that_are_scored():
    model = make()
    dynamic.score(model, "ab")
    model.set_weights([3 * weight for weight in model.get_weights()])
    found = dynamic.score(model, "a bad cab", learning_rate=0).nats
    assert found == pytest.approx(model.score("a bad cab").nats, rel=1e-5)


@trains
def test_a_model_in_half_precision_learns():
    model = make(dtype="mixed_bfloat16")
    learned = dynamic.score(model, OTHER_STYLE, learning_rate=0.02)
    assert learned.nats < 0.95 * model.score(OTHER_STYLE).nats


@trains
def test_one_program_serves_every_rate_and_text():
    model = make()
    dynamic.score(model, "ab")
    program = kept(model, "dynamic evaluation", lambda: None)
    assert program is not None
    dynamic.score(model, TEXTS, learning_rate=0.5, decay=0.1)
    assert kept(model, "dynamic evaluation", lambda: None) is program


@trains
@pytest.mark.parametrize(
    "setting, value",
    [
        ("learning_rate", -1),
        ("learning_rate", float("nan")),
        ("decay", 1.5),
        ("segment_length", 0),
    ],
)
def test_a_setting_out_of_range_is_refused(model, setting, value):
    with pytest.raises(ValueError, match=f"`{setting}` must be"):
        DynamicEvaluation(model, **{setting: value})


@pytest.mark.skipif(
    keras.backend.backend() not in ("numpy", "openvino"),
    reason="has gradients",
)
def test_a_backend_without_gradients_is_refused(model):
    with pytest.raises(ValueError, match="tensorflow, jax or torch"):
        model.score("ab", dynamic_evaluation=True)
