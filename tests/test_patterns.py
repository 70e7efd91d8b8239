"""What is written matches, and whatever matches can be written."""

import itertools
import re
import time

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_chargen import CharRNN, CharTokenizer, patterns, scoring
from keras_chargen.samplers import (
    BanCharacters,
    BeamSearch,
    MinLength,
    NoRepeatNGram,
    Sampler,
)

CHARACTERS = "abA1 -"
TOKENIZER = CharTokenizer([*CHARACTERS], oov="unk")
WORDS = [
    "".join(word)
    for size in range(5)
    for word in itertools.product("abA1 ", repeat=size)
]
PIECES = ["a", "b", "1", r"\d", r"\w", "[^a]", ".", "[a-b]", r"\s", "(?i:a)"]
EXPRESSIONS = st.recursive(
    st.sampled_from(PIECES),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        inner.map(lambda one: f"(?:{one})*"),
        inner.map(lambda one: f"({one})?"),
        inner.map(lambda one: f"(?:{one}){{1,3}}"),
        inner.map(lambda one: f"(?:{one})+?"),
    ),
    max_leaves=8,
)


def small_model(seed, start=True):
    keras.utils.set_random_seed(seed)
    model = CharRNN(TOKENIZER, units=4, start=start)
    model.set_weights([3 * weight for weight in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def models():
    return [small_model(seed) for seed in range(3)]


def walk(table, word):
    """The state after a word, None where the table lets it begin nothing."""
    state = 0
    for character in word:
        i = TOKENIZER.tokenize(character)[0]
        if table.need[state, i] >= patterns.DEAD:
            return None
        state = table.following[state, i]
    return state


def accepts(table, word):
    state = walk(table, word)
    return state is not None and table.need[state, TOKENIZER.eos_id] == 0


def begins(table, word):
    return walk(table, word) is not None


@given(EXPRESSIONS)
def test_the_table_accepts_what_re_accepts(pattern):
    try:
        table = patterns.pattern_table(pattern, TOKENIZER)
    except ValueError:
        assert not any(re.fullmatch(pattern, word) for word in WORDS)
        return
    for word in WORDS:
        assert accepts(table, word) == bool(re.fullmatch(pattern, word)), word


@given(EXPRESSIONS)
def test_the_need_is_the_least_that_completes(pattern):
    try:
        table = patterns.pattern_table(pattern, TOKENIZER)
    except ValueError:
        return
    lengths = [len(word) for word in WORDS if re.fullmatch(pattern, word)]
    # Any expression of these pieces has a shortest match in these letters.
    if lengths:
        assert table.shortest == min(lengths)
    # One character nearer for each one written on a shortest way.
    state, left = 0, table.shortest
    while left:
        i = int(table.need[state, : TOKENIZER.eos_id].argmin())
        assert table.need[state, i] == left - 1
        state, left = table.following[state, i], left - 1


@settings(max_examples=settings.default.max_examples // 5)
@given(
    EXPRESSIONS,
    st.integers(0, 2),
    st.integers(0, 12),
    st.sampled_from(["greedy", "random", "top-p", "beam"]),
    st.integers(0, 99),
)
def test_every_text_matches_or_begins_a_match(
    models, pattern, model, length, sampler, seed
):
    try:
        table = patterns.pattern_table(pattern, TOKENIZER)
    except ValueError:
        return
    texts = models[model].generate(
        ["a", "b1A"],
        length,
        sampler=sampler,
        seed=seed,
        echo=False,
        pattern=pattern,
    )
    for text in texts:
        if table.shortest <= length:
            assert re.fullmatch(pattern, text), text
        else:
            assert begins(table, text) and len(text) == length


@pytest.mark.parametrize("start", [True, False])
def test_what_is_too_long_is_begun(start):
    model = small_model(1, start)
    for sampler in ("random", "beam"):
        text = model.generate(
            "b", 5, pattern=r"(ab1){3}", sampler=sampler, echo=False
        )
        assert text == "ab1ab"


def test_only_what_can_be_completed_is_begun(models):
    # The second branch never fits, whatever the model likes.
    for seed in range(8):
        text = models[0].generate(
            "a", 3, pattern=r"1b|a{9}", sampler="random", seed=seed, echo=False
        )
        assert text == "1b"


def test_a_ban_goes_round_the_pattern(models):
    sampler = Sampler("random", transforms=[BanCharacters("a")])
    texts = models[0].generate(
        ["b"] * 16, 8, pattern="(a|b)[a1]", sampler=sampler, echo=False, seed=1
    )
    assert set(texts) == {"b1"}
    with pytest.raises(ValueError, match="cannot be written here: \\['a'\\]"):
        models[0].generate("b", 8, pattern="ba", sampler=sampler)


@pytest.mark.parametrize("transform", [MinLength(3), NoRepeatNGram(2)])
def test_what_could_leave_no_way_on_is_refused(models, transform):
    sampler = Sampler("greedy", transforms=[transform])
    with pytest.raises(ValueError, match="goes without"):
        models[0].generate("b", 8, pattern="ba", sampler=sampler)


def test_beams_find_the_likeliest_match(models):
    model = models[2]
    pattern = "[ab]{3}1?"
    words = [w for w in WORDS if re.fullmatch(pattern, w)]
    best, *_ = model.generate(
        "A",
        4,
        pattern=pattern,
        sampler=BeamSearch(32),
        echo=False,
        num_samples=2,
    )

    def nats(word):
        # The end counts where there was room to write it.
        whole = model.score("A" + word).nats
        return whole if len(word) < 4 else unended_nats(model, "A" + word)

    assert nats(best) == pytest.approx(min(map(nats, words)), abs=1e-4)


def unended_nats(model, text):
    """Nats of a text without its end."""
    ids = model.tokenizer.tokenize(text)
    row = np.append(np.int32(model.tokenizer.eos_id), ids)
    return float(scoring._surprisal(model, [row], 1)[0].sum())


@pytest.mark.parametrize(
    "pattern, message",
    [
        (7, "must be a str"),
        ("a(", "no regular expression"),
        ("[b-a]", "no regular expression"),
        ("(?=a)b", "holds what no automaton can follow: assert"),
        (r"(a)\1", "holds what no automaton can follow: groupref"),
        (r"a\b", "holds what no automaton can follow: at"),
        ("a++", "holds what no automaton can follow: possessive_repeat"),
        ("ax", r"cannot be written here: \['x'\]"),
        (r"[^\s\S]", "matches nothing"),
        ("(a|b)*a(a|b){30}", "too large: it needs over"),
        ("(a{99}){999}", "too large: written out"),
    ],
)
def test_a_pattern_that_cannot_be_followed_is_refused(models, pattern, message):
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        models[0].generate("b", 8, pattern=pattern)
    assert time.perf_counter() - begin < 10


def test_anchors_at_the_ends_say_nothing():
    for pattern in ("^ab$", r"\Aab\Z"):
        table = patterns.pattern_table(pattern, TOKENIZER)
        assert accepts(table, "ab") and not accepts(table, "aab")


def test_a_branch_of_unknown_characters_is_passed_by():
    table = patterns.pattern_table("x+|ab", TOKENIZER)
    assert accepts(table, "ab")
