"""Several devices, and several processes, learn what one does."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_chargen import CharRNN, CharTokenizer, cli, devices

BACKEND = keras.backend.backend()
ROOT = Path(__file__).parents[1]
SEVERAL = {"jax": 4, "tensorflow": 2}.get(BACKEND, 1)
SHARES = pytest.mark.skipif(
    SEVERAL == 1, reason=f"{BACKEND} trains on one device"
)
JAX = pytest.mark.skipif(BACKEND != "jax", reason="JAX joins processes")

COMMAND = """
import contextlib, io, json, re, sys
import keras
import numpy as np
from keras_chargen import CharRNN, CharTokenizer, cli, devices, saving

told = json.loads(sys.argv[1])


def command(corpus, out, *more):
    err = io.StringIO()
    arguments = ["train", "--corpus", corpus, "--out", out, "--units", "4"]
    with contextlib.redirect_stderr(err):
        try:
            cli.main([*arguments, "--batch-size", "32", *map(str, more)])
        except SystemExit as end:
            assert not end.code, err.getvalue()
    return err.getvalue()
"""

SHARED_BATCHES = """
random = np.random.default_rng(0)
ids = random.integers(1, 9, (160, 12)).astype("int32")
targets = np.roll(ids, -1, axis=1)
# The rows of one device hold more characters than those of another.
weights = (random.random((160, 12)) < np.arange(160)[:, None] % 8 / 8 + 0.1)
weights = weights.astype("float32")


def fit(model):
    history = model.fit(
        ids, targets, sample_weight=weights, batch_size=8, shuffle=False,
        verbose=0,
    ).history
    return [history[name] for name in sorted(history)]


def learn(count, out):
    found = {}
    with devices.use_devices(count, 8):
        for cell, settings in (
            ("simple", {}),
            ("gru", {"embedding_dim": 3}),
            ("lstm", {}),
        ):
            keras.utils.set_random_seed(0)
            model = CharRNN(
                CharTokenizer("abcdefgh"), cell, units=8, **settings
            )
            # A norm that is reached at every step.
            model.compile(keras.optimizers.Adam(5e-3, global_clipnorm=0.05))
            found[cell] = fit(model)
        found["weights"] = [w.tolist() for w in model.get_weights()]
        saving.save_model(model, out)
        found["later"] = fit(model)
        found["text"] = model.generate("abc", 20)
        found["nats"] = [s.nats for s in model.score(["abc", "hgfedcba", ""])]
        if keras.backend.backend() == "jax":
            import jax

            program = str(jax.make_jaxpr(lambda x: model(x))(ids[:8]))
            found["spread"] = "shard_map" in program
            sharding = model.weights[0].value.sharding
            found["devices"] = len(sharding.device_set)
        else:
            found["devices"] = model.distribute_strategy.num_replicas_in_sync
    assert keras.distribution.distribution() is None
    return found


def go_on(count, file):
    with devices.use_devices(count, 8):
        return fit(saving.load_model(file, compile=True))


files, count = told["files"], told["count"]
several, one = learn(count, files[0]), learn(1, files[1])
several["from one"], one["from several"] = (
    go_on(count, files[1]), go_on(1, files[0])
)
for found, number, file in (several, count, "2"), (one, 1, "3"):
    err = command(
        *(told["corpus"], files[int(file)], "--devices", number),
        *("--mode", "windows", "--sequence-length", 16, "--held-out", 0),
    )
    found["loss"] = float(re.search(r"epoch 1/1: loss (\\S+) nats", err)[1])
print(json.dumps([several, one]))
"""


def start(script, told, **settings):
    """A Python process without what tests may have set for this one."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND + script, json.dumps(told)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    """What processes print; one that fails takes the others with it."""
    try:
        texts = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, err) in zip(processes, texts, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in texts]


def letters(count):
    random = np.random.default_rng(0)
    sizes = random.integers(1, 30, count)
    return ["".join(random.choice(list("abcdefgh"), size)) for size in sizes]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(letters(120)))
    return path


@SHARES
@pytest.mark.slow
def test_several_devices_learn_what_one_does_and_go_on_from_its_file(
    corpus, tmp_path
):
    told = {
        "corpus": str(corpus),
        "count": SEVERAL,
        "files": [str(tmp_path / f"{i}.keras") for i in range(4)],
    }
    forced = f"--xla_force_host_platform_device_count={SEVERAL}"
    process = start(SHARED_BATCHES, told, XLA_FLAGS=forced)
    several, one = json.loads(finish(process)[0].splitlines()[-1])
    assert (several["devices"], one["devices"]) == (SEVERAL, 1)
    if BACKEND == "jax":
        assert several["spread"] and not one["spread"]
    for name in ("simple", "gru", "lstm", "later"):
        np.testing.assert_allclose(several[name], one[name], rtol=1e-5)
    for a, b in zip(several["weights"], one["weights"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert several["later"] < several["lstm"]
    assert several["text"] == one["text"]
    np.testing.assert_allclose(several["nats"], one["nats"], rtol=1e-3)
    np.testing.assert_allclose(several["from one"], one["later"], rtol=1e-5)
    np.testing.assert_allclose(one["from several"], one["later"], rtol=1e-5)
    # Keras takes the first batch from TensorFlow's devices for a look.
    near = {"jax": 2e-4, "tensorflow": 2e-2}[BACKEND]
    assert several["loss"] == pytest.approx(one["loss"], abs=near)
    assert (tmp_path / "2.keras").is_file()


JOINED = """
number, (first, second) = told["number"], told["outs"]
err = command(
    told["corpus"], [first, second][number], "--devices", 2, "--prompt", "abc",
    *("--held-out", 0, "--coordinator", told["address"]),
    *("--processes", 2, "--process-id", number),
)
import tensorflow as tf
from keras_chargen import pipeline

