"""One model file says the same under every backend, each in a process."""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BACKENDS = ["tensorflow", "jax", "torch", "numpy", "openvino"]
# The backend that trains, and what it trains.
MODELS = {
    "lstm by tensorflow": ("tensorflow", "--cell lstm --units 32"),
    "gru by jax": (
        "jax",
        "--cell gru --units 16 --layers 2 --embedding-dim 8 --oov unk",
    ),
    "simple by torch": ("torch", "--cell simple --units 24 --dropout 0.1"),
    "minlstm by jax": (
        "jax",
        "--cell minlstm --units 24 --layers 3 --residual",
    ),
}


def run(backend, *arguments):
    """A Python process under a backend; what it printed."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def train(path, backend, options):
    run(
        backend,
        *("-m", "keras_chargen", "train", "--corpus", "python-docs"),
        *("--out", path, "--mode", "windows", "--sequence-length", 64),
        *("--batch-size", 32, "--limit", 12, *options.split()),
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What every backend that is installed makes of every model file."""
    folder = tmp_path_factory.mktemp("agreement")
    backends = [name for name in BACKENDS if importlib.util.find_spec(name)]
    models = {
        name: (folder / f"{name}.keras", *how)
        for name, how in MODELS.items()
        if how[0] in backends
    }
    # A process has its work on one core, nearly.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda model: train(*model), models.values()))
        paths = [path for path, *_ in models.values()]
        printed = pool.map(
            lambda backend: run(backend, HERE / "probe.py", *paths), backends
        )
        told = {}
        for backend, lines in zip(backends, printed, strict=True):
            each = map(json.loads, lines.splitlines())
            told[backend] = dict(zip(models, each, strict=True))
        return told


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_says_the_same_under(backend, model, told):
    trainer, _ = MODELS[model]
    for name in (backend, trainer):
        if name not in told:
            pytest.skip(f"{name} is not installed")
    found, expected = told[backend][model], told[trainer][model]
    assert found["backend"] == backend
    for name, logits in found["logits"].items():
        difference = np.subtract(logits, expected["logits"]["read"])
        assert np.abs(difference).max() <= 1e-4, name
    names = ("greedy", "sampled", "streamed", "chains", "matching")
    texts = zip(
        keras.tree.flatten([found[name] for name in names]),
        keras.tree.flatten([expected[name] for name in names]),
        strict=True,
    )
    differing = [pair for pair in texts if pair[0] != pair[1]]
    # A draw may fall within rounding of the edge between two characters.
    assert len(differing) <= 1, differing
    assert found["log_probs"] == pytest.approx(expected["log_probs"], rel=1e-4)
    assert found["nats"] == pytest.approx(expected["nats"], rel=1e-5)
    if found["dynamic"] is not None:
        assert found["dynamic"] == pytest.approx(expected["dynamic"], rel=1e-3)
        assert found["dynamic"][-1] < 0.98 * found["dynamic"][2]
    # Neither empty nor all alike, or equal texts would say little.
    assert len(set(found["sampled"][0] + found["sampled"][1])) == 6
