"""The graph ops give the ids that the tokenizer gives on the host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_chargen.tokenizer import CharTokenizer

tf = pytest.importorskip("tensorflow")
from keras_chargen.graph_text import (  # noqa: E402
    padded_ids,
    ragged_ids,
    stream_ids,
)

TOKENIZERS = {
    oov: CharTokenizer([*"abc é\0", "\U0001f600"], oov=oov)
    for oov in ("drop", "unk", "error")
}
KNOWN = st.sampled_from(TOKENIZERS["drop"].characters)


@given(st.lists(st.text(st.characters(codec="utf-8") | KNOWN), min_size=1))
def test_any_text_gives_the_ids_of_the_host(texts):
    for oov in ("drop", "unk"):
        rows = ragged_ids(tf.constant(texts), TOKENIZERS[oov])
        assert rows.dtype == tf.int32
        assert rows.to_list() == [
            ids.tolist() for ids in TOKENIZERS[oov].tokenize(texts)
        ]


@given(
    st.lists(st.text(st.characters(codec="utf-8") | KNOWN)),
    st.booleans(),
)
def test_a_stream_has_the_ids_of_the_host_and_an_eos_after_each_text(
    texts, separated
):
    for oov in ("drop", "unk"):
        tokenizer = TOKENIZERS[oov]
        stream = stream_ids(tf.constant(texts, tf.string), tokenizer, separated)
        expected = []
        for ids in tokenizer.tokenize(texts):
            expected += [*ids, *[tokenizer.eos_id] * separated]
        assert stream.dtype == tf.int32
        assert stream.numpy().tolist() == expected


@given(st.lists(st.text(KNOWN), min_size=1))
def test_known_characters_are_no_error(texts):
    tokenizer = TOKENIZERS["error"]
    rows = ragged_ids(tf.constant(texts), tokenizer)
    assert tokenizer.detokenize(rows.to_list()) == texts
    stream = stream_ids(tf.constant(texts), tokenizer, separated=False)
    assert tokenizer.detokenize(stream) == "".join(texts)


@pytest.mark.parametrize("function", [ragged_ids, stream_ids])
@pytest.mark.parametrize("text", ["ax", "\U0001f601", "\U0010ffff"])
def test_an_unknown_character_is_an_error_of_the_graph(function, text):
    @tf.function
    def read(texts):
        ids = function(texts, TOKENIZERS["error"])
        return getattr(ids, "flat_values", ids)

    with pytest.raises(tf.errors.InvalidArgumentError, match="vocabulary"):
        read(tf.constant([text]))


def test_invalid_utf8_is_the_replacement_character():
    tokenizer = CharTokenizer(["a", "\ufffd"])
    rows = ragged_ids(tf.constant([b"a\xffa", b"\xc3"]), tokenizer)
    assert rows.to_list() == [[1, 2, 1], [2]]


@pytest.mark.parametrize(
    "texts, shape",
    [("ab", (2,)), (["ab", "a", ""], (3, 2)), ([["a"], ["b"]], (2, 1, 1))],
)
def test_padded_ids_keep_the_shape_of_the_texts(texts, shape):
    ids = padded_ids(tf.constant(texts), TOKENIZERS["drop"])
    assert ids.shape == shape


def test_padding_is_0_on_the_right():
    ids = padded_ids(tf.constant(["abc", "b"]), TOKENIZERS["drop"])
    assert ids.numpy().tolist() == [[1, 2, 3], [2, 0, 0]]


def test_the_rank_is_known_in_a_graph():
    ranks = []

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def read(texts):
        ids = padded_ids(texts, TOKENIZERS["drop"])
        ranks.append(ids.shape.rank)
        return ids

    read(tf.constant(["a"]))
    assert ranks == [2]
