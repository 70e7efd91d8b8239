"""The model: its shape, its steps, what it refuses, what GPUs ask of it."""

import io
import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_chargen import CharRNN, CharTokenizer, recurrent
from keras_chargen.compilation import compile_function

BACKEND = keras.backend.backend()
CELLS = ["lstm", "gru", "simple", "mingru", "minlstm"]
SHAPES = [
    {"cell": cell, "num_layers": layers, "embedding_dim": embedding}
    for cell in CELLS
    for layers in (1, 2)
    for embedding in (None, 5)
] + [
    {"embedding_dim": 8, "tie_embeddings": True},
    {"cell": "lstm", "num_layers": 3, "residual": True},
    {"cell": "mingru", "num_layers": 3, "residual": True},
]
DROPOUTS = {
    "dropout": {"dropout": 0.5},
    "variational": {"dropout": 0.5, "variational_dropout": True},
    "input": {"input_dropout": 0.5},
    "weight": {"weight_dropout": 0.5},
}


def make(size=10, **arguments):
    keras.utils.set_random_seed(3)
    tokenizer = CharTokenizer([chr(97 + i) for i in range(size)])
    return CharRNN(tokenizer, **{"units": 8, **arguments})


def some_ids(rows=3, steps=9, size=10):
    random = np.random.default_rng(0)
    return random.integers(1, size + 2, (rows, steps)).astype("int32")


def initial(model, rows):
    return keras.tree.map_structure(
        ops.convert_to_numpy, model.initial_state(rows)
    )


def logits_of(model, ids):
    """The logits of `model(ids)`; OpenVINO runs the compiled form alone."""
    if BACKEND != "openvino":
        return ops.convert_to_numpy(model(ids))
    run = compile_function(model.call_with_state, model.variables)
    return ops.convert_to_numpy(run(ids, initial(model, len(ids)))[0])


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(
        ops.convert_to_numpy(a), ops.convert_to_numpy(b), atol=atol
    )


# ---------------------------------------------------------- shape


@pytest.mark.parametrize(
    "arguments, count",
    [
        ({}, 109_056 + 10_836),
        ({"num_layers": 2}, 109_056 + 131_584 + 10_836),
        ({"cell": "gru"}, 82_176 + 10_836),
        ({"cell": "simple"}, 27_264 + 10_836),
        ({"embedding_dim": 16}, 84 * 16 + 74_240 + 10_836),
        ({"cell": "mingru"}, 84 * 256 + 256 + 10_836),
        ({"cell": "minlstm"}, 84 * 384 + 384 + 10_836),
        ({"residual": True}, 109_056 + 128 + 10_836),
        (
            {"embedding_dim": 128, "tie_embeddings": True},
            84 * 128 + 131_584,
        ),
    ],
    ids=str,
)
def test_a_model_over_84_ids_has_as_many_parameters(arguments, count):
    assert make(82, units=128, **arguments).count_params() == count


def test_the_summary_lists_the_layers():
    text = io.StringIO()
    make(num_layers=2, dropout=0.1).summary(
        print_fn=lambda line, **_: text.write(line)
    )
    for name in ("ids", "lstm_1", "lstm_2", "dropout_2", "logits"):
        assert name in text.getvalue()


def test_logits_are_float32_for_every_id():
    logits = make()(some_ids())
    assert tuple(logits.shape) == (3, 9, 12)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"


def test_the_state_is_two_tensors_a_layer_for_lstm_and_one_for_others():
    for cell in CELLS:
        count = 2 if cell == "lstm" else 1
        state = make(cell=cell, num_layers=3).initial_state(4)
        assert [len(layer) for layer in state] == [count] * 3
        for tensor in keras.tree.flatten(state):
            assert tuple(tensor.shape) == (4, 8)
            assert not ops.convert_to_numpy(tensor).any()


# ---------------------------------------------------------- steps


@pytest.mark.parametrize("arguments", SHAPES, ids=str)
def test_step_by_step_gives_the_logits_of_a_call_at_every_position(arguments):
    model, ids = make(**arguments), some_ids()
    expected = logits_of(model, ids)
    step, state = compile_function(model.step, model.variables), None
    state = initial(model, 3)
    for place in range(ids.shape[1]):
        logits, state = step(ids[:, place], state)
        close(logits, expected[:, place])