assert devices.process() == (number, 2)
texts = open(told["corpus"]).read().splitlines()
with devices.use_devices(2, 4):
    dataset = pipeline.text_dataset(devices.shard(texts))
    training, held_out = pipeline.split(dataset, 0.2)
    tokenizer = CharTokenizer("abcdefgh")
    data = pipeline.lines(training, tokenizer, 4, buckets=[8, 30])
    batches = list(data.as_numpy_iterator())
    again = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=data.element_spec
    )
    keras.utils.set_random_seed(0)
    model = CharRNN(tokenizer, units=8)
    model.compile()
    history = model.fit(
        again,
        validation_data=pipeline.lines(
            held_out, tokenizer, 4, buckets=[30], training=False
        ),
        shuffle=False,
        verbose=0,
    ).history
    text = model.generate("abc", 20)
    count = len(model.weights[0].value.sharding.device_set)
np.savez(
    told["arrays"],
    **{f"weight_{i}": w for i, w in enumerate(model.get_weights())},
    **{
        f"batch_{i}_{part}": array
        for i, batch in enumerate(batches)
        for part, array in enumerate(batch)
    },
)
sizes = [len(list(training)), len(list(held_out))]
with open(told["report"], "w") as file:
    json.dump([err, sizes, len(batches), history, text, count], file)
