"""Each core of a CPU has a part of a batch, and the numbers stay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_chargen import use_cores

BACKEND = keras.backend.backend()
ROOT = Path(__file__).parents[1]
JAX = pytest.mark.skipif(BACKEND != "jax", reason="for JAX alone")
PROGRAM = """
import json
import jax
import keras
import numpy as np
from keras_chargen import CharRNN, CharTokenizer, devices

devices.cores = lambda: {cores}
count = devices.use_cores({batch})
keras.utils.set_random_seed(0)
model = CharRNN(CharTokenizer("abcdefgh"), cell="{cell}", units=8, num_layers=2)
model.compile()
ids = np.random.default_rng(0).integers(1, 9, (24, 12)).astype("int32")
weights = np.random.default_rng(1).integers(0, 2, (24, 12)).astype("float32")
history = model.fit(
    ids, ids[:, ::-1], sample_weight=weights, batch_size={batch}, epochs=3,
    shuffle=False, verbose=0,
)
program = jax.make_jaxpr(lambda: model(ids))()
print(json.dumps({{
    "count": count,
    "spread": "shard_map" in str(program),
    "loss": history.history["loss"],
    "text": model.generate("abc", 20),
    "nats": [score.nats for score in model.score(["abc", "hgfedcba", ""])],
}}))
"""


def trained(cores, batch=12, cell="lstm"):
    """What a process of so many cores says of a training."""
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM.format(cores=cores, batch=batch, cell=cell),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@JAX
@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_four_devices_learn_what_one_does(cell):
    one, four = trained(1, cell=cell), trained(4, cell=cell)
    assert (one["count"], four["count"]) == (1, 4)
    assert (one["spread"], four["spread"]) == (False, True)
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert four["loss"][-1] < four["loss"][0]
    assert four["nats"] == pytest.approx(one["nats"], rel=1e-3)
    assert four["text"] == one["text"]


@JAX
def test_the_number_of_devices_divides_the_batch():
    assert trained(4, batch=6)["count"] == 3


@JAX
def test_a_process_in_which_jax_is_at_work_is_told(monkeypatch):
    import jax

    have = len(jax.devices())
    monkeypatch.setattr("keras_chargen.devices.cores", lambda: have + 1)
    with pytest.raises(ValueError, match="before JAX is at work"):
        use_cores()
    assert keras.distribution.distribution() is None


@pytest.mark.skipif(BACKEND == "jax", reason="for the others")
def test_nothing_changes_under_other_backends():
    assert use_cores() == 1
    assert keras.distribution.distribution() is None


def test_a_batch_size_is_positive():
    with pytest.raises(ValueError, match="batch_size"):
        use_cores(0)