@pytest.mark.parametrize("arguments", SHAPES[::3], ids=str)
def test_reading_in_parts_is_reading_at_once(arguments):
    model, ids = make(**arguments), some_ids()
    run = compile_function(model.call_with_state, model.variables)
    whole, end = run(ids, initial(model, 3))
    first, state = run(ids[:, :4], initial(model, 3))
    second, state = run(ids[:, 4:], state)
    close(
        np.concatenate(
            [ops.convert_to_numpy(first), ops.convert_to_numpy(second)], 1
        ),
        whole,
    )
    keras.tree.map_structure(close, state, end)


def test_what_comes_later_changes_no_earlier_logits():
    model, ids = make(num_layers=2), some_ids()
    other = ids.copy()
    other[:, 5:] = 1
    close(logits_of(model, ids)[:, :5], logits_of(model, other)[:, :5])


def test_padding_changes_nothing_before_it():
    model, ids = make(), some_ids()
    padded = np.pad(ids, [(0, 0), (0, 4)])
    close(logits_of(model, padded)[:, :9], logits_of(model, ids))


@pytest.mark.skipif(BACKEND == "openvino", reason="does not train")
@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_acts_in_training_alone(name):
    model, ids = make(**DROPOUTS[name]), some_ids()
    close(model(ids), model(ids))
    difference = ops.convert_to_numpy(model(ids, training=True) - model(ids))
    assert np.abs(difference).max() > 1e-3
    plain = make()
    plain.set_weights(model.get_weights()[: len(plain.get_weights())])
    logits, _ = model.step(ids[:, 0], model.initial_state(3))
    close(logits, model(ids)[:, 0])


def test_a_residual_block_adds_to_what_it_reads():
    # A layer without weights gives 0: what it reads goes on as it was.
    model = make(cell="mingru", num_layers=2, residual=True)
    shallow = make(cell="mingru", residual=True)
    second = model.get_layer("mingru_2")
    second.set_weights([np.zeros_like(w) for w in second.get_weights()])
    names = {"mingru_1": "mingru_1", "norm_2": "norm_1", "logits": "logits"}
    for name, twin in names.items():
        weights = [w + 0.1 for w in model.get_layer(name).get_weights()]
        model.get_layer(name).set_weights(weights)
        shallow.get_layer(twin).set_weights(weights)
    expected = logits_of(shallow, some_ids())
    close(logits_of(model, some_ids()), expected)
    # And what it gives is added, of the same size whatever it reads.
    second.set_weights([np.ones_like(w) for w in second.get_weights()])
    assert np.abs(logits_of(model, some_ids()) - expected).max() > 1e-3


# ---------------------------------------------------------- fused kernels


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_layers_are_what_the_fused_kernels_want(cell):
    model = make(cell=cell, num_layers=2, dropout=0.3)
    for i in (1, 2):
        layer = model.get_layer(f"{cell}_{i}")
        assert layer.activation is keras.activations.tanh
        assert layer.recurrent_activation is keras.activations.sigmoid
        assert layer.use_bias and not layer.unroll
        assert layer.dropout == layer.recurrent_dropout == 0
        assert layer.use_cudnn == "auto" and not layer.stateful
        assert not layer.go_backwards
        if cell == "gru":
            assert layer.reset_after


@pytest.mark.parametrize("embedding_dim", [None, 4])
def test_no_mask_reaches_a_recurrent_layer(embedding_dim, monkeypatch):
    monkeypatch.setattr(recurrent, "loops_are_ours", lambda: False)
    model = make(num_layers=2, embedding_dim=embedding_dim)
    masks = []
    for i in (1, 2):
        layer = model.get_layer(f"lstm_{i}")
        loop = layer.inner_loop

        def spy(sequences, initial_state, mask, training=False, loop=loop):
            masks.append(mask)
            return loop(sequences, initial_state, mask, training)

        monkeypatch.setattr(layer, "inner_loop", spy)
    model(np.pad(some_ids(), [(0, 0), (0, 3)]))
    assert masks == [None, None]


# ---------------------------------------------------------- config


