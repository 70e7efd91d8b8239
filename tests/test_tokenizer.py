"""Characters to ids and back."""

import json
from collections import Counter

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_chargen import tokenizer as room
from keras_chargen.tokenizer import (
    CharacterCounts,
    CharTokenizer,
    blocks,
    pad,
)

# Every code point, the lone surrogates among them.
ANY_TEXT = st.text(st.characters(exclude_categories=()))
TEXTS = ["hello", "help", "", "yell"]


def adapted(texts=TEXTS, **arguments):
    tokenizer = CharTokenizer(**arguments)
    tokenizer.adapt(texts)
    return tokenizer


def legacy_ids(texts):
    """Ids as the legacy Keras `Tokenizer` gives them to characters."""
    counts = Counter()
    for text in texts:
        for character in text:
            counts[character] += 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return {character: i + 1 for i, (character, _) in enumerate(ranked)}


def numpy(ids):
    return ops.convert_to_numpy(ids)


# ---------------------------------------------------------- vocabulary


@given(st.lists(ANY_TEXT).filter(lambda texts: any(texts)))
def test_ids_are_those_of_the_legacy_tokenizer_and_eos_follows(texts):
    tokenizer, expected = adapted(texts), legacy_ids(texts)
    ids = {c: i + 1 for i, c in enumerate(tokenizer.characters)}
    assert ids == expected
    assert tokenizer.eos_id == len(expected) + 1
    assert tokenizer.vocabulary_size() == len(expected) + 2


@given(st.lists(ANY_TEXT))
def test_texts_are_counted_as_they_pass(texts):
    counts, seen = CharacterCounts(), Counter()
    assert list(counts.watch(texts)) == texts
    for text in texts:
        seen.update(text)
    assert list(counts.by_character().items()) == list(seen.items())
    assert counts.characters == seen.total()
    assert counts.texts == len(texts)


def test_counts_do_not_depend_on_blocks(monkeypatch):
    monkeypatch.setattr(room, "BLOCK_TEXTS", 2)
    monkeypatch.setattr(room, "BLOCK_CHARACTERS", 3)
    counts = CharacterCounts()
    assert "".join(counts.watch(["b", "a", "abcdee", "b\u20ac"])) == (
        "baabcdeeb\u20ac"
    )
    assert counts.by_character() == {
        **{"b": 3, "a": 2, "c": 1, "d": 1, "e": 2, "\u20ac": 1}
    }


def test_a_block_ends_with_its_number_of_texts_or_a_long_one(monkeypatch):
    monkeypatch.setattr(room, "BLOCK_TEXTS", 2)
    monkeypatch.setattr(room, "BLOCK_CHARACTERS", 5)
    assert list(blocks(iter(["a", "b", "abcde", "", "a"]))) == [
        ["a", "b"],
        ["abcde"],
        ["", "a"],
    ]


def test_the_vocabulary_names_every_id():
    assert adapted().get_vocabulary() == [
        *["", "l", "e", "h", "o", "p", "y", "<eos>"]
    ]
    assert adapted(oov="unk").get_vocabulary()[-2:] == ["<eos>", "<unk>"]


@pytest.mark.parametrize(
    "data",
    [
        "hello",
        b"hello",
        ["hel", "lo"],
        (text for text in ["hel", "lo"]),
        np.array(["hel", "lo"]),
        np.array([["hel"], ["lo"]], object),
    ],
    ids=["str", "bytes", "list", "generator", "array", "object array"],
)
def test_every_kind_of_data_gives_the_vocabulary(data):
    assert adapted(data).characters == ("l", "h", "e", "o")


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize("batched", [False, True])
def test_a_dataset_gives_the_vocabulary(batched):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(["hel", "lo"])
    data = data.batch(2) if batched else data
    assert adapted(data).characters == ("l", "h", "e", "o")


def test_a_second_adapt_replaces_the_first():
    tokenizer = adapted(["abc"])
    tokenizer.adapt(["xy"])
    assert tokenizer.characters == ("x", "y")
    assert tokenizer.tokenize("ax").tolist() == [1]


@pytest.mark.parametrize("data", ["", [], ["", ""]])
def test_adapt_refuses_data_without_a_character(data):
    with pytest.raises(ValueError, match="at least one character"):
        adapted(data)


def test_adapt_refuses_what_is_no_text():
    with pytest.raises(ValueError, match=r"must be a str or bytes.*int"):
        adapted([1, 2])


