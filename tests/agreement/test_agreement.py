"""One model file says the same under every backend, each in a process."""

import importlib.util
import json
import os
import subprocess
import sys
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
    if importlib.util.find_spec(backend) is None and backend != "numpy":
        pytest.skip(f"{backend} is not installed")
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


@pytest.fixture(scope="module", params=MODELS)
def trained(request, tmp_path_factory):
    """A model file, and what the backend that trained it makes of it."""
    backend, options = MODELS[request.param]
    path = tmp_path_factory.mktemp("agreement") / "model.keras"
    run(
        backend,
        *("-m", "keras_chargen", "train", "--corpus", "python-docs"),
        *("--out", path, "--mode", "windows", "--sequence-length", 64),
        *("--batch-size", 32, "--limit", 12, *options.split()),
    )
    return path, json.loads(run(backend, HERE / "probe.py", path))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_says_the_same_under(backend, trained):
    path, expected = trained
    found = json.loads(run(backend, HERE / "probe.py", path))
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