@pytest.mark.parametrize(
    "arguments", [*SHAPES[:2], *SHAPES[-2:], {"dropout": 0.2}], ids=str
)
def test_a_config_in_json_gives_the_model_back(arguments):
    model = make(start=False, **arguments)
    saved = json.dumps(keras.saving.serialize_keras_object(model))
    twin = keras.saving.deserialize_keras_object(json.loads(saved))
    twin.set_weights(model.get_weights())
    assert twin.get_config() == model.get_config()
    assert twin.tokenizer.characters == model.tokenizer.characters
    assert twin.start is False
    close(logits_of(twin, some_ids()), logits_of(model, some_ids()))


def test_a_config_from_before_residual_blocks_gives_none():
    config = make(num_layers=2).get_config()
    del config["residual"]
    assert CharRNN.from_config(config).residual is False


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("arguments", [{}, SHAPES[-1]], ids=str)
@pytest.mark.skipif(
    BACKEND in ("numpy", "openvino"), reason="computes in float32"
)
def test_half_precision_is_kept_and_logits_stay_float32(half, arguments):
    model = make(dtype=f"mixed_{half}", **arguments)
    twin = CharRNN.from_config(model.get_config())
    for each in (model, twin):
        assert each.get_layer(f"{each.cell}_1").compute_dtype == half
        logits = each(some_ids())
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        state = each.initial_state(3)
        logits, following = each.step(ops.convert_to_tensor([1, 2, 3]), state)
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        for a, b in zip(
            *map(keras.tree.flatten, (state, following)), strict=True
        ):
            assert a.dtype == b.dtype


@pytest.mark.parametrize(
    "name, value",
    [
        ("cell", "rnn"),
        ("units", 0),
        ("units", 2.5),
        ("num_layers", 0),
        ("embedding_dim", 0),
        ("dropout", -0.1),
        ("dropout", 1),
        ("input_dropout", 1),
        ("weight_dropout", -1),
        ("tokenizer", None),
    ],
)
def test_an_argument_out_of_range_is_named_in_one_line(name, value):
    arguments = {"tokenizer": CharTokenizer(["a"]), name: value}
    with pytest.raises(ValueError, match=f"`{name}` must be") as error:
        CharRNN(**arguments)
    assert "\n" not in str(error.value)


def test_an_embedding_of_another_width_is_not_tied():
    with pytest.raises(ValueError, match="wants `embedding_dim` equal to"):
        make(embedding_dim=5, tie_embeddings=True)


@pytest.mark.parametrize("cell", ["mingru", "minlstm"])
def test_a_cell_without_a_recurrent_kernel_drops_no_weights_of_it(cell):
    with pytest.raises(ValueError, match="`weight_dropout` must be 0") as error:
        make(cell=cell, weight_dropout=0.1)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_vocabulary_is_refused():
    with pytest.raises(ValueError, match="Call `adapt"):
        CharRNN(CharTokenizer())


# ---------------------------------------------------------- training


@pytest.mark.trains
def test_variational_dropout_drops_the_same_units_at_all_steps():
    model, ids = make(**DROPOUTS["variational"]), some_ids()
    layers = {layer.name: layer for layer in model.layers}
    outputs = layers["dropout_1"](ops.ones((3, 9, 8)), training=True)
    outputs = ops.convert_to_numpy(outputs)
    assert (outputs == outputs[:, :1]).all()
    assert 0 < (outputs[:, 0] == 0).mean() < 1
    assert np.abs(ops.convert_to_numpy(model(ids, training=True))).all()


@pytest.mark.trains
def test_a_blanked_character_is_read_as_padding():
    model, ids = make(**DROPOUTS["input"]), some_ids()
    layers = {layer.name: layer for layer in model.layers}
    read = ops.convert_to_numpy(layers["blank"](ids, training=True))
    assert 0.2 < (read == 0).mean() < 0.8
    assert (read[read > 0] == ids[read > 0]).all()


def carrying(rows=3, **arguments):
    model = make(**arguments)
    # Weights that tell states apart; nothing is learned, so that what is read
    # shows in the loss alone.
    model.set_weights([5 * weight for weight in model.get_weights()])
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    model.carry_state(rows)
    return model


def nats(model, ids, state=None):
    """Mean nats of ids, read on from a state; and the state after them."""
    logits, state = model.call_with_state(
        ids[:, :-1], state or model.initial_state(len(ids))
    )
    logits = ops.convert_to_numpy(logits)
    found = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(found, ids[:, 1:, None], -1).mean(), state