"""


def free_address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@JAX
@pytest.mark.slow
def test_joined_processes_learn_from_their_shards_what_one_would(
    corpus, tmp_path
):
    outs = [tmp_path / f"{number}.keras" for number in range(2)]
    reports = [tmp_path / f"{number}.json" for number in range(2)]
    arrays = [tmp_path / f"{number}.npz" for number in range(2)]
    told = {
        "corpus": str(corpus),
        "address": free_address(),
        "outs": list(map(str, outs)),
    }
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    printed = finish(
        *(
            start(
                JOINED,
                {
                    **told,
                    "number": number,
                    "report": str(reports[number]),
                    "arrays": str(arrays[number]),
                },
                **settings,
            )
            for number in range(2)
        )
    )
    # By the command: the first process tells and writes.
    assert printed == ["", ""]
    first, second = (json.loads(path.read_text()) for path in reports)
    assert "read 120 texts" in first[0]
    assert "epoch 1, greedy: abc" in first[0]
    assert second[0] == ""
    assert outs[0].is_file() and not outs[1].exists()

    # From Python: each has its own half of the texts, what they find they
    # share.
    assert sum(first[1]) == sum(second[1]) == 60
    assert first[2:] == second[2:]
    _, _, steps, history, _, count = first
    assert history["val_loss"][0] < 2.3
    assert count == 4
    shares = [np.load(path) for path in arrays]
    keras.utils.set_random_seed(0)
    model = CharRNN(CharTokenizer("abcdefgh"), units=8)
    model.compile()
    for i in range(steps):
        parts = [
            np.concatenate([share[f"batch_{i}_{part}"] for share in shares])
            for part in range(3)
        ]
        model.train_on_batch(*parts[:2], sample_weight=parts[2])
    for i, weight in enumerate(model.get_weights()):
        a, b = (share[f"weight_{i}"] for share in shares)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(weight, a, atol=1e-4)


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize("training", [True, False])
def test_processes_have_batches_of_the_same_widths(monkeypatch, training):
    from keras_chargen import pipeline

    tokenizer = CharTokenizer("abcdefgh")
    parts = [letters(150)[i::3] for i in range(3)]
    parts[1] = [text * 2 for text in parts[1]]
    counted = []

    def datasets(exchange):
        for number, texts in enumerate(parts):
            monkeypatch.setattr(devices, "process", lambda n=number: (n, 3))
            monkeypatch.setattr(devices, "exchange", exchange)
            yield pipeline.lines(
                texts, tokenizer, 4, max_length=40, training=training
            )

    # Each says how many rows it has, and is told what all of them said.
    list(datasets(lambda rows: counted.append(rows) or rows[None]))
    everyone = np.stack(counted)
    made = list(datasets(lambda _: everyone))
    orders = []
    for _ in range(2):
        epochs = [list(data.as_numpy_iterator()) for data in made]
        widths = [[batch[0].shape for batch in epoch] for epoch in epochs]
        assert widths[0] == widths[1] == widths[2]
        assert [len(epoch) for epoch in epochs] == [len(d) for d in made]
        orders.append(widths[0])
        if not training:
            # No character is lost.
            for texts, epoch in zip(parts, epochs, strict=True):
                counts = sum(batch[2].sum() for batch in epoch)
                assert counts == sum(len(text) + 1 for text in texts)
        else:
            assert all(batch[2].any(1).all() for e in epochs for batch in e)
            assert len(epochs[0]) >= 0.8 * everyone.sum() / 12
    assert orders[0] != orders[1]  # drawn anew


def test_each_process_takes_its_share_of_the_texts(monkeypatch):
    texts = ["a", "b", "c", "d", "e"]
    assert list(devices.shard(texts)) == texts
    for number, share in enumerate([["a", "d"], ["b", "e"], ["c"]]):
        monkeypatch.setattr(devices, "process", lambda n=number: (n, 3))
        assert list(devices.shard(texts)) == share
        with pytest.raises(ValueError, match=r"at least as many texts .* 3"):
            list(devices.shard(["a", "b"]))


def test_one_device_changes_nothing():
    with devices.use_devices(1, 7):
        assert keras.distribution.distribution() is None
    assert devices.process() == (0, 1)
    assert devices.exchange(np.array([3])).tolist() == [[3]]


@pytest.mark.parametrize("count", [0, 1.5, True, "2"])
def test_a_number_of_devices_is_positive(count):
    with pytest.raises(ValueError, match="`count` must be an integer >= 1"):
        devices.use_devices(count)


def test_devices_must_divide_a_batch():
    with pytest.raises(ValueError, match=r"multiple .* 4. Received: 6"):
        devices.use_devices(4, 6)


@SHARES
def test_more_devices_than_there_are_is_an_error():
    keras.ops.convert_to_numpy(keras.ops.ones(1) + 1)  # It works already.
    with pytest.raises(ValueError, match=r"NPROC=|at most .* cores"):
        devices.use_devices(1000)
    assert keras.distribution.distribution() is None


def test_a_state_is_carried_on_one_device(monkeypatch):
    tokenizer = CharTokenizer("abcdefgh")
    model = CharRNN(tokenizer, units=2)
    monkeypatch.setattr(devices, "_replicas", lambda: 2)
    with pytest.raises(ValueError, match=r"state .* needs one device"):
        model.carry_state(4)
    model.carry_state(None)


@pytest.mark.needs_tensorflow
def test_streams_are_read_on_one_device(monkeypatch):
    from keras_chargen import pipeline

    monkeypatch.setattr(devices, "_replicas", lambda: 2)
    with pytest.raises(ValueError, match="streams needs one device"):
        pipeline.streams(["abc"], CharTokenizer("abc"), 1, sequence_length=1)


@pytest.mark.skipif(SEVERAL > 1, reason="several devices train")
def test_other_backends_say_that_they_train_on_one_device():
    with pytest.raises(ValueError, match=f"must be 1 under {BACKEND}"):
        devices.use_devices(2)
    with pytest.raises(ValueError, match="under JAX alone"):
        devices.join("127.0.0.1:1", 2, 0)


@JAX
@pytest.mark.parametrize("place", ["localhost", ":1", "localhost:x"])
def test_a_coordinator_has_a_port(place):
    with pytest.raises(ValueError, match=f"host:port. Received: {place}"):
        devices.join(place, 2, 0)


@JAX
def test_a_process_has_a_number_below_theirs():
    with pytest.raises(ValueError, match=r"below .* 2. Received: 2"):
        devices.join("127.0.0.1:1", 2, 2)


@pytest.mark.trains
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--devices", 3], "--batch-size must be a multiple .* 3"),
        (
            ["--devices", 1024, "--batch-size", 1024],
            "`count` must be at most|NPROC=|`count` must be 1 under torch",
        ),
        (["--processes", 2], "go together"),
        (["--coordinator", "localhost:1"], "go together"),
        (["--coordinator", "a:1", "--processes", 2, "--process-id", 2], "go"),
        (
            ["--coordinator", "a:1", "--processes", 2, "--time-budget", "9s"],
            "--time-budget excludes",
        ),
    ],
)
def test_the_command_refuses_what_cannot_be(
    corpus, tmp_path, capsys, more, says
):
    out = tmp_path / "m.keras"
    command = ["train", "--corpus", corpus, "--out", out, "--batch-size", 8]
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(word) for word in [*command, *more]])
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert re.search(says, err) and len(err.splitlines()) == 1
