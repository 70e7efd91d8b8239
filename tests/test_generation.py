"""The loop writes what the model says, at any place, in any company."""

import keras
import numpy as np
import pytest
from keras import ops
from speller import WORD, Speller

from keras_chargen import CharRNN, CharTokenizer, decoding, generation, scoring
from keras_chargen.compilation import compile_function
from keras_chargen.samplers import Sampler
from keras_chargen.tokenizer import pad

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ,."
PROMPTS = ["a", "the cat", "", "in, and out again. "]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    model = CharRNN(CharTokenizer([*CHARACTERS], oov="unk"), units=12)
    # Sharper than a fresh model, so that no tie decides.
    model.set_weights([3 * weight for weight in model.get_weights()])
    return model


def copy(model):
    """The same model, with nothing compiled."""
    twin = CharRNN.from_config(model.get_config())
    twin.set_weights(model.get_weights())
    return twin


def step_by_step(model, prompt, length, choose):
    """What the loop must write, one character at a time on the host."""
    tokenizer = model.tokenizer
    step = compile_function(model.step, model.variables)
    state = keras.tree.map_structure(
        ops.convert_to_numpy, model.initial_state(1)
    )
    for i in [tokenizer.eos_id, *tokenizer.tokenize(prompt)]:
        logits, state = step(np.array([i], "int32"), state)
    written = []
    for _ in range(length):
        values = ops.convert_to_numpy(logits)[0].astype("float64")
        values[~tokenizer.writable()] = -np.inf
        i = choose(values)
        if i == tokenizer.eos_id:
            break
        written.append(i)
        logits, state = step(np.array([i], "int32"), state)
    return prompt + tokenizer.detokenize(written)


# ---------------------------------------------------------- what is written


def test_a_speller_spells_and_stops_at_eos():
    assert generation.generate(Speller(), "", 50) == WORD


def test_the_prompt_is_read_and_the_rest_is_written():
    assert generation.generate(Speller(), "char", 50) == WORD
    assert generation.generate(Speller(), "char", 50, echo=False) == "acters"


def test_no_more_is_written_than_allowed():
    assert generation.generate(Speller(), "ch", 3) == "chara"


def test_nothing_is_written_where_nothing_may_be():
    speller = Speller()
    assert generation.generate(speller, ["ch", ""], 0) == ["ch", ""]
    assert speller.steps == 0


def test_a_whole_word_as_prompt_ends_at_once():
    assert generation.generate(Speller(), WORD, 9) == WORD


@pytest.mark.parametrize("short, long", [(1, 1), (3, 7), (256, 2048)])
def test_greedy_text_is_that_of_step_by_step(model, monkeypatch, short, long):
    monkeypatch.setattr(decoding, "STRETCH", short)
    monkeypatch.setattr(decoding, "LONG_STRETCH", long)
    model = copy(model)
    expected = [step_by_step(model, p, 30, np.argmax) for p in PROMPTS]
    assert model.generate(PROMPTS, 30) == expected


def test_text_longer_than_a_stretch_is_that_of_step_by_step(model, monkeypatch):
    # Few rows would take the long one.
    monkeypatch.setattr(decoding, "_LONG_CELLS", 0)
    length = decoding.STRETCH + 40
    expected = step_by_step(model, "a", length, np.argmax)
    assert model.generate("a", length) == expected


def test_a_text_is_the_same_in_stretches_of_any_length(model, monkeypatch):
    length = decoding.STRETCH + 40
    random = {"sampler": "random", "seed": 3, "min_new_tokens": length}
    expected = model.generate(["a", "The "], length, **random)
    # Many rows keep to the short ones.
    monkeypatch.setattr(decoding, "_LONG_CELLS", 0)
    assert model.generate(["a", "The "], length, **random) == expected
    streamed = "".join(model.stream("a", length, **random))
    assert streamed == model.generate("a", length, **random)
    assert len(expected[0]) > decoding.STRETCH


def test_greedy_text_is_that_of_reading_the_whole_prefix_again(model):
    text = model.generate("the ", 20)
    ids = [model.tokenizer.eos_id, *model.tokenizer.tokenize("the ")]
    for character in text[4:]:
        logits = read(model, ids)
        logits[~model.tokenizer.writable()] = -np.inf
        ids.append(int(logits.argmax()))
        assert model.tokenizer.detokenize([ids[-1]]) == character


def read(model, ids):
    """The logits after the last of `ids`, by the layers over a sequence."""
    inputs = pad([np.array(ids, "int32")])
    state = keras.tree.map_structure(
        ops.convert_to_numpy, model.initial_state(1)
    )
    run = compile_function(model.call_with_state, model.variables)
    logits, _ = run(inputs, state)
    return np.array(ops.convert_to_numpy(logits)[0, -1])


