"""Files of strangers load, or are refused before they take anything."""

import faulthandler
import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from keras_chargen import (
    CharRNN,
    CharTokenizer,
    load_model,
    save_model,
    saving,
)

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
LAMBDA = {"class_name": "Lambda", "module": "keras.layers", "config": {}}


@keras.saving.register_keras_serializable(package="tests")
class OwnLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.sum(y_pred, -1)


def make(**kwargs):
    keras.utils.set_random_seed(0)
    model = CharRNN(CharTokenizer([*"ab\n"]), units=4, **kwargs)
    model.compile()
    return model


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.keras"
    save_model(make(), path)
    return path


def read(file):
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(file, parts):
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def configure(file, change):
    """Changes the config of a file: `change` gets it as a dict."""
    parts = read(file)
    config = json.loads(parts[CONFIG])
    change(config)
    write(file, {**parts, CONFIG: json.dumps(config).encode()})


def weigh(file, change):
    """Changes the weights of a file: `change` gets them as an HDF5 file."""
    parts = read(file)
    data = io.BytesIO(parts[WEIGHTS])
    with h5py.File(data, "a") as weights:
        change(weights)
    write(file, {**parts, WEIGHTS: data.getvalue()})


def refusal(file, **kwargs):
    with pytest.raises(ValueError) as caught:
        load_model(file, **kwargs)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(str(file))
    return message


