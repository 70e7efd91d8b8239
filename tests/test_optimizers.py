"""Muon of this library gives what Keras's gives."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_chargen import CharRNN, CharTokenizer, load_model
from keras_chargen.optimizers import Muon
from keras_chargen.saving import save_model

SIZES = st.integers(1, 12)


def orthogonalized(kind, matrix, steps):
    result = kind().zeropower_via_newtonschulz5(
        ops.convert_to_tensor(matrix), steps
    )
    return ops.convert_to_numpy(result)


@settings(max_examples=50, deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(0, 6), st.integers(0, 999))
def test_matrices_become_what_keras_makes_of_them(
    rows, columns, rank, steps, seed
):
    random = np.random.default_rng(seed)
    matrix = random.normal(0, 3, (rows, rank)) @ random.normal(
        0, 1, (rank, columns)
    )
    matrix = matrix.astype("float32")
    expected = orthogonalized(keras.optimizers.Muon, matrix, steps)
    found = orthogonalized(Muon, matrix, steps)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(64, 256), (256, 64)])
def test_singular_values_come_near_to_one(shape):
    matrix = np.random.default_rng(0).normal(0, 1, shape).astype("float32")
    values = np.linalg.svd(orthogonalized(Muon, matrix, 5), compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(64, 256), (256, 64)])
def test_no_gradient_is_no_update(shape):
    zeros = np.zeros(shape, "float32")
    assert (orthogonalized(Muon, zeros, 5) == 0).all()


@pytest.mark.parametrize(
    ("shape", "is_ours"),
    [((2, 8), True), ((8, 2), True), ((2, 4), True), ((2, 3), False)],
)
def test_long_matrices_alone_take_the_short_way(shape, is_ours, monkeypatch):
    def way_of_keras(*_):
        raise AssertionError

    monkeypatch.setattr(
        keras.optimizers.Muon, "zeropower_via_newtonschulz5", way_of_keras
    )
    matrix = np.ones(shape, "float32")
    if is_ours:
        orthogonalized(Muon, matrix, 5)
    else:
        with pytest.raises(AssertionError):
            orthogonalized(Muon, matrix, 5)


def compiled(kind):
    keras.utils.set_random_seed(0)
    model = CharRNN(CharTokenizer(list("abc")), units=4)
    model.compile(optimizer=kind(0.02))
    return model


@pytest.mark.trains
def test_a_model_is_trained_as_by_keras():
    ids = np.random.default_rng(0).integers(1, 4, (8, 5)).astype("int32")
    models = [compiled(kind) for kind in (Muon, keras.optimizers.Muon)]
    before = models[0].get_weights()
    for model in models:
        model.fit(ids, ids, batch_size=2, epochs=2, shuffle=False, verbose=0)
    found, expected = (model.get_weights() for model in models)
    for old, one, other in zip(before, found, expected, strict=True):
        assert np.abs(one - old).max() > 1e-3
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.trains
def test_it_comes_back_with_the_model(tmp_path):
    model = compiled(lambda rate: Muon(rate, ns_steps=3))
    ids = np.ones((2, 3), "int32")
    model.fit(ids, ids, verbose=0)
    path = tmp_path / "a.keras"
    save_model(model, path)
    optimizer = load_model(path, compile=True).optimizer
    assert type(optimizer) is Muon
    assert optimizer.ns_steps == 3
    assert int(optimizer.iterations) == 1
