"""The public names, and what importing them costs."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_chargen

NEEDS_TENSORFLOW = {"lines", "split", "streams", "text_dataset", "windows"}
BACKEND = keras.backend.backend()


@pytest.mark.parametrize("name", keras_chargen.__all__)
def test_a_public_name_is_there(name):
    if name in NEEDS_TENSORFLOW:
        pytest.importorskip("tensorflow")
    assert getattr(keras_chargen, name)
    assert name in dir(keras_chargen)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CharCNN'"):
        keras_chargen.CharCNN  # noqa: B018


def run(source, *arguments):
    return subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


@pytest.mark.skipif(BACKEND == "tensorflow", reason="imports itself")
def test_a_model_writes_without_importing_tensorflow():
    source = """
import sys
import keras_chargen
tokenizer = keras_chargen.CharTokenizer()
tokenizer.adapt(["abc"])
model = keras_chargen.CharRNN(tokenizer, units=4)
model.generate("a", 3)
model.score("abc")
print("tensorflow" in sys.modules)
"""
    assert run(source)[-1] == "False"


def test_the_import_alone_lets_keras_load_a_model(tmp_path):
    tokenizer = keras_chargen.CharTokenizer(["a"])
    model = keras_chargen.CharRNN(tokenizer, units=4)
    keras_chargen.RECIPES["best"].compile(model, steps=10)
    keras_chargen.save_model(model, tmp_path / "m.keras")
    source = """
import sys
import keras, keras_chargen
model = keras.saving.load_model(sys.argv[1])
print(type(model).__name__, type(model.optimizer).__module__)
"""
    loaded = run(source, str(tmp_path / "m.keras"))
    assert loaded == ["CharRNN", "keras_chargen.optimizers"]