# ---------------------------------------------------------- the archive


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_bomb_is_refused_before_it_takes_memory(file, name):
    parts = read(file)
    with zipfile.ZipFile(file, "w") as archive:
        for other in set(parts) - {name}:
            archive.writestr(other, parts[other])
        bomb = zipfile.ZipInfo(name)
        bomb.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(bomb, "w", force_zip64=True) as member:
            for _ in range(64):
                member.write(bytes(1 << 24))
    assert file.stat().st_size < 1 << 21
    tracemalloc.start()
    try:
        message = refusal(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
    assert f"{name} is not a plain, stored file" in message


@pytest.mark.parametrize(
    "name", ["assets/vocabulary.txt", "../evil", "model.weights.npz"]
)
def test_a_file_that_holds_more_is_refused(file, name):
    write(file, {**read(file), name: b""})
    assert f"it holds more than a model: {name}" in refusal(file)


def test_a_part_that_is_there_twice_is_refused(file):
    with (
        zipfile.ZipFile(file, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr(CONFIG, b"{}")
    assert "it holds more than a model: config.json" in refusal(file)


@pytest.mark.parametrize(
    "flag, mode, method",
    [
        (1, 0o100600, zipfile.ZIP_STORED),
        (0, 0o120777, zipfile.ZIP_STORED),
        (0, 0o100600, zipfile.ZIP_LZMA),
    ],
)
def test_a_part_that_is_encrypted_linked_or_packed_is_refused(
    file, flag, mode, method
):
    parts = read(file)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
        for info in archive.infolist():
            info.flag_bits |= flag
            info.compress_type = method
    assert "is not a plain, stored file" in refusal(file)


def test_a_file_that_lacks_bytes_in_its_middle_is_refused(file):
    data = file.read_bytes()
    file.write_bytes(data[:30] + data[60:])
    assert "it is cut off" in refusal(file)


def test_a_part_that_says_it_is_longer_than_the_file_is_refused(file):
    data = bytearray(file.read_bytes())
    entry = data.rindex(WEIGHTS.encode()) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + 20 : entry + 28] = (1 << 30).to_bytes(4, "little") * 2
    file.write_bytes(data)
    assert "is not a plain, stored file" in refusal(file)


# ---------------------------------------------------------- the config


@pytest.mark.parametrize(
    "data, words",
    [
        (b"[" * 100_000, "cannot be read"),
        (b'{"a": ' * 100_000, "cannot be read"),
        (b"not JSON", "cannot be read"),
        (b"\xff\xfe\xfd", "cannot be read"),
        (b"[]", "describes no object"),
        (b"{}", "it holds a None, not a CharRNN"),
        (b" " * (1 << 22) + b"{}", "bytes"),
    ],
)
def test_a_config_that_is_none_is_refused(file, data, words):
    write(file, {**read(file), CONFIG: data})
    assert words in refusal(file)


def test_a_config_that_is_nested_without_end_is_refused(file):
    nested = []
    for _ in range(100):
        nested = [nested]
    configure(file, lambda root: root["config"].update(x=nested))
    assert "nested too deep" in refusal(file)


STRANGE = [
    LAMBDA,
    {**LAMBDA, "registered_name": "Lambda"},
    {**LAMBDA, "module": None},
    {"class_name": "__lambda__", "config": {"value": "4wAAAA=="}},
    {"class_name": "__tensor__", "config": {"value": [0], "dtype": "int8"}},
    {"class_name": "Popen", "module": "subprocess", "config": {"args": "ls"}},
    {"class_name": "Mine", "registered_name": "my>Mine", "config": {}},
    {"class_name": "function", "module": "builtins", "config": "relu"},
    {"class_name": "get", "module": "keras.losses", "config": {}},
    {"class_name": ["Adam"], "module": "keras.optimizers", "config": {}},
    # One that is known by one name, and acts by another.
    {
        "class_name": "__lambda__",
        "registered_name": "keras_chargen>BitsPerCharacter",
        "config": {"value": "4wAAAA=="},
    },
]


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("compile", [False, True])
def test_an_object_of_another_kind_is_refused_wherever_it_is(
    file, strange, compile
):
    whole = file.read_bytes()
    words = f"it holds a {strange['class_name']}, no part of a CharRNN"
    for change in (
        lambda root: root["config"].update(tokenizer=strange),
        lambda root: root["config"].update(extra=[{"deep": strange}]),
        lambda root: root["compile_config"].update(loss=strange),
        lambda root: root.update(build_config=strange),
    ):
        file.write_bytes(whole)
        configure(file, change)
        assert words in refusal(file, compile=compile)
    configure(file, lambda root: root.update(strange))
    assert "not a CharRNN" in refusal(file, compile=compile)


def test_the_words_of_a_stranger_are_kept_to_one_line(file):
    configure(file, lambda root: root.update(class_name="a\n\x1b[2J" * 999))
    assert "it holds a a ?[2Ja ?[2J" in refusal(file)
    assert len(refusal(file)) < 400 + len(str(file))


def test_an_optimizer_is_no_part_of_the_model_itself(file):
    configure(
        file,
        lambda root: root["config"].update(
            extra=root["compile_config"]["optimizer"]
        ),
    )
    assert "it holds a Adam, no part" in refusal(file)


@pytest.mark.trains
def test_a_loss_that_this_process_knows_is_loaded(tmp_path):
    model = make()
    model.compile(loss=OwnLoss())
    save_model(model, tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras", compile=True)
    assert isinstance(loaded.loss, OwnLoss)


@pytest.mark.trains
def test_an_optimizer_that_was_never_used_is_loaded(file):
    assert load_model(file, compile=True).optimizer.built


def test_a_file_that_torch_trained_is_loaded_where_no_optimizer_was_made(
    file, monkeypatch
):
    module = "keras.src.backend.torch.optimizers.torch_adam"
    monkeypatch.delitem(sys.modules, module, raising=False)

    def say(name):
        return lambda c: c["compile_config"]["optimizer"].update(module=name)

    configure(file, say(module))
    load_model(file)
    configure(file, say(f"{module}w"))
    assert "it holds a Adam" in refusal(file)


@pytest.mark.trains
def test_a_model_without_the_state_of_its_optimizer_is_refused(tmp_path):
    model = make()
    model.optimizer.build(model.trainable_variables)
    save_model(model, tmp_path / "m.keras")

    def shrink(weights):
        del weights["optimizer/vars/5"]

    weigh(tmp_path / "m.keras", shrink)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = refusal(tmp_path / "m.keras", compile=True)
    assert "Skipping variable loading for optimizer" in message


@pytest.mark.parametrize("value", ["/etc/passwd", "ab\n", None, {"a": 1}])
def test_the_vocabulary_is_a_list_and_no_path(file, value):
    configure(
        file,
        lambda root: root["config"]["tokenizer"]["config"].update(
            vocabulary=value
        ),
    )
    assert "the vocabulary must be a list" in refusal(file)


def test_a_metric_of_a_million_classes_is_refused(file):
    metric = {
        "class_name": "MeanIoU",
        "module": "keras.metrics",
        "config": {"num_classes": 10**6},
    }
    configure(
        file, lambda root: root["compile_config"].update(metrics=[metric])
    )
    assert "`num_classes` of MeanIoU" in refusal(file, compile=True)


def test_objects_without_end_are_refused(file):
    def multiply(root):
        compiled = root["compile_config"]
        compiled["optimizer"] = [compiled["optimizer"]] * 100

    configure(file, multiply)
    assert f"{CONFIG} holds 102 objects" in refusal(file, compile=True)


# ---------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ["units", "num_layers", "embedding_dim"])
@pytest.mark.parametrize("value", [10**9, 10**30, -1, 4.5, True, "4", [4]])
def test_an_absurd_size_is_refused(file, name, value):
    configure(file, lambda root: root["config"].update({name: value}))
    message = refusal(file)
    if value in (10**9, 10**30):
        assert f"{CONFIG} asks for {value:,}"[:-1] in message
    else:
        assert f"`{name}` must be an integer >= 1" in message


@pytest.fixture
def padded(file):
    """As many numbers as 100,000 units have biases; weights have the square."""

    def pad(weights):
        weights["more"] = np.zeros(400_000, "int8")

    weigh(file, pad)
    return file


def test_a_model_larger_than_its_weights_takes_no_memory(padded):
    configure(padded, lambda root: root["config"].update(units=100_000))
    assert f"{CONFIG} asks for 40,002," in refusal(padded)
    # Nothing is left that would take it later.
    with keras.StatelessScope():
        pass


def test_a_model_that_cannot_be_finished_takes_no_memory(padded):
    configure(padded, lambda root: root["config"].update(units=100_000, name=5))
    assert "name" in refusal(padded)
    with keras.StatelessScope():
        pass


@pytest.mark.parametrize("dtype", ["int32", "bool", "string", "complex64"])
def test_weights_that_are_no_floats_are_refused(file, dtype):
    configure(file, lambda root: root["config"].update(dtype=dtype))
    assert f"its dtype must be of floats. Received: {dtype}" in refusal(file)


def test_a_refusal_leaves_nothing_to_the_next_model(file, monkeypatch):
    def fail(shape, dtype):
        raise TypeError("no value")

    with monkeypatch.context() as patch:
        # Where the values are given, as the scope of the model ends.
        patch.setattr(saving, "_zeros", fail)
        assert "no value" in refusal(file)
    assert load_model(file).generate("a", 3, seed=1) is not None


# ---------------------------------------------------------- the weights


def external(weights):
    weights["layers/far"] = h5py.ExternalLink("other.h5", "/vars")


def soft(weights):
    weights["layers/near"] = h5py.SoftLink("/vars")


def twice(weights):
    weights["layers/again"] = weights["layers"]


def deep(weights):
    weights["/".join("d" * 50)] = np.zeros(1)


def elsewhere(weights):
    weights.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def virtual(weights):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    weights.create_virtual_dataset("x", layout)


def chunked(weights):
    weights.create_dataset("x", (1 << 40,), "f4", chunks=(1 << 20,))


def contiguous(weights):
    weights.create_dataset("x", (1 << 40,), "f4")


def compressed(weights):
    weights.create_dataset("x", data=np.zeros(1 << 20), compression="gzip")


def shuffled(weights):
    # Filters may be plugins: code that is loaded for a name in the file.
    data = np.zeros(16)
    weights.create_dataset("x", data=data, chunks=(16,), shuffle=True)


def text(weights):
    weights["x"] = ["text", "of", "any", "length"]


def nothing(weights):
    weights["x"] = h5py.Empty("f4")


def reference(weights):
    weights.create_dataset("x", data=weights["layers"].ref)


def described(weights):
    weights["x"] = np.zeros(2)
    weights["x"].attrs["dtype"] = np.zeros(1000)


@pytest.mark.parametrize(
    "change, words",
    [
        (external, "links to elsewhere: far"),
        (soft, "links to elsewhere: near"),
        (twice, "twice"),
        (deep, "links to elsewhere"),
        (elsewhere, "no array in x"),
        (virtual, "no array in x"),
        (chunked, "no array in x"),
        (contiguous, "no array in x"),
        (compressed, "no array in x"),
        (shuffled, "no array in x"),
        (text, "no array in x"),
        (nothing, "no array in x"),
        (reference, "no array in x"),
        (described, "no array in x"),
    ],
)
def test_weights_that_are_not_all_there_are_refused(file, change, words):
    weigh(file, change)
    assert words in refusal(file)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_weights_that_are_cut_off_are_refused(file, share):
    parts = read(file)
    data = parts[WEIGHTS]
    write(file, {**parts, WEIGHTS: data[: int(len(data) * share)]})
    assert "cannot be loaded" in refusal(file)


def test_half_precision_is_an_array_too(file):
    def halve(weights):
        data = weights["layers/dense/vars/1"][:]
        del weights["layers/dense/vars/1"]
        weights["layers/dense/vars/1"] = data.astype("float32").view("V2")
        weights["layers/dense/vars/1"].attrs["dtype"] = "bfloat16"

    weigh(file, halve)
    assert "no array" not in refusal(file)


# ---------------------------------------------------------- at random

VALUES = [
    *(0, 1, 5, -1, 10**9, 10**30, 0.5, -0.5, 1e300, float("nan"), True, None),
    *("", "x", "/etc/passwd", "\0", "\x1b[2J", "\ud800", "int32", "float16"),
    *(
        "float64",
        "int8",
        "complex64",
        "string",
        "bfloat16",
        "mixed_float16",
        "gru",
        "minlstm",
    ),
    *("error", "unk", "keras_chargen>CharTokenizer", "adam", "mse"),
    *([], {}, [[]], [None], {"a": 1}, [1] * 99, [*"abcde"], LAMBDA),
]
NAMES = [
    *("CharRNN", "CharTokenizer", "DTypePolicy", "Adam", "Loss", "Lambda"),
    *("BitsPerCharacter", "QuantizedDTypePolicy", "MeanIoU", "function"),
    *("__lambda__", "keras", "keras.layers", "keras.src.losses", "os"),
    *("keras_chargen>CharRNN", "keras_chargen>BitsPerCharacter", "tests>No"),
]


def places(value, found):
    """Lists `(container, key)` of all that a config holds."""
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            found.append((value, key))
            places(value[key], found)
    return found


def spoil_config(data, chance):
    root = json.loads(data)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        container, key = chance.choice(places(root, []))
        names = key in ("class_name", "module", "registered_name")
        if chance.random() < 0.2:
            del container[key]
        else:
            container[key] = chance.choice(NAMES if names else VALUES)
    return json.dumps(root).encode()


def spoil_bytes(data, chance):
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        at = chance.randrange(len(data))
        length = chance.choice([1, 1, 2, 4, 8, 100])
        # Of another length it is seldom read any further.
        match chance.choices(range(5), (4, 4, 2, 1, 1))[0]:
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + length] = chance.randbytes(length)
            case 2:
                data[at : at + length] = bytes([chance.choice([0, 255])])
            case 3:
                data[at:at] = chance.randbytes(length)
            case 4:
                del data[at : at + length]
    return bytes(data[: -len(data) // 2] if chance.random() < 0.05 else data)


def spoil(whole, file, chance):
    """Writes a file with some harm done: to its bytes or to a part."""
    file.write_bytes(whole)
    part = chance.choice([None, CONFIG, CONFIG, WEIGHTS, WEIGHTS])
    if part is None:
        file.write_bytes(spoil_bytes(whole, chance))
        return
    harm = spoil_config if part == CONFIG else spoil_bytes
    parts = read(file)
    write(file, {**parts, part: harm(parts[part], chance)})


def try_all(file, count):
    """Loads a file `count` times, each spoilt by a seed of its own."""
    file = Path(file)
    whole = file.read_bytes()
    for seed in range(count):
        print(seed, end=" ", flush=True)
        faulthandler.dump_traceback_later(60, exit=True)
        chance = random.Random(seed)
        spoil(whole, file, chance)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                model = load_model(file, compile=chance.random() < 0.3)
        except (ValueError, OSError) as error:
            message = str(error)
            assert message.startswith(str(file)), message
            assert message.isprintable(), message
            print("refused", message[len(str(file)) :])
            continue
        assert not warned, str(warned[0].message)
        first = model.tokenizer.characters[0]
        assert isinstance(model.generate(first, 3, seed=1), str)
        print("loaded")


# What loads writes a text, which Torch compiles nothing for.
SPOILT = 500 if keras.backend.backend() == "torch" else 100


@pytest.mark.slow
def test_of_many_spoilt_files_each_loads_or_is_refused(file):
    run = subprocess.run(
        [sys.executable, __file__, file, str(SPOILT)],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = run.stdout.splitlines()
    assert run.returncode == 0, f"{lines[-1:]}\n{run.stderr[-2000:]}"
    loaded = sum(line.endswith(" loaded") for line in lines)
    assert len(lines) == SPOILT
    assert 0.04 < loaded / SPOILT < 0.6


if __name__ == "__main__":
    try_all(sys.argv[1], int(sys.argv[2]))