def test_sampled_text_inverts_the_distribution_with_the_numbers_of_the_seed(
    model,
):
    draws = np.random.Generator(
        np.random.Philox(key=np.array([5, 0], "uint64"))
    )

    def choose(logits):
        number = draws.integers(0, 1 << 24, 1, dtype="uint32")[0] / (1 << 24)
        weights = np.exp((logits - logits.max()) / 0.7)
        ends = np.cumsum(weights / weights.sum())
        return int(np.searchsorted(ends, number, side="right"))

    expected = step_by_step(model, "the ", 40, choose)
    text = model.generate("the ", 40, sampler="random", temperature=0.7, seed=5)
    assert text == expected


# ---------------------------------------------------------- shapes of results


def test_a_str_gives_a_str_and_a_list_a_list(model):
    assert isinstance(model.generate("a", 3), str)
    assert isinstance(model.generate(["a"], 3), list)
    assert model.generate([], 3) == []


def test_several_samples_give_a_list_for_each_prompt(model):
    texts = model.generate(
        ["a", "b"], 8, sampler="random", num_samples=3, seed=1
    )
    assert [len(row) for row in texts] == [3, 3]
    assert len({text for row in texts for text in row}) == 6
    alone = model.generate("a", 8, sampler="random", num_samples=3, seed=1)
    assert alone == texts[0]


# ---------------------------------------------------------- company


def test_a_row_does_not_depend_on_its_company(model):
    arguments = {"sampler": "random", "max_new_tokens": 30}
    seeds = [3, 4, 5, 6]
    together = model.generate(PROMPTS, seed=seeds, **arguments)
    for i, (prompt, text) in enumerate(zip(PROMPTS, together, strict=True)):
        assert model.generate([prompt], seed=[seeds[i]], **arguments) == [text]
    assert (
        model.generate(PROMPTS[:3], seed=seeds[:3], **arguments)
        == (together[:3])
    )


def test_rows_beyond_a_batch_are_written_in_turn(model, monkeypatch):
    arguments = {"sampler": "random", "max_new_tokens": 12, "seed": 2}
    whole = model.generate(PROMPTS, **arguments)
    monkeypatch.setattr(generation, "MAX_ROWS", 3)
    assert model.generate(PROMPTS, **arguments) == whole


# ---------------------------------------------------------- seeds


