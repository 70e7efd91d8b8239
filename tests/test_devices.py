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

from keras_chargen import cli, devices

BACKEND = keras.backend.backend()
ROOT = Path(__file__).parents[1]
SEVERAL = {"jax": 4, "tensorflow": 2}.get(BACKEND, 1)
SHARES = pytest.mark.skipif(
    SEVERAL == 1, reason=f"{BACKEND} trains on one device"
)
JAX = pytest.mark.skipif(BACKEND != "jax", reason="JAX joins processes")

TRAIN = """
import json, sys
import keras
import numpy as np
from keras_chargen import CharRNN, CharTokenizer, devices, saving

count, out, *others = json.loads(sys.argv[1])
random = np.random.default_rng(0)
ids = random.integers(1, 9, (320, 12)).astype("int32")
targets = np.roll(ids, -1, axis=1)
# The rows of one device hold more characters than those of another.
weights = (random.random((320, 12)) < np.arange(320)[:, None] % 8 / 8 + 0.1)
weights = weights.astype("float32")


def fit(model, epochs):
    history = model.fit(
        ids, targets, sample_weight=weights, batch_size=8, epochs=epochs,
        shuffle=False, verbose=0,
    )
    return [history.history[name] for name in sorted(history.history)]


with devices.use_devices(count, 8):
    found = {}
    for cell in ("lstm", "gru", "simple"):
        keras.utils.set_random_seed(0)
        model = CharRNN(CharTokenizer("abcdefgh"), cell, units=8)
        model.compile(
            # A norm that is reached at every step.
            keras.optimizers.Adam(5e-3, global_clipnorm=0.05)
        )
        found[cell] = fit(model, 1)
    saving.save_model(model, out)
    found["later"] = fit(model, 1)
    found["text"] = model.generate("abc", 20)
    found["nats"] = [s.nats for s in model.score(["abc", "hgfedcba", ""])]
    for i, path in enumerate(others):
        found[f"other {i}"] = fit(saving.load_model(path, compile=True), 1)
    if keras.backend.backend() == "jax":
        import jax

        program = str(jax.make_jaxpr(lambda x: model(x))(ids[:8]))
        found["spread"] = "shard_map" in program
        found["devices"] = len(model.weights[0].value.sharding.device_set)
    else:
        found["devices"] = model.distribute_strategy.num_replicas_in_sync
assert keras.distribution.distribution() is None
print(json.dumps(found))
"""


def start(*arguments, **settings):
    """A Python process without what tests may have set for this one."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
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
    return texts


def train(count, out, *others, **settings):
    arguments = json.dumps([count, str(out), *map(str, others)])
    ((out, _),) = finish(start("-c", TRAIN, arguments, **settings))
    return json.loads(out.splitlines()[-1])


@SHARES
@pytest.mark.slow
def test_several_devices_learn_what_one_does_and_go_on_from_its_file(tmp_path):
    files = tmp_path / "one.keras", tmp_path / "several.keras"
    one = train(1, files[0])
    forced = f"--xla_force_host_platform_device_count={SEVERAL}"
    several = train(SEVERAL, files[1], files[0], XLA_FLAGS=forced)
    again = train(1, tmp_path / "x.keras", files[1])
    assert (one["devices"], several["devices"]) == (1, SEVERAL)
    assert (one.get("spread"), several.get("spread")) in [
        (False, True),
        (None, None),
    ]
    for name in ("lstm", "gru", "simple", "later"):
        np.testing.assert_allclose(several[name], one[name], rtol=1e-5)
    assert several["later"] < several["simple"]
    assert several["text"] == one["text"]
    np.testing.assert_allclose(several["nats"], one["nats"], rtol=1e-3)
    np.testing.assert_allclose(several["other 0"], one["later"], rtol=1e-5)
    np.testing.assert_allclose(again["other 0"], one["later"], rtol=1e-5)


JOINED = """
import json, sys
import numpy as np
import tensorflow as tf
import keras
from keras_chargen import CharRNN, CharTokenizer, devices, pipeline

number, address, out, texts = json.loads(sys.argv[1])
devices.join(address, 2, number)
with devices.use_devices(1, 4):
    dataset = pipeline.text_dataset(devices.shard(texts))
    training, held_out = pipeline.split(dataset, 0.2)
    tokenizer = CharTokenizer("abcdefgh")
    data = pipeline.lines(training, tokenizer, 4)
    batches = list(data.as_numpy_iterator())
    again = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=data.element_spec
    )
    keras.utils.set_random_seed(0)
    model = CharRNN(tokenizer, units=8)
    model.compile()
    model.fit(again, epochs=2, shuffle=False, verbose=0)
    arrays = dict(enumerate(model.get_weights()))
    history = model.fit(
        data,
        validation_data=pipeline.lines(
            held_out, tokenizer, 4, training=False
        ),
        shuffle=False,
        verbose=0,
    ).history
    text = model.generate("abc", 20)
