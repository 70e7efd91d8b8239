"""The graph ops give the ids that the tokenizer gives on the host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_chargen.tokenizer import CharTokenizer

tf = pytest.importorskip("tensorflow")
from keras_chargen.graph_text import padded_ids, ragged_ids  # noqa: E402

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


@given(st.lists(st.text(KNOWN), min_size=1))
def test_known_characters_are_no_error(texts):
    rows = ragged_ids(tf.constant(texts), TOKENIZERS["error"])
    assert TOKENIZERS["error"].detokenize(rows.to_list()) == texts


@pytest.mark.parametrize("text", ["ax", "\U0001f601", "\U0010ffff"])
def test_an_unknown_character_is_an_error_of_the_graph(text):
    @tf.function
    def read(texts):
        return ragged_ids(texts, TOKENIZERS["error"]).flat_values

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