@pytest.mark.trains
@pytest.mark.parametrize("arguments", SHAPES[::2], ids=str)
def test_training_reads_on_from_where_each_row_stopped(arguments):
    model = carrying(**arguments)
    ids = some_ids(3, 13)
    first, second = ids[:, :7], ids[:, 6:]
    losses = [
        float(model.train_on_batch(part[:, :-1], part[:, 1:])[0])
        for part in (first, second)
    ]
    _, state = nats(model, first)
    expected = [nats(model, first)[0], nats(model, second, state)[0]]
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    assert abs(expected[1] - nats(model, second)[0]) > 1e-4


@pytest.mark.trains
def test_a_marked_row_begins_with_zeros():
    model, ids = carrying(), some_ids(3, 13)
    first, second = ids[:, :7], ids[:, 6:]
    model.train_on_batch(first[:, :-1], first[:, 1:])
    marked = second.copy()
    marked[:, 0] = ~marked[:, 0]
    loss, *_ = model.train_on_batch(marked[:, :-1], second[:, 1:])
    np.testing.assert_allclose(float(loss), nats(model, second)[0], atol=1e-5)


@pytest.mark.trains
def test_what_is_not_training_begins_with_zeros():
    model, ids = carrying(), some_ids(3, 13)
    model.train_on_batch(ids[:, :-1], ids[:, 1:])
    loss, *_ = model.test_on_batch(ids[:, :-1], ids[:, 1:])
    np.testing.assert_allclose(float(loss), nats(model, ids)[0], atol=1e-5)


@pytest.mark.trains
def test_marks_mean_nothing_to_a_model_that_carries_no_state():
    model, ids = make(), some_ids()
    marked = ids.copy()
    marked[:, 0] = ~marked[:, 0]
    for training in (False, True):
        close(model(marked, training=training), model(ids, training=training))


@pytest.mark.trains
def test_another_number_of_rows_is_refused_where_state_is_carried():
    model, ids = carrying(rows=2), some_ids(3)
    with pytest.raises(ValueError, match=r"of 2 rows\. Received: 3"):
        model(ids, training=True)
    model.carry_state(None)
    model(ids, training=True)


@pytest.mark.trains
def test_a_file_of_a_model_that_carries_its_state_is_that_of_another(tmp_path):
    model, ids = carrying(), some_ids()
    count = model.count_params()
    model.fit(ids, ids, batch_size=3, verbose=0)
    model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    close(loaded(ids), model(ids))
    model.carry_state(None)
    assert loaded.count_params() == model.count_params() < count


def a_batch():
    ids = np.pad(some_ids(8, 10), [(0, 0), (0, 3)])
    ids[2, 4:] = 0
    return ids[:, :-1], ids[:, 1:], (ids[:, 1:] > 0).astype("float32")


@pytest.mark.trains
def test_the_loss_is_the_mean_over_the_characters_that_count():
    model = make()
    model.compile()
    inputs, targets, weights = a_batch()
    logits = logits_of(model, inputs).astype("float64")
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, targets[..., None], -1
    ).squeeze(-1)
    expected = (nats * weights).sum() / weights.sum()
    logs = model.evaluate(
        inputs, targets, 8, sample_weight=weights, verbose=0, return_dict=True
    )
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    assert logs["bits_per_character"] == pytest.approx(
        expected / np.log(2), rel=1e-5
    )


@pytest.mark.trains
def test_keras_callbacks_work(tmp_path):
    model = make(num_layers=2, dropout=0.1)
    model.compile()
    inputs, targets, weights = a_batch()
    history = model.fit(
        inputs,
        targets,
        sample_weight=weights,
        validation_data=(inputs, targets, weights),
        epochs=6,
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.keras",
                monitor="val_bits_per_character",
                mode="min",
                save_best_only=True,
            ),
            keras.callbacks.EarlyStopping("val_loss", patience=3),
        ],
    ).history
    assert history["loss"][-1] < history["loss"][0]
    best = keras.saving.load_model(tmp_path / "best.keras")
    close(best(inputs), model(inputs), atol=1e-4)


@pytest.mark.trains
def test_every_default_of_compile_can_be_replaced():
    model = make()
    model.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
        jit_compile=False,
    )
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert model.jit_compile is False