def test_a_seed_gives_one_text_and_another_seed_another(model):
    one, again, other = (
        model.generate("a", 30, sampler="random", seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_without_a_seed_every_text_is_new(model):
    # Many texts a call: one alone can end at once, and be equal by chance.
    one, other = (
        model.generate("a", 30, sampler="random", num_samples=32)
        for _ in range(2)
    )
    assert one != other


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1", 1 << 64, [1, -1]])
def test_a_seed_out_of_range_is_refused(model, seed):
    with pytest.raises(ValueError, match="`seed` must be"):
        model.generate(["a", "b"], 3, seed=seed)


def test_seeds_are_as_many_as_prompts(model):
    with pytest.raises(ValueError, match=r"one a prompt\. Received 1 for 2"):
        model.generate(["a", "b"], 3, seed=[1])


# ---------------------------------------------------------- stop strings


@pytest.mark.parametrize("stretch", [1, 256])
def test_a_stop_string_ends_the_text_and_is_cut(monkeypatch, stretch):
    monkeypatch.setattr(decoding, "STRETCH", stretch)
    monkeypatch.setattr(decoding, "LONG_STRETCH", stretch)
    assert generation.generate(Speller(), "", 50, stop="ract") == "cha"
    stops = ["ters", "arac", "q"]
    assert generation.generate(Speller(), "", 50, stop=stops) == "ch"


def test_a_stop_string_of_the_prompt_stops_nothing():
    assert generation.generate(Speller(), "char", 50, stop="ar") == WORD
    assert generation.generate(Speller(), "char", 50, stop="ra") == WORD


def test_each_row_stops_by_itself(model):
    whole = model.generate(PROMPTS, 30, sampler="random", seed=1, echo=False)
    texts = model.generate(
        PROMPTS, 30, sampler="random", seed=1, echo=False, stop=["a", "e"]
    )
    for text, full in zip(texts, whole, strict=True):
        ends = [full.find(stop) for stop in "ae" if stop in full]
        assert text == full[: min(ends, default=len(full))]


@pytest.mark.parametrize("stop", ["", [""], ["a", 1], [b"a"]])
def test_what_is_no_stop_string_is_refused(model, stop):
    with pytest.raises(ValueError, match="`stop` must be non-empty"):
        model.generate("a", 3, stop=stop)


# ---------------------------------------------------------- never written


@pytest.mark.parametrize("temperature", [0, 1, 1e6])
def test_padding_and_the_unknown_id_are_never_written(model, temperature):
    keen = copy(model)
    kernel, bias = keen.get_layer("logits").get_weights()
    bias[[0, keen.tokenizer.unknown_id]] = 1e4
    keen.get_layer("logits").set_weights([kernel, bias])
    texts = keen.generate(
        ["a"] * 16,
        60,
        sampler="random",
        temperature=temperature,
        seed=0,
        echo=False,
    )
    assert any(texts)
    assert set("".join(texts)) <= set(CHARACTERS)


# ---------------------------------------------------------- prompts


@pytest.mark.parametrize("oov, read", [("drop", "ab"), ("unk", "a\ufffdb")])
def test_unknown_characters_of_a_prompt_stay_in_the_text(oov, read):
    speller = Speller("characters", oov=oov)
    decode = decoding.make_decoder(speller, "greedy", None, 3, 0, [], None)
    ids = decode.prompt_ids("a?c")
    assert len(ids) == (3 if oov == "drop" else 4)
    assert generation.generate(speller, "?", 0) == "?"
    assert generation.generate(speller, "?", 3).startswith("?")


def test_unknown_characters_are_refused_where_they_are_an_error():
    with pytest.raises(ValueError, match="outside the vocabulary"):
        generation.generate(Speller(oov="error"), "a?c", 3)


@pytest.mark.parametrize("prompts", [None, 3, [3], [b"a"], [None]])
def test_what_is_no_prompt_is_refused(model, prompts):
    with pytest.raises(ValueError, match="`prompts` must"):
        model.generate(prompts, 3)


def test_a_model_without_start_needs_a_character():
    model = CharRNN(CharTokenizer([*"ab"]), units=4, start=False)
    assert model.generate("a", 5).startswith("a")
    for prompt in ("", "?"):
        with pytest.raises(ValueError, match="cannot write from nothing"):
            model.generate(prompt, 5)


@pytest.mark.parametrize(
    "name, value",
    [("max_new_tokens", -1), ("max_new_tokens", 2.5), ("num_samples", 0)],
)
def test_numbers_out_of_range_are_named(model, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
        model.generate("a", **{name: value})


@pytest.mark.parametrize("temperature", [float("inf"), -1, float("nan")])
def test_a_temperature_out_of_range_is_refused(model, temperature):
    with pytest.raises(ValueError, match="`temperature` must be"):
        model.generate("a", 3, sampler="random", temperature=temperature)


# ---------------------------------------------------------- streaming


@pytest.mark.parametrize("stop", [None, "an", ["e", "th"]])
@pytest.mark.parametrize("prompt", ["", "the cat "])
def test_the_pieces_of_a_stream_are_the_text(model, prompt, stop):
    arguments = {"sampler": "random", "seed": 3, "stop": stop}
    pieces = list(model.stream(prompt, 90, **arguments))
    assert all(pieces)
    assert "".join(pieces) == model.generate(prompt, 90, **arguments)


def test_a_stream_comes_in_pieces():
    pieces = list(generation.stream(Speller(), "", 50, echo=False))
    assert "".join(pieces) == WORD
    long = Speller("characters" * 5)
    assert next(generation.stream(long, "char", 3)) == "char"


def test_a_stream_that_is_closed_works_no_further(model):
    stream = model.stream("a", 10_000, sampler="random", seed=0)
    next(stream)
    next(stream)
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompts": [1]},
        {"prompts": ["a"] * 1025},
        {"prompts": "a", "sampler": "beam"},
        {"prompts": "a", "max_new_tokens": -1},
        {"prompts": "a", "sampler": "x"},
        {"prompts": "a", "seed": -1},
        {"prompts": "a", "stop": [""]},
    ],
)
def test_a_stream_refuses_at_the_call(model, arguments):
    with pytest.raises(ValueError, match=r"must |cannot stream"):
        model.stream(**arguments)


@pytest.mark.parametrize("sampler", ["greedy", "random", "xtc", "mirostat"])
def test_rows_of_a_stream_are_those_of_the_whole(model, sampler):
    arguments = {"sampler": sampler, "seed": 3, "stop": ["e", "xq"]}
    pieces = list(model.stream(PROMPTS, 60, **arguments))
    rows = [
        "".join(text for row, text in pieces if row == i)
        for i in range(len(PROMPTS))
    ]
    assert rows == model.generate(PROMPTS, 60, **arguments)
    assert all(text for _, text in pieces)


def test_closing_a_stream_ends_the_work(model):
    speller = Speller()
    stream = generation.stream(speller, ["", ""], 10**6, sampler="random")
    next(stream)
    stream.close()
    assert list(stream) == []


# ------------------------------------------------- control and scores


def test_the_end_is_held_back(model):
    texts = model.generate(["a"] * 32, 40, sampler="random", seed=1, echo=False)
    assert min(map(len, texts)) < 20
    texts = model.generate(
        ["a"] * 32, 40, sampler="random", seed=1, echo=False, min_new_tokens=20
    )
    assert min(map(len, texts)) >= 20


def test_the_stop_string_may_stay(model):
    arguments = {"sampler": "random", "seed": 5, "min_new_tokens": 30}
    plain = model.generate("the cat", 60, echo=False, **arguments)
    stop = plain[10:12]
    kept = model.generate(
        "the cat", 60, echo=False, stop=stop, include_stop=True, **arguments
    )
    assert kept == plain[: plain.index(stop) + 2]


def test_scores_are_those_of_the_model(model):
    written = model.generate(
        PROMPTS,
        40,
        sampler=Sampler("top-k", 0.7, top_k=5),
        seed=2,
        return_scores=True,
    )
    for prompt, one in zip(PROMPTS, written, strict=True):
        ids = model.tokenizer.tokenize(one.text)
        eos = [model.tokenizer.eos_id]
        row = np.concatenate([eos, ids, eos * (one.ended == "eos")])
        nats = scoring._surprisal(model, [row.astype("int32")], 1)[0]
        count = len(one.log_probs)
        assert count == len(one.text) - len(prompt) + (one.ended == "eos")
        np.testing.assert_allclose(
            one.log_probs, -nats[len(nats) - count :], atol=1e-4
        )


def test_scores_of_the_sampler_are_those_it_drew_from(model):
    def choose(values):
        order = np.argsort(-values)[:3]
        chances.append(np.exp(values[order] - values[order[0]]))
        return order[0]

    chances = []
    one = model.generate(
        "the cat",
        20,
        sampler=Sampler("top-k", top_k=3),
        seed=2,
        return_scores=True,
    )
    greedy = model.generate("the cat", 20, return_scores=True)
    assert (greedy.sampler_log_probs == 0).all()
    assert (greedy.log_probs < 0).all()
    # Of three ids each has more of a chance than of all.
    assert (one.sampler_log_probs >= one.log_probs).all()
    step_by_step(model, "the cat", 1, choose)
    first = np.log(chances[0] / chances[0].sum())
    assert np.abs(first - one.sampler_log_probs[0]).min() < 1e-4


def test_what_is_cut_off_has_no_score(model):
    arguments = {"sampler": "random", "seed": 6, "min_new_tokens": 20}
    plain = model.generate("a", 30, echo=False, **arguments)
    stop = plain[4:6]
    one = model.generate(
        "a", 30, echo=False, stop=stop, return_scores=True, **arguments
    )
    assert one.ended == "stop"
    assert len(one.log_probs) == len(one.text) == plain.index(stop)


def test_a_part_of_a_call_gives_what_the_whole_gave(model):
    prompts = [*PROMPTS] * 3
    arguments = {"sampler": "random", "seed": 9, "num_samples": 2}
    whole = model.generate(prompts, 20, **arguments)
    part = generation.iter_generate(
        model, iter(prompts[5:]), 20, first_row=10, **arguments
    )
    assert list(part) == whole[5:]


def test_prompts_beyond_a_batch_are_written_in_turn(model, monkeypatch):
    prompts = [*PROMPTS] * 3
    arguments = {"sampler": "random", "seed": 9, "num_samples": 2}
    whole = model.generate(prompts, 20, **arguments)
    monkeypatch.setattr(generation, "MAX_ROWS", 4)
    assert model.generate(prompts, 20, **arguments) == whole


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"min_new_tokens": -1}, "`min_new_tokens` must be"),
        ({"min_new_tokens": 9}, "at most `max_new_tokens`"),
        ({"temperature": [0.5, 0], "sampler": "random"}, "`temperatures`"),
        ({"temperature": 1, "sampler": "beam"}, "`temperature` goes with"),
        ({"pattern": "("}, "no regular expression"),
    ],
)
def test_what_is_out_of_range_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate("a", 8, **arguments)


def test_new_weights_are_seen_by_compiled_code(model):
    changing = copy(model)
    before = changing.generate("a", 20)
    changing.set_weights([-3 * weight for weight in model.get_weights()])
    after = changing.generate("a", 20)
    assert after == copy(changing).generate("a", 20) != before
