"""Model files are whole or not there; others are refused in one line."""

import errno
import os
import re
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from keras_chargen import CharRNN, CharTokenizer, saving
from keras_chargen.saving import check_target, load_model, save_model


def make(units=4):
    keras.utils.set_random_seed(0)
    return CharRNN(CharTokenizer([*"ab\n"]), units=units)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.keras"
    save_model(make(), path)
    return path


def refusal(function, *arguments, error=ValueError):
    with pytest.raises(error) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------- targets


def test_a_free_target_is_a_path(tmp_path):
    target = str(tmp_path / "a.keras")
    assert check_target(target) == tmp_path / "a.keras"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model", "model.h5", "model.keras.gz"])
def test_another_suffix_is_refused(tmp_path, name):
    assert "end in .keras" in refusal(check_target, tmp_path / name)


def test_a_directory_is_refused(tmp_path):
    (tmp_path / "m.keras").mkdir()
    message = refusal(check_target, tmp_path / "m.keras", True)
    assert "is a directory" in message


def test_a_file_that_is_there_stays_unless_forced(file):
    before = file.read_bytes()
    assert "--force" in refusal(check_target, file)
    assert check_target(file, force=True) == file
    assert file.read_bytes() == before


def test_a_missing_directory_is_named(tmp_path):
    target = tmp_path / "no" / "m.keras"
    message = refusal(check_target, target, error=OSError)
    assert str(tmp_path / "no") in message


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(saving.tempfile, "TemporaryFile", refuse)
    message = refusal(check_target, tmp_path / "m.keras", error=OSError)
    assert "not writable: Read-only file system" in message


# ---------------------------------------------------------- writing


def test_a_saved_model_is_alone_in_its_folder(file):
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()]
)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    file, monkeypatch, error
):
    before = file.read_bytes()

    def half(self, path, **_):
        path.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(CharRNN, "save", half)
    with pytest.raises(type(error)):
        save_model(make(8), file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_full_disk_is_told_with_the_name_of_the_target(tmp_path):
    resource = pytest.importorskip("resource")
    import signal

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    target = tmp_path / "m.keras"
    model = make(64)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        message = refusal(save_model, model, target, error=OSError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert f"cannot write {target}" in message
    assert not list(tmp_path.iterdir())


def test_a_file_reaches_the_disk_before_it_takes_its_name(
    tmp_path, monkeypatch
):
    done = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def spy(*arguments, name=name, original=original):
            done.append(name)
            return original(*arguments)

        monkeypatch.setattr(os, name, spy)
    save_model(make(), tmp_path / "m.keras")
    # The name is on the disk once its folder is, which Windows does not open.
    folder = ["fsync"] if hasattr(os, "O_DIRECTORY") else []
    assert done == ["fsync", "replace", *folder]


# ---------------------------------------------------------- reading


def test_what_was_saved_is_loaded(file):
    model, loaded = make(), load_model(file)
    assert loaded.tokenizer.characters == ("a", "b", "\n")
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.generate("a", 9) == model.generate("a", 9)


@pytest.mark.parametrize(
    "arguments",
    [
        {"cell": "gru", "embedding_dim": 3},
        {"cell": "mingru", "residual": True},
        {"cell": "minlstm", "residual": True},
    ],
    ids=str,
)
def test_every_weight_of_a_deep_model_in_mixed_precision_is_loaded(
    tmp_path, arguments
):
    model = CharRNN(
        CharTokenizer([*"ab"]),
        units=4,
        num_layers=2,
        dtype="mixed_bfloat16",
        **arguments,
    )
    random = np.random.default_rng(0)
    model.set_weights([random.normal(0, 1, w.shape) for w in model.weights])
    save_model(model, tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras")
    for a, b in zip(model.weights, loaded.weights, strict=True):
        assert (a.path, a.dtype) == (b.path, b.dtype)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        )


def test_loading_draws_no_weights(file, monkeypatch):
    weights = make().get_weights()

    def draw(*_, **__):
        raise AssertionError("drawn, to be replaced at once")

    for kind in ("GlorotUniform", "OrthogonalInitializer"):
        monkeypatch.setattr(getattr(keras.initializers, kind), "__call__", draw)
    for a, b in zip(weights, load_model(file).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_seeds_of_dropout_are_drawn_in_loading(tmp_path):
    model = CharRNN(CharTokenizer([*"ab"]), units=4, dropout=0.5)
    save_model(model, tmp_path / "m.keras")
    (drop,) = (
        layer
        for layer in load_model(tmp_path / "m.keras").layers
        if isinstance(layer, keras.layers.Dropout)
    )
    assert ops.convert_to_numpy(drop.seed_generator.state.value).any()


def test_keras_alone_loads_it_in_safe_mode(file):
    model = keras.saving.load_model(file, safe_mode=True)
    assert isinstance(model, CharRNN)
    logits, _ = model.step(np.array([1], "int32"), model.initial_state(1))
    assert ops.convert_to_numpy(logits).shape == (1, 5)


def test_a_missing_file_is_named(tmp_path):
    message = refusal(load_model, tmp_path / "no.keras", error=OSError)
    assert "no.keras" in message


def test_a_directory_is_no_model(tmp_path):
    assert "is a directory" in refusal(load_model, tmp_path)


def test_hdf5_is_not_read(tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    assert "HDF5 is not read" in refusal(load_model, path)


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_model_is_refused(tmp_path, data):
    path = tmp_path / "model.keras"
    path.write_bytes(data)
    assert "is not a .keras file" in refusal(load_model, path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_off_anywhere_is_refused(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    assert "it is cut off" in refusal(load_model, file)


def test_damage_inside_is_found(file):
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        weights = archive.getinfo("model.weights.h5")
    middle = weights.header_offset + weights.compress_size // 2
    data[middle] ^= 0xFF
    file.write_bytes(data)
    assert "model.weights.h5 is damaged" in refusal(load_model, file)


@pytest.mark.parametrize("missing", ["config.json", "model.weights.h5"])
def test_a_file_without_a_part_is_refused(file, missing):
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            if name != missing:
                archive.writestr(name, data)
    assert f"has no {missing}" in refusal(load_model, file)


def test_another_keras_model_is_refused(tmp_path):
    path = tmp_path / "other.keras"
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    other.save(path)
    message = refusal(load_model, path)
    assert re.search("holds a Sequential, not a CharRNN", message)


def test_a_config_that_makes_no_model_is_refused(file):
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = parts["config.json"].replace(b'"units": 4', b'"units": 0')
    assert config != parts["config.json"]
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {**parts, "config.json": config}.items():
            archive.writestr(name, data)
    assert "cannot be loaded" in refusal(load_model, file)


@pytest.mark.trains
def test_the_optimizer_comes_back_where_it_is_asked_for(tmp_path):
    model = make()
    model.compile()
    ids = np.ones((2, 3), "int32")
    model.train_on_batch(ids, ids, sample_weight=np.ones((2, 3), "float32"))
    save_model(model, tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras", compile=True)
    assert int(loaded.optimizer.iterations) == 1
    assert not load_model(tmp_path / "m.keras").compiled