@pytest.mark.parametrize(
    "vocabulary", [[], ["a", "a"], ["ab"], [""], [1]], ids=repr
)
def test_a_vocabulary_of_other_things_is_refused(vocabulary):
    with pytest.raises(ValueError, match="`vocabulary` must hold"):
        CharTokenizer(vocabulary)


def test_an_unknown_way_with_unknown_characters_is_refused():
    with pytest.raises(ValueError, match="`oov` must be one of 'drop', 'unk'"):
        CharTokenizer(oov="keep")


@pytest.mark.parametrize(
    "use",
    [
        lambda tokenizer: tokenizer("a"),
        lambda tokenizer: tokenizer.tokenize("a"),
        lambda tokenizer: tokenizer.vocabulary_size(),
        lambda tokenizer: tokenizer.get_vocabulary(),
        lambda tokenizer: tokenizer.detokenize([1]),
        lambda tokenizer: tokenizer.table,
    ],
)
def test_every_use_before_adapt_says_to_adapt(use):
    with pytest.raises(ValueError, match=r"Call `adapt\(texts\)` first"):
        use(CharTokenizer())


def test_titles_of_ag_news_give_82_ids(shared_data):
    from keras_chargen.corpora import open_corpus

    titles = open_corpus(
        shared_data / "ag_news" / "train.csv.gz",
        columns=["label", "title", "description"],
        field="title",
    )
    tokenizer = adapted(list(titles))
    assert tokenizer.vocabulary_size() == 82
    assert tokenizer.detokenize(tokenizer("Hello, world!")) == "Hello, world!"


# ---------------------------------------------------------- round trips


@given(st.lists(ANY_TEXT, min_size=1).filter(lambda texts: any(texts)))
def test_any_text_that_adapt_saw_comes_back(texts):
    tokenizer = adapted(texts)
    assert tokenizer.detokenize(tokenizer.tokenize(texts)) == texts
    for text in texts:
        assert tokenizer.detokenize(tokenizer(text)) == text


@pytest.mark.parametrize(
    "text", ["\0", "e\u0301", "\U0001f600\U00010000", "\ud800", "a\r\n\u2028b"]
)
def test_odd_characters_come_back(text):
    tokenizer = adapted([text])
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


@given(st.binary(min_size=1))
def test_bytes_come_back_as_utf8_reads_them(data):
    tokenizer = adapted([data])
    expected = data.decode("utf-8", "replace")
    assert tokenizer.detokenize(tokenizer(data)) == expected


@given(st.text(), st.sampled_from(["drop", "unk"]))
def test_no_text_is_too_strange_to_read(text, oov):
    tokenizer = adapted(oov=oov)
    known = set(tokenizer.characters)
    other = "" if oov == "drop" else "\ufffd"
    expected = "".join(c if c in known else other for c in text)
    assert tokenizer.detokenize(tokenizer(text)) == expected


def test_unknown_characters_are_named_where_they_are_an_error():
    with pytest.raises(ValueError, match=r"\['\?', 'q'\].*oov=\"drop\""):
        adapted(oov="error")("he?lq")


def test_the_unknown_id_follows_eos():
    tokenizer = adapted(oov="unk")
    assert tokenizer.unknown_id == tokenizer.eos_id + 1
    assert numpy(tokenizer("q")).tolist() == [tokenizer.unknown_id]
    assert adapted().unknown_id is None


# ---------------------------------------------------------- calls


@pytest.mark.parametrize(
    "inputs",
    [["hello", "he"], ("hello", "he"), np.array(["hello", "he"])],
    ids=["list", "tuple", "array"],
)
def test_a_batch_is_padded_on_the_right_with_0(inputs):
    ids = adapted()(inputs)
    assert ops.is_tensor(ids)
    assert keras.backend.standardize_dtype(ids.dtype) == "int32"
    assert numpy(ids).tolist() == [[3, 2, 1, 1, 4], [3, 2, 0, 0, 0]]


def test_one_text_gives_one_row():
    assert numpy(adapted()("he")).tolist() == [3, 2]
    assert numpy(adapted()("")).shape == (0,)