@pytest.mark.trains
def test_a_loaded_model_trains_on_as_the_saved_one(tmp_path):
    model = make()
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    inputs, targets, weights = a_batch()
    batch = {"x": inputs, "y": targets, "sample_weight": weights}
    model.train_on_batch(**batch)
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, twin):
        each.train_on_batch(**batch)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        close(a, b, atol=1e-6)


@pytest.mark.trains
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_a_file_names_no_part_of_one_backend(dtype):
    model = make(dtype=dtype)
    model.compile()
    model.optimizer.build(model.trainable_variables)
    text = json.dumps(model.get_compile_config())
    assert "Adam" in text and "keras.src" not in text


@pytest.mark.trains
@pytest.mark.parametrize(
    "cell, dtype",
    [
        ("mingru", None),
        ("mingru", "mixed_bfloat16"),
        ("minlstm", "mixed_float16"),
    ],
)
def test_residual_blocks_of_a_minimal_cell_learn(cell, dtype):
    model = make(cell=cell, num_layers=2, residual=True, dtype=dtype)
    model.compile(keras.optimizers.Adam(0.02))
    # What is to be written is what was read before: a state is needed.
    ids = np.random.default_rng(0).integers(1, 4, (32, 12)).astype("int32")
    model.fit(ids[:, 1:], ids[:, :-1], 32, epochs=60, verbose=0)
    loss = model.evaluate(
        ids[:, 1:], ids[:, :-1], 32, return_dict=True, verbose=0
    )["loss"]
    assert loss < 0.7 * np.log(3)


@pytest.mark.trains
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_model_learns_in_mixed_precision(half):
    model = make(dtype=f"mixed_{half}")
    model.compile()
    # float16 has no room for small gradients: the loss is scaled.
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (half == "float16")
    random = np.random.default_rng(0)
    ids = random.integers(1, 5, (8, 6)).astype("int32")
    weights = np.ones((8, 6), "float32")
    losses = model.fit(
        ids, ids, sample_weight=weights, epochs=4, batch_size=8, verbose=0
    ).history["loss"]
    assert losses[-1] < losses[0]
    assert {w.dtype for w in model.trainable_weights} == {"float32"}


@pytest.mark.trains
@pytest.mark.parametrize("cell", ["lstm", "mingru"])
def test_a_model_that_runs_eagerly_learns_without_xla(cell):
    model = make(cell=cell)
    model.compile(run_eagerly=True)
    assert not model.jit_compile
    inputs, targets, weights = a_batch()
    losses = [
        float(model.train_on_batch(inputs, targets, weights)[0])
        for _ in range(3)
    ]
    assert losses[-1] < losses[0]


def test_a_copy_in_another_precision_computes_the_same():
    model = make(num_layers=2, dropout=0.2)
    copy = model.with_dtype("mixed_bfloat16")
    assert copy.dtype_policy.compute_dtype == "bfloat16"
    assert not copy.compiled
    back = copy.with_dtype("float32")
    ids = some_ids()
    found, near, same = (
        ops.convert_to_numpy(x(ids)) for x in (model, copy, back)
    )
    np.testing.assert_array_equal(same, found)
    np.testing.assert_allclose(near, found, atol=0.02)
    assert not (near == found).all()


@pytest.mark.trains
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_a_copy_trains_on_with_its_optimizer_and_its_state(dtype):
    model = make(dtype=dtype)
    model.compile(keras.optimizers.Adam(0.01))
    model.carry_state(3)
    ids = some_ids()
    model.fit(ids, ids, 3, epochs=2, shuffle=False, verbose=0)
    copy = model.with_dtype("float32")
    inner = getattr(copy.optimizer, "inner_optimizer", copy.optimizer)
    assert int(inner.iterations) == 2
    assert float(inner.learning_rate) == pytest.approx(0.01)
    carried = ops.convert_to_numpy(copy._carried.variables[0])
    assert carried.shape[0] == 3 and np.abs(carried).max() > 0
    losses = [
        x.fit(ids, ids, 3, epochs=2, shuffle=False, verbose=0).history["loss"]
        for x in (model, copy)
    ]
    np.testing.assert_allclose(*losses, rtol=0.02)