np.savez(
    out,
    **{f"weight_{i}": array for i, array in arrays.items()},
    **{
        f"batch_{i}_{part}": array
        for i, batch in enumerate(batches)
        for part, array in enumerate(batch)
    },
)
print(json.dumps([len(list(training)), len(list(held_out)), history, text]))
"""


def free_address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def letters(count):
    random = np.random.default_rng(0)
    sizes = random.integers(1, 30, count)
    return ["".join(random.choice(list("abcdefgh"), size)) for size in sizes]


@JAX
@pytest.mark.slow
def test_joined_processes_learn_from_their_shards_what_one_would(tmp_path):
    texts, address = letters(120), free_address()
    outs = [tmp_path / f"{number}.npz" for number in range(2)]
    found = finish(
        *(
            start("-c", JOINED, json.dumps([i, address, str(out), texts]))
            for i, out in enumerate(outs)
        )
    )
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in found)
    # Each has its own half of the texts; what they find they share.
    assert first[0] + second[0] + first[1] + second[1] == 120
    assert first[0] + first[1] == 60
    assert first[2:] == second[2:]
    assert first[2]["val_loss"][0] < 2.3
    shares = [np.load(out) for out in outs]
    count = sum("weight" in name for name in shares[0])
    weights = [[share[f"weight_{i}"] for i in range(count)] for share in shares]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)

    steps = sum(name.endswith("_0") for name in shares[0]) - 1
    batches = [
        [
            np.concatenate([share[f"batch_{i}_{part}"] for share in shares])
            for part in range(3)
        ]
        for i in range(steps)
    ]
    from keras_chargen import CharRNN, CharTokenizer

    keras.utils.set_random_seed(0)
    model = CharRNN(CharTokenizer("abcdefgh"), units=8)
    model.compile()
    for _ in range(2):
        for ids, targets, counts in batches:
            model.train_on_batch(ids, targets, sample_weight=counts)
    for a, b in zip(model.get_weights(), weights[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(letters(200)))
    return path


def arguments(corpus, out, *more):
    return [
        *("train", "--corpus", str(corpus), "--out", str(out)),
        *("--units", "4", "--batch-size", "8", *map(str, more)),
    ]


def loss(text):
    return float(re.search(r"epoch 1/1: loss (\S+) nats", text)[1])


@SHARES
@pytest.mark.slow
def test_the_command_trains_on_several_devices(corpus, tmp_path, capsys):
    command = arguments(corpus, tmp_path / "m.keras", "--devices", 2)
    ((out, err),) = finish(start("-m", "keras_chargen", *command))
    assert out == ""
    with pytest.raises(SystemExit):
        cli.main(arguments(corpus, tmp_path / "one.keras"))
    # TensorFlow draws another order of the batches that it hands out.
    near = {"jax": 2e-4, "tensorflow": 2e-2}[BACKEND]
    assert loss(err) == pytest.approx(loss(capsys.readouterr().err), abs=near)
    assert (tmp_path / "m.keras").is_file()


@JAX
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lines", "windows"])
def test_the_command_joins_processes(corpus, tmp_path, mode):
    corpus.write_text("\n".join(letters(5000)))  # two pieces for windows
    address = free_address()
    found = finish(
        *(
            start(
                *("-m", "keras_chargen"),
                *arguments(corpus, tmp_path / f"{number}.keras"),
                *("--mode", mode, "--batch-size", 64, "--prompt", "abc"),
                *("--held-out", 0),
                *("--coordinator", address, "--processes", 2),
                *("--process-id", number),
            )
            for number in range(2)
        )
    )
    assert [out for out, _ in found] == ["", ""]
    assert loss(found[0][1]) < 2.5
    assert "epoch 1, greedy: abc" in found[0][1]
    assert "read 5,000 texts" in found[0][1] or mode == "windows"
    assert "epoch" not in found[1][1] and "read" not in found[1][1]
    assert (tmp_path / "0.keras").is_file()
    assert not (tmp_path / "1.keras").exists()


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize("training", [True, False])
def test_processes_have_batches_of_the_same_widths(monkeypatch, training):
    from keras_chargen import CharTokenizer, pipeline

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
    with pytest.raises(ValueError, match=r"NPROC=|at most .* before|first"):
        devices.use_devices(1000)
    assert keras.distribution.distribution() is None


@pytest.mark.skipif(SEVERAL > 1, reason="several devices train")
def test_other_backends_say_that_they_train_on_one_device():
    with pytest.raises(ValueError, match=f"must be 1 under {BACKEND}"):
        devices.use_devices(2)
    with pytest.raises(ValueError, match="under JAX alone"):
        devices.join("127.0.0.1:1", 2, 0)


@JAX
def test_a_process_has_a_number_below_theirs():
    with pytest.raises(ValueError, match=r"below .* 2. Received: 2"):
        devices.join("127.0.0.1:1", 2, 2)


@pytest.mark.trains
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--devices", 3], "--batch-size must be a multiple .* 3"),
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
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments(corpus, tmp_path / "m.keras", *more))
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert re.search(says, err) and len(err.splitlines()) == 1