def test_nested_texts_keep_their_shape():
    ids = numpy(adapted()([["he", "l"], ["o", ""]]))
    assert ids.tolist() == [[[3, 2], [1, 0]], [[4, 0], [0, 0]]]


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize("text", [b"help", [b"hello", b"he", b""], [[b"l"]]])
def test_a_tensor_of_strings_gives_a_tensor_of_the_same_ids(text):
    import tensorflow as tf

    tokenizer = adapted()
    ids = tokenizer(tf.constant(text))
    assert tf.is_tensor(ids) and ids.dtype == tf.int32
    np.testing.assert_array_equal(ids.numpy(), numpy(tokenizer(text)))


@pytest.mark.needs_tensorflow
def test_a_dataset_maps_it_without_calling_python():
    import tensorflow as tf

    tokenizer = adapted()
    dataset = tf.data.Dataset.from_tensor_slices(["hello", "hep"]).batch(2)
    dataset = dataset.map(tokenizer)
    (ids,) = dataset.as_numpy_iterator()
    assert ids.tolist() == [[3, 2, 1, 1, 4], [3, 2, 5, 0, 0]]
    graph = tf.raw_ops.DatasetToGraphV2(
        input_dataset=dataset._variant_tensor
    ).numpy()
    assert b"unicode" in graph.lower() and b"PyFunc" not in graph


def test_a_symbolic_input_gives_a_symbolic_output():
    inputs = keras.KerasTensor((4,), dtype="string")
    output = adapted()(inputs)
    assert output.shape == (4, None) and output.dtype == "int32"


# ---------------------------------------------------------- decoding


def test_decoding_skips_padding_and_stops_at_eos():
    tokenizer = adapted()
    ids = [3, 0, 2, tokenizer.eos_id, 1]
    assert tokenizer.detokenize(ids) == "he"


@pytest.mark.parametrize(
    "make",
    [list, np.array, ops.convert_to_tensor],
    ids=["list", "array", "tensor"],
)
def test_ids_of_every_kind_are_decoded(make):
    tokenizer = adapted()
    assert tokenizer.detokenize(make([3, 2, 1])) == "hel"
    assert tokenizer.detokenize(make([[3, 2], [1, 0]])) == ["he", "l"]


def test_rows_of_unequal_lengths_are_decoded():
    assert adapted().detokenize([[3, 2, 1], [4], []]) == ["hel", "o", ""]


def test_nothing_decodes_to_nothing():
    assert adapted().detokenize([]) == ""
    assert adapted().detokenize(np.zeros((0, 5), "int32")) == []


@given(st.lists(st.integers(0, 8)))
def test_every_id_in_range_is_decoded(ids):
    tokenizer = adapted(oov="unk")
    text = tokenizer.detokenize(ids)
    assert set(text) <= {*tokenizer.characters, "\ufffd"}


@pytest.mark.parametrize("ids", [[-1], [9], [[1, 2], [3, 99]]], ids=repr)
def test_an_id_out_of_range_is_refused(ids):
    with pytest.raises(ValueError, match="ids must be from 0 to 8"):
        adapted(oov="unk").detokenize(ids)


# ---------------------------------------------------------- the rest


@pytest.mark.parametrize("oov", ["drop", "unk", "error"])
def test_all_but_padding_and_unknown_may_be_written(oov):
    writable = adapted(oov=oov).writable()
    expected = [False, *[True] * 7, *[False] * (oov == "unk")]
    assert writable.dtype == bool and writable.tolist() == expected


@given(
    st.lists(ANY_TEXT, min_size=1).filter(lambda texts: any(texts)),
    st.sampled_from(["drop", "unk", "error"]),
)
def test_a_config_in_json_gives_the_tokenizer_back(texts, oov):
    tokenizer = adapted(texts, oov=oov)
    saved = keras.saving.serialize_keras_object(tokenizer)
    loaded = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(saved))
    )
    assert loaded.get_vocabulary() == tokenizer.get_vocabulary()
    assert loaded.oov == oov


def test_a_tokenizer_without_vocabulary_has_a_config_too():
    loaded = CharTokenizer.from_config(CharTokenizer(oov="unk").get_config())
    loaded.adapt(["a"])
    assert loaded.vocabulary_size() == 4


def test_rows_are_stacked_to_a_given_size():
    rows = [np.array([1, 2]), np.array([3])]
    assert pad(rows).tolist() == [[1, 2], [3, 0]]
    assert pad(rows, 3, 3).tolist() == [[1, 2, 0], [3, 0, 0], [0, 0, 0]]
    assert pad([]).shape == (0, 0)
