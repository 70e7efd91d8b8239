"""Named settings, and what a run makes of settings."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest

from keras_chargen import CharTokenizer, cli
from keras_chargen.recipes import FLOOR, RECIPES, Recipe

TEXTS = ["abc abd", "abca", "dab abc"] * 8


def tokenizer():
    return CharTokenizer("abcd ")


def small(name, **others):
    return dataclasses.replace(
        RECIPES[name], units=4, batch_size=2, sequence_length=8, **others
    )


@pytest.mark.needs_tensorflow
@pytest.mark.trains
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    recipe = small(name)
    model = recipe.make_model(tokenizer())
    data = recipe.make_data(TEXTS, tokenizer())
    held_out = recipe.make_data(TEXTS[:4], tokenizer(), training=False)
    steps = int(data.cardinality())
    recipe.compile(model, 2 * steps)
    logs = model.fit(
        data, validation_data=held_out, epochs=2, shuffle=False, verbose=0
    ).history
    assert logs["bits_per_character"][1] < logs["bits_per_character"][0]
    # Every `<eos>` counts, and no padding.
    assert logs["val_characters"][0] == sum(map(len, TEXTS[:4])) + 4


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_how_long_it_takes(name):
    assert RECIPES[name].minutes > 0


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize(
    "mode, joined, training, widths, boundaries",
    [
        ("lines", False, True, {5, 8}, True),
        ("windows", False, True, {5}, True),
        ("windows", True, False, {5}, False),
        ("streams", False, True, {5}, True),
        ("streams", True, False, {5}, False),
        ("streams", False, False, {5, 8}, True),
    ],
)
def test_batches_are_those_of_the_mode(
    mode, joined, training, widths, boundaries
):
    recipe = Recipe(mode=mode, sequence_length=5, batch_size=3)
    data = recipe.make_data(TEXTS, tokenizer(), joined, training)
    batches = list(data.as_numpy_iterator())
    assert {x.shape[1] for x, _, _ in batches} <= widths
    targets = np.concatenate([y[w > 0] for _, y, w in batches])
    eos = (targets == tokenizer().eos_id).sum()
    assert (eos > 1) == boundaries


@pytest.mark.needs_tensorflow
def test_the_seed_is_that_of_the_batches():
    def first(seed):
        data = Recipe(batch_size=3).make_data(TEXTS, tokenizer(), seed=seed)
        return next(data.as_numpy_iterator())[0].tolist()

    assert first(1) == first(1) != first(2)


def test_a_model_has_the_settings():
    recipe = Recipe(
        cell="gru",
        units=6,
        num_layers=2,
        embedding_dim=6,
        tie_embeddings=True,
        residual=True,
        dropout=0.1,
        variational_dropout=True,
        input_dropout=0.2,
        weight_dropout=0.3,
    )
    config = recipe.make_model(tokenizer()).get_config()
    for name in inspect.signature(Recipe).parameters:
        if name in config:
            assert config[name] == getattr(recipe, name)
    assert len(config.keys() & vars(recipe).keys()) == 10


def test_only_streams_carry_a_state():
    model = Recipe(mode="streams", batch_size=3).make_model(tokenizer())
    assert model._carried.batch_size == 3
    assert Recipe().make_model(tokenizer())._carried.batch_size is None


@pytest.mark.parametrize(
    "precision, gains, dtype",
    [
        ("float32", True, "float32"),
        ("bfloat16", False, "bfloat16"),
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
    ],
)
def test_the_precision_is_what_was_asked_for(
    monkeypatch, precision, gains, dtype
):
    from keras_chargen import compilation

    monkeypatch.setattr(compilation, "gains_by_bfloat16", lambda: gains)
    model = Recipe(precision=precision).make_model(tokenizer())
    assert model.dtype_policy.compute_dtype == dtype
    assert model.dtype_policy.variable_dtype == "float32"


def compiled(steps=None, **settings):
    recipe = Recipe(units=2, **settings)
    model = recipe.make_model(tokenizer())
    recipe.compile(model, steps)
    return model


@pytest.mark.trains
def test_a_cosine_goes_up_and_then_down_to_the_floor():
    model = compiled(100, schedule="cosine", warm_up=0.1, learning_rate=0.2)
    schedule = model.optimizer._learning_rate
    rates = [float(schedule(step)) for step in range(101)]
    assert np.argmax(rates) == 10 and max(rates) == pytest.approx(0.2)
    assert rates[0] == pytest.approx(0.2 * FLOOR, abs=1e-6)
    assert rates[-1] == pytest.approx(0.2 * FLOOR, abs=1e-6)
    assert rates[55] == pytest.approx(0.2 * (1 + FLOOR) / 2, abs=1e-3)


def test_a_schedule_needs_the_number_of_steps():
    with pytest.raises(ValueError, match="number of steps"):
        compiled(schedule="cosine")


@pytest.mark.trains
def test_the_optimizer_has_the_settings():
    plain = compiled(beta_2=0.9, clip_norm=2.0).optimizer
    assert type(plain).__name__.endswith("Adam") and not plain.use_ema
    assert (plain.beta_2, plain.global_clipnorm) == (0.9, 2.0)
    decayed = compiled(weight_decay=0.1, ema_momentum=0.5).optimizer
    assert type(decayed).__name__.endswith("AdamW")
    assert (decayed.weight_decay, decayed.ema_momentum) == (0.1, 0.5)
    assert decayed.use_ema


@pytest.mark.trains
@pytest.mark.parametrize(
    "settings, matrices",
    [
        (
            {"num_layers": 2},
            [
                "lstm_1/lstm_cell/recurrent_kernel",
                "lstm_2/lstm_cell/kernel",
                "lstm_2/lstm_cell/recurrent_kernel",
            ],
        ),
        (
            {"cell": "gru", "embedding_dim": 2, "tie_embeddings": True},
            ["gru_1/gru_cell/recurrent_kernel"],
        ),
        ({"cell": "mingru", "num_layers": 2}, ["mingru_2/kernel"]),
    ],
)
def test_muon_is_for_the_matrices_between_hidden_states(settings, matrices):
    model = compiled(
        optimizer="muon",
        beta_2=0.9,
        clip_norm=2.0,
        weight_decay=0.1,
        **settings,
    )
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.Muon)
    found = [
        variable.path
        for variable in model.trainable_variables
        if not optimizer._should_use_adamw(variable)
    ]
    assert found == matrices
    assert (optimizer.adam_beta_2, optimizer.global_clipnorm) == (0.9, 2)
    assert optimizer.weight_decay == optimizer.adam_weight_decay == 0.1
    ids = np.ones((2, 3), "int32")
    before = model.get_weights()
    model.fit(ids, ids, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.isfinite(new).all() and (old != new).any()


@pytest.mark.trains
def test_training_ends_with_the_moving_averages():
    model = compiled(ema_momentum=0.5)
    ids = np.ones((2, 3), "int32")
    model.fit(ids, ids, epochs=3, verbose=0)
    for weight, average in zip(
        model.trainable_variables,
        model.optimizer._model_variables_moving_average,
        strict=True,
    ):
        np.testing.assert_allclose(
            *map(keras.ops.convert_to_numpy, (weight, average))
        )


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"mode": "pages"}, "mode"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"schedule": "linear"}, "schedule"),
        ({"precision": "float16"}, "precision"),
        ({"sequence_length": 0}, "sequence_length"),
        ({"batch_size": 0}, "batch_size"),
        ({"warm_up": 1}, "warm_up"),
        ({"beta_2": 1}, "beta_2"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"clip_norm": 0}, "clip_norm"),
        ({"ema_momentum": 1}, "ema_momentum"),
        ({"minutes": 0}, "minutes"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        Recipe(**settings)


def test_the_command_knows_every_recipe_and_every_default():
    assert {*cli.Preset} == {*RECIPES}
    options = inspect.signature(cli.train).parameters
    names = {"num_layers": "layers", "ema_momentum": "ema"}
    for field in dataclasses.fields(Recipe):
        option = options.get(names.get(field.name, field.name))
        if option is None:
            assert field.name in ("warm_up", "beta_2", "minutes")
            continue
        default = field.default
        if default is None or isinstance(default, bool):
            continue
        shown = option.annotation.__metadata__[0].show_default
        said = f"{default:g}" if isinstance(default, float) else str(default)
        assert shown == said
