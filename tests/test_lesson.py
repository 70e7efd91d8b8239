"""The lesson that the project grew from, replayed from start to end."""

import pytest

from keras_chargen import CharRNN, CharTokenizer, SampleText

TITLES = [
    "Today the markets rose after the talks in Moscow, officials say",
    "On Sunday the president meets the leaders of the union",
    "President to visit Moscow, talks on trade begin Today",
    "Little red riding hood wins the cup on Sunday",
    "Oil prices fall as markets wait for the talks",
    "Leaders of the union meet in Moscow, trade talks fail",
    "Cup final on Sunday: the reds lead by two goals",
    "Markets fall Today as oil rises",
] * 16
PROMPTS = [
    "Today ",
    "On Sunday ",
    "Moscow, ",
    "President ",
    "Little red riding hood ",
]
TEMPERATURES = [0.3, 0.8, 1.0, 1.3, 1.8]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = CharTokenizer()
    tokenizer.adapt(TITLES)
    return tokenizer


def test_the_commonest_character_comes_first_and_eos_last(tokenizer):
    joined = "".join(TITLES)
    vocabulary = tokenizer.get_vocabulary()
    counts = [joined.count(character) for character in vocabulary[1:-1]]
    assert counts == sorted(counts, reverse=True)
    assert vocabulary[0] == "" and vocabulary[-1] == "<eos>"
    assert len(vocabulary) == len(set(joined)) + 2


@pytest.mark.needs_tensorflow
def test_inputs_and_targets_are_the_pairs_of_the_original(tokenizer):
    from keras_chargen import lines

    dataset = lines(
        ["Today"], tokenizer, batch_size=1, start=False, training=False
    )
    ((inputs, targets, weights),) = dataset.as_numpy_iterator()
    *ids, last = tokenizer.tokenize("Today").tolist()
    count = int(weights.sum())
    assert inputs[0, :count].tolist() == [*ids, last]
    assert targets[0, :count].tolist() == [*ids[1:], last, tokenizer.eos_id]


def test_the_model_of_84_ids_has_the_parameters_of_the_original():
    tokenizer = CharTokenizer([chr(33 + i) for i in range(82)])
    model = CharRNN(tokenizer, units=128, start=False)
    assert tokenizer.vocabulary_size() == 84
    assert model.count_params() == 119_892
    assert model.get_layer("lstm_1").count_params() == 109_056
    assert model.get_layer("logits").count_params() == 10_836


@pytest.mark.slow
@pytest.mark.trains
def test_three_epochs_show_samples_and_every_text_is_written(tokenizer, capsys):
    from keras_chargen import lines

    model = CharRNN(tokenizer, units=128, start=False)
    model.compile()
    history = model.fit(
        lines(TITLES, tokenizer, batch_size=8, start=False),
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[SampleText("Today ", [0, 0.8], max_new_tokens=40)],
    ).history
    assert history["loss"][2] < history["loss"][0]
    shown = capsys.readouterr().out
    for epoch in (1, 2, 3):
        assert f"epoch {epoch}, greedy: Today " in shown
        assert f"epoch {epoch}, temperature 0.8: Today " in shown

    known = {*"".join(TITLES)}
    greedy = model.generate("Today ", 60)
    assert greedy.startswith("Today ") and len(greedy) <= 66
    for temperature in TEMPERATURES:
        texts = model.generate(
            PROMPTS, 60, sampler="random", temperature=temperature, seed=0
        )
        for prompt, text in zip(PROMPTS, texts, strict=True):
            print(f"{temperature}: {text}")
            assert text.startswith(prompt)
            assert set(text) <= known
            assert len(text) <= len(prompt) + 60
