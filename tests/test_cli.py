"""The command line: what goes in, what comes out, and every refusal."""

import csv
import errno
import gzip
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_chargen import CharRNN, CharTokenizer, bulk, cli, save_model
from keras_chargen.saving import load_model

ROOT = Path(__file__).parents[1]
BACKEND = keras.backend.backend()
COMMANDS = [
    [],
    ["train"],
    ["generate"],
    ["evaluate"],
    ["score"],
    ["info"],
    ["prepare"],
    ["prepare", "ag-news"],
]
TEXTS = ["Today is a day", "The cat sat", "On Sunday it rains"] * 20


@pytest.fixture
def run(capsys):
    """Runs a command in this process: `(code, stdout, stderr)`."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        return exit_.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run):
    """Runs a command that must be refused, and gives the line that says so."""

    def refused(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        return lines[0]

    return refused


def process(*arguments, **settings):
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "keras_chargen", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def make_model(path, oov="drop"):
    keras.utils.set_random_seed(0)
    tokenizer = CharTokenizer(oov=oov)
    tokenizer.adapt(TEXTS)
    model = CharRNN(tokenizer, units=8)
    save_model(model, path)
    return model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.keras"
    make_model(path)
    return path


# ---------------------------------------------------------- train


def trains(function):
    """Marks a test that trains by the pipeline."""
    return pytest.mark.trains(pytest.mark.needs_tensorflow(function))


@pytest.fixture
def train(run, corpus, tmp_path):
    """Trains a tiny model: `(code, stdout, stderr, target)`."""

    def train(*arguments, texts=corpus, name="out.keras"):
        target = tmp_path / name
        return *run(
            "train",
            *("--corpus", texts, "--out", target),
            *("--units", 4, "--batch-size", 8, *arguments),
        ), target

    return train


@trains
def test_train_shows_its_figures_and_saves_the_model(train):
    code, out, err, target = train(
        *("--epochs", 2, "--prompt", "To", "--prompt", "On"),
        *("--temperature", 0, "--temperature", 0.7),
    )
    assert (code, out) == (0, "")
    assert "read 60 texts" in err and f"backend {BACKEND}" in err
    for epoch in (1, 2):
        assert f"epoch {epoch}/2: loss " in err
        for kind in ("greedy", "temperature 0.7"):
            for prompt in ("To", "On"):
                assert f"epoch {epoch}, {kind}: {prompt}" in err
    assert "bits/character" in err and "characters/s" in err
    assert f"saved {target}" in err
    assert load_model(target).units == 4
    assert sorted(p.name for p in target.parent.iterdir()) == [
        "out.keras",
        "texts.txt",
    ]


@trains
def test_the_same_seed_trains_the_same_model(train):
    files = [
        train("--seed", seed, name=name)[-1]
        for seed, name in ((3, "a.keras"), (3, "b.keras"), (4, "c.keras"))
    ]
    texts = [load_model(file).generate("T", 60) for file in files]
    weights = [load_model(file).get_weights() for file in files]
    assert texts[0] == texts[1]
    assert all((a == b).all() for a, b in zip(*weights[:2], strict=True))
    assert any((a != b).any() for a, b in zip(*weights[1:], strict=True))


@trains
def test_every_option_of_the_model_reaches_it(train):
    *_, target = train(
        *("--cell", "gru", "--layers", 2, "--embedding-dim", 3),
        *("--dropout", 0.1, "--oov", "unk", "--held-out", 0),
    )
    model = load_model(target)
    assert (model.cell, model.num_layers, model.embedding_dim) == ("gru", 2, 3)
    assert (model.dropout, model.tokenizer.oov) == (0.1, "unk")
    assert model.residual is False


@trains
def test_residual_blocks_of_a_minimal_cell_are_an_option(train):
    code, *_, target = train(
        *("--cell", "mingru", "--layers", 2, "--residual", "--held-out", 0)
    )
    model = load_model(target)
    assert code == 0 and (model.cell, model.residual) == ("mingru", True)


@trains
def test_options_go_before_a_preset_which_goes_before_defaults(train):
    code, _, err, target = train(
        *("--preset", "fast", "--dropout", 0.25, "--sequence-length", 16),
        *("--no-variational-dropout", "--epochs", 1, "--weight-decay", 0.1),
        *("--precision", "bfloat16", "--held-out", 0),
    )
    assert code == 0, err
    # The preset's time is not for so many epochs.
    assert "epoch 1/1" in err and "bfloat16" in err
    model = load_model(target, compile=True)
    assert (model.units, model.dropout) == (4, 0.25)
    assert model.variational_dropout is False
    # What is written with may have no bfloat16.
    assert model.dtype_policy.compute_dtype == "float32"
    assert type(model.optimizer).__name__.endswith("AdamW")
    assert model.optimizer.beta_2 == pytest.approx(0.99)
    # 60 texts of a stream that goes on, in rows of 16.
    assert int(model.optimizer.iterations) > 2


@trains
def test_a_preset_says_for_how_long(train, monkeypatch):
    from keras_chargen import callbacks

    asked = []

    class Soon(callbacks.TimeBudget):
        def __init__(self, seconds):
            asked.append(seconds)
            super().__init__(1)

    monkeypatch.setattr(callbacks, "TimeBudget", Soon)
    code, _, err, _ = train(
        *("--preset", "shakespeare", "--sequence-length", 16)
    )
    assert code == 0, err
    assert asked == [600]


@trains
def test_a_schedule_is_as_long_as_the_epochs(train):
    code, *_, target = train(
        *("--schedule", "cosine", "--learning-rate", 0.25, "--epochs", 2),
        *("--ema", 0.5, "--label-smoothing", 0.1, "--clip-norm", 2),
        *("--held-out", 0, "--optimizer", "muon"),
    )
    assert code == 0
    model = load_model(target, compile=True)
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.Muon)
    steps = int(optimizer.iterations)
    assert float(optimizer._learning_rate(steps)) == pytest.approx(0.005)
    assert float(optimizer._learning_rate(steps // 2)) > 0.1
    assert (optimizer.ema_momentum, optimizer.global_clipnorm) == (0.5, 2)
    assert model.loss.label_smoothing == 0.1


@trains
def test_streams_train_and_resume(train, run, tmp_path):
    options = (
        *("--mode", "streams", "--sequence-length", 16, "--held-out", 0),
        *("--weight-dropout", 0.2, "--epochs", 2),
        *("--checkpoint-dir", tmp_path / "run", "--checkpoint-every", "1b"),
    )
    code, _, err, target = train(*options)
    assert code == 0, err
    whole = load_model(target).get_weights()
    for path in sorted((tmp_path / "run").glob("*.ckpt"))[1:]:
        path.unlink()
    code, _, err = run("train", "--resume", tmp_path / "run")
    assert code == 0, err
    resumed = load_model(target).get_weights()
    assert all((a == b).all() for a, b in zip(whole, resumed, strict=True))


@trains
def test_windows_and_limits_are_options(train):
    code, _, err, _ = train(
        *("--mode", "windows", "--sequence-length", 16, "--held-out", 0)
    )
    assert code == 0 and "pieces" in err
    _, _, err, _ = train("--limit", 30, name="b.keras")
    assert "read 30 texts" in err


@trains
def test_a_field_of_a_table_is_a_corpus(train, tmp_path):
    table = tmp_path / "rows.csv.gz"
    with gzip.open(table, "wt") as file:
        file.writelines(f'"1","{text}","x"\n' for text in TEXTS)
    code, _, err, target = train(
        "--columns", "label,title,rest", "--field", "title", texts=table
    )
    assert code == 0, err
    assert "x" not in load_model(target).tokenizer.characters


@trains
def test_samples_go_to_a_file_and_logs_to_tensorboard(train, tmp_path):
    pytest.importorskip("tensorboard")
    samples, logs = tmp_path / "samples.txt", tmp_path / "logs"
    train(
        *("--prompt", "To", "--sample-file", samples, "--log-dir", logs),
        *("--sample-every", 2),
    )
    assert samples.read_text().startswith("batch 2, greedy: To")
    assert list(logs.rglob("events*"))


@trains
def test_force_replaces_a_model(train):
    *_, target = train()
    before = target.read_bytes()
    code, *_ = train("--force", "--seed", 5)
    assert code == 0 and target.read_bytes() != before


@trains
@pytest.mark.parametrize(
    "number, exit_code, what",
    [
        pytest.param(signal.SIGINT, 130, "interrupted", id="ctrl-c"),
        pytest.param(signal.SIGTERM, 143, "terminated", id="sigterm"),
    ],
)
def test_a_signal_saves_what_was_learned(
    train, monkeypatch, number, exit_code, what
):
    from keras_chargen import callbacks

    class Signalling(callbacks.ProgressBar):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if batch == 2:
                signal.raise_signal(number)

    monkeypatch.setattr(callbacks, "ProgressBar", Signalling)
    code, out, err, target = train("--epochs", 50)
    assert (code, out) == (exit_code, "")
    assert f"{what}; what was learned is saved as {target}" in err
    assert load_model(target).units == 4


@trains
def test_a_time_budget_ends_training_and_saves(train, tmp_path):
    log = tmp_path / "log.csv"
    code, _, err, target = train("--time-budget", "3s", "--csv-log", log)
    assert code == 0 and load_model(target).units == 4
    epochs = err.count("bits/character")
    # Compiling is part of the time: on a busy machine one epoch is all.
    assert epochs >= 1 and "epoch 1: loss" in err
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert len(rows) == epochs
    names = ("learning_rate", "gradient_norm", "characters_per_second")
    assert all(float(rows[0][name]) > 0 for name in names)


@trains
def test_patience_ends_training_that_learns_nothing(train, tmp_path):
    texts = tmp_path / "more.txt"
    texts.write_text("".join(f"Today {i} of them\n" for i in range(99)))
    code, _, err, _ = train(
        *("--learning-rate", 0, "--epochs", 50, "--patience", 2),
        *("--held-out", 0.3),
        texts=texts,
    )
    assert code == 0 and err.count("held out") == 3


@trains
def test_patience_where_no_text_is_held_out_is_refused(train):
    code, _, err, target = train("--held-out", 1e-6, "--patience", 2)
    assert code == 2 and "--patience" in err and "none fell" in err
    assert not target.exists()


@trains
def test_a_loss_that_is_no_number_leaves_no_file(train):
    code, _, err, target = train("--learning-rate", 1e38, "--epochs", 3)
    assert code == 2 and "the loss is" in err and "of epoch" in err
    assert not target.exists()


@pytest.mark.slow
@trains
def test_ctrl_c_reaches_a_process_that_trains(corpus, tmp_path):
    target = tmp_path / "m.keras"
    running = process(
        *("train", "--corpus", corpus, "--out", target, "--units", 4),
        *("--batch-size", 8, "--epochs", 100_000),
    )
    for line in running.stderr:
        if line.startswith("epoch 1"):
            break
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert load_model(target).units == 4


# ---------------------------------------------------------- checkpoints


@pytest.fixture
def resumable(train, tmp_path):
    """A run with checkpoints: what `train` gives, and their folder."""
    folder = tmp_path / "run"

    def resumable(*arguments, name="out.keras"):
        return *train(
            *("--checkpoint-dir", folder, "--checkpoint-every", "2b"),
            *("--epochs", 2, "--dropout", 0.2, *arguments),
            name=name,
        ), folder

    return resumable


@trains
def test_a_run_that_was_terminated_goes_on_as_if_it_were_not(
    resumable, train, run, monkeypatch, tmp_path
):
    from keras_chargen import callbacks

    class Signalling(callbacks.ProgressBar):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if batch == 2:
                signal.raise_signal(signal.SIGTERM)

    # A checkpoint knows its callbacks by their names.
    Signalling.__name__ = "ProgressBar"
    *_, whole, folder = resumable(name="whole.keras")
    folder.rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "ProgressBar", Signalling)
        code, _, err, target, _ = resumable()
    assert code == 143 and f"--resume {folder} goes on" in err
    code, out, err = run("train", "--resume", folder, "--units", 4)
    assert (code, out) == (0, "") and f"saved {target}" in err
    assert "epoch 1/2: loss" in err and "epoch 2/2: loss" in err
    for mine, expected in zip(
        load_model(target, compile=True).optimizer.variables,
        load_model(whole, compile=True).optimizer.variables,
        strict=True,
    ):
        assert (mine.numpy() == expected.numpy()).all()
    # Once more: all is done, and the model is written anew.
    target.unlink()
    code, _, err = run("train", "--resume", folder)
    assert code == 0 and "epoch" not in err and target.exists()


@pytest.fixture
def stopped(resumable):
    """The folder of a run of train, with its `train` and corpus."""
    *_, folder = resumable()
    return folder


@trains
def test_what_contradicts_a_run_is_refused(
    stopped, refused, corpus, train, monkeypatch
):
    line = refused("train", "--resume", stopped, "--units", 5)
    assert f"--units 5 contradicts the run in {stopped}, which has 4" in line
    code, _, err, _ = train("--checkpoint-dir", stopped, name="new.keras")
    assert code == 2 and "holds the checkpoints of a run" in err
    corpus.write_text(corpus.read_text().replace("rains", "snows"))
    line = refused("train", "--resume", stopped)
    assert "holds other texts than when" in line
    for path in stopped.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    line = refused("train", "--resume", stopped)
    assert "no checkpoint that can be used" in line and "damaged" in line


@trains
def test_a_disk_that_is_full_for_checkpoints_is_told_at_the_end(
    resumable, monkeypatch
):
    from keras_chargen import checkpoints

    def full(path, header, arrays):
        raise OSError(errno.ENOSPC, f"cannot write {path}")

    monkeypatch.setattr(checkpoints, "write", full)
    code, _, err, target, folder = resumable("--epochs", 1)
    assert code == 2 and target.exists() and not list(folder.iterdir())
    assert "training goes on, there is none" in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "cannot write" in err.splitlines()[-1]


@trains
def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(resumable):
    code, _, err, target, folder = resumable(
        "--learning-rate", 1e38, "--checkpoint-every", "1b"
    )
    assert code == 2 and "the loss is" in err and not target.exists()
    kept = list(folder.iterdir())
    assert ("is the last good checkpoint" in err) is bool(kept)


@pytest.mark.parametrize("every", ["0b", "b", "-1b", "1.5b", "5x", "0s"])
def test_an_interval_that_is_none_is_refused(refused, every, tmp_path):
    if BACKEND in cli.TRAINING_BACKENDS:
        line = refused(
            *("train", "--corpus", "c.txt", "--out", "m.keras"),
            *("--checkpoint-dir", tmp_path, "--checkpoint-every", every),
        )
        assert "--checkpoint-every must be" in line


# ---------------------------------------------------------- train refuses


def trains_refused(name, *arguments, said, prepare=None):
    return pytest.param(arguments, said, prepare, id=name)


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.needs_tensorflow
@pytest.mark.trains
@pytest.mark.parametrize(
    "arguments, said, prepare",
    [
        trains_refused("missing file", "--corpus", "no.txt", said=["no.txt"]),
        trains_refused(
            "no such preset",
            *("--corpus", "a.txt", "--preset", "slow"),
            said=["--preset", "headlines", "best"],
        ),
        trains_refused(
            "streams on several devices",
            *("--corpus", "a.txt", "--mode", "streams", "--devices", "2"),
            said=["--mode streams is for one device"],
            prepare=write("a.txt", b"abc\nabd"),
        ),
        trains_refused(
            "averages and patience",
            *("--corpus", "a.txt", "--ema", "0.9", "--patience", "1"),
            said=["--ema excludes --patience"],
            prepare=write("a.txt", b"abc\nabd"),
        ),
        trains_refused(
            "clipped to nothing",
            *("--corpus", "a.txt", "--clip-norm", "0"),
            said=["`clip_norm`"],
            prepare=write("a.txt", b"abc\nabd"),
        ),
        trains_refused(
            "empty file",
            *("--corpus", "a.txt"),
            said=["a.txt"],
            prepare=write("a.txt", b""),
        ),
        trains_refused(
            "wrong field",
            *("--corpus", "a.csv", "--field", "titel"),
            said=["titel", "title"],
            prepare=write("a.csv", b"label,title\n1,Today\n2,On\n"),
        ),
        trains_refused("directory", "--corpus", ".", said=["directory"]),
        *(
            trains_refused(
                f"time budget {text!r}",
                *("--corpus", "python-docs", "--time-budget", text),
                said=["--time-budget", "20m", f"Received: {text}"],
            )
            for text in ("5 days", "m", "0s", "-1m", "nan", "1e400", "3mm")
        ),
        trains_refused(
            "patience without texts held out",
            *("--corpus", "python-docs", "--patience", 2, "--held-out", 0),
            said=["--patience", "--held-out"],
        ),
        trains_refused(
            "unknown kind of file",
            *("--corpus", "a.pdf"),
            said=["a.pdf", ".txt", ".csv", ".jsonl"],
            prepare=write("a.pdf", b"%PDF"),
        ),
        trains_refused(
            "binary file",
            *("--corpus", "a.txt"),
            said=["a.txt", "binary"],
            prepare=write("a.txt", bytes(range(256)) * 40),
        ),
        trains_refused(
            "one character",
            *("--corpus", "a.txt"),
            said=["1 distinct character", "at least 2"],
            prepare=write("a.txt", b"aaa\naa\n" * 99),
        ),
        trains_refused(
            "batch larger than corpus",
            *("--corpus", "a.txt", "--batch-size", "64", "--held-out", "0"),
            said=["batch_size", "at most", "2", "64"],
            prepare=write("a.txt", b"ab\ncd\n"),
        ),
        trains_refused(
            "no units",
            *("--corpus", "python-docs", "--units", "0"),
            said=["--units", "greater than or equal to 1"],
        ),
        trains_refused(
            "endless temperature",
            *("--corpus", "python-docs", "--temperature", "inf"),
            said=["--temperature", "finite"],
        ),
        trains_refused(
            "unknown option",
            "--corpus",
            "python-docs",
            "--unit",
            "3",
            said=["--unit"],
        ),
        trains_refused("no corpus", said=["--corpus"]),
    ],
)
def test_train_refuses(
    refused, tmp_path, monkeypatch, arguments, said, prepare
):
    monkeypatch.chdir(tmp_path)
    if prepare:
        prepare(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    message = refused("train", "--out", "m.keras", *arguments)
    for word in said:
        assert word in message
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.trains
@pytest.mark.parametrize(
    "target, said",
    [
        ("m.h5", "end in .keras"),
        ("no/m.keras", "no directory no"),
        ("old.keras", "--force"),
        ("folder.keras", "is a directory"),
    ],
)
def test_train_refuses_a_target_before_it_reads_the_corpus(
    refused, tmp_path, monkeypatch, corpus, target, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.keras").write_bytes(b"old")
    (tmp_path / "folder.keras").mkdir()
    message = refused("train", "--corpus", corpus, "--out", target)
    assert said in message
    assert (tmp_path / "old.keras").read_bytes() == b"old"


@trains
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk_loses_nothing(run, corpus, tmp_path, monkeypatch, old):
    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CharRNN, "save", full)
    target = tmp_path / "m.keras"
    if old:
        target.write_bytes(old)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    code, out, err = run(
        *("train", "--corpus", corpus, "--out", target, "--force"),
        *("--units", 4, "--batch-size", 8),
    )
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last == f"error: cannot write {target}: No space left on device"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "backend, command, said",
    [
        ("tensorlow", "info", "one of tensorflow, jax, torch, numpy"),
        ("tensorlow", "train", "one of tensorflow, jax, torch. "),
        ("numpy", "train", "train under one of tensorflow, jax, torch. "),
    ],
)
def test_a_backend_that_cannot_serve_is_refused(
    refused, monkeypatch, backend, command, said
):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    arguments = ["--corpus", "python-docs", "--out", "m.keras"]
    message = refused(command, *(arguments if command == "train" else []))
    assert "KERAS_BACKEND" in message and said in message
    assert message.endswith(f"Received: {backend}")


def test_an_unknown_backend_is_refused_in_a_process_too():
    result = process("info", KERAS_BACKEND="foo")
    out, err = result.communicate()
    assert (result.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1 and "KERAS_BACKEND" in err


def test_a_backend_that_is_not_installed_is_refused(refused, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'keras-chargen[torch]'" in refused("info")


# ---------------------------------------------------------- generate


def test_generate_prints_the_greedy_text(run, model_file):
    code, out, err = run(
        "generate", model_file, "--prompt", "To", "--max-new-tokens", 20
    )
    assert (code, err) == (0, "")
    assert out == load_model(model_file).generate("To", 20) + "\n"


def test_generate_prints_what_python_writes_for_the_seed(run, model_file):
    _, out, _ = run(
        *("generate", model_file, "--prompt", "To", "--prompt", "On"),
        *("--temperature", 0.9, "--seed", 5, "--num-samples", 2),
        *("--max-new-tokens", 15),
    )
    texts = load_model(model_file).generate(
        ["To", "On"],
        15,
        sampler="random",
        temperature=0.9,
        seed=5,
        num_samples=2,
    )
    assert out.splitlines() == [text for row in texts for text in row]


def test_generate_as_json_prints_one_object(run, model_file):
    arguments = ("--prompt", "To", "--temperature", 0.9, "--seed", 5)
    _, out, _ = run("generate", model_file, *arguments, "--json")
    _, plain, _ = run("generate", model_file, *arguments)
    result = json.loads(out)
    assert result["results"] == [
        {"prompt": "To", "texts": [plain.removesuffix("\n")]}
    ]
    assert (result["sampler"], result["seed"]) == ("random", 5)


def test_json_tells_a_seed_that_was_drawn(run, model_file):
    arguments = ["generate", model_file, "--temperature", 1, "--json"]
    _, out, _ = run(*arguments)
    seed = json.loads(out)["seed"]
    _, again, _ = run(*arguments, "--seed", seed)
    assert json.loads(again) == json.loads(out)


def test_a_stream_prints_the_same(run, model_file):
    arguments = ("--prompt", "To", "--temperature", 0.9, "--seed", 5)
    _, plain, _ = run("generate", model_file, *arguments)
    _, streamed, _ = run("generate", model_file, *arguments, "--stream")
    assert streamed == plain


def test_ctrl_c_ends_a_stream_with_what_was_written(
    run, model_file, monkeypatch
):
    def stream(self, prompt, **settings):
        yield prompt
        yield "day"
        raise KeyboardInterrupt

    monkeypatch.setattr(CharRNN, "stream", stream)
    code, out, err = run("generate", model_file, "--prompt", "To", "--stream")
    assert (code, out) == (130, "Today\n")
    assert "Traceback" not in err


def test_the_prompt_and_a_stop_string_are_left_out_if_wished(run, model_file):
    model = load_model(model_file)
    settings = {"sampler": "random", "echo": False}
    # A text long enough to be cut.
    seed, whole = next(
        (seed, text)
        for seed in range(100)
        if len(text := model.generate("To", 30, seed=seed, **settings)) > 9
    )
    stop = whole[4:6]
    _, out, _ = run(
        *("generate", model_file, "--prompt", "To", "--no-echo"),
        *("--sampler", "random", "--seed", seed),
        *("--stop", stop, "--max-new-tokens", 30),
    )
    assert out == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize("prompt", [[], ["--prompt", ""]], ids=str)
def test_an_empty_prompt_writes_from_nothing(run, model_file, prompt):
    code, out, _ = run("generate", model_file, *prompt)
    assert code == 0
    assert out == load_model(model_file).generate("", 100) + "\n"


@pytest.mark.parametrize("oov, verb", [("drop", "skips"), ("unk", "reads as")])
def test_unknown_characters_of_a_prompt_are_told(run, tmp_path, oov, verb):
    make_model(tmp_path / "m.keras", oov)
    code, out, err = run("generate", tmp_path / "m.keras", "--prompt", "To§")
    assert code == 0 and out.startswith("To§")
    assert verb in err and "['§']" in err


def test_unknown_characters_are_refused_where_they_are_an_error(
    refused, tmp_path
):
    make_model(tmp_path / "m.keras", "error")
    message = refused("generate", tmp_path / "m.keras", "--prompt", "To§")
    assert "outside the vocabulary: ['§']" in message


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--temperature", "inf"], "`temperature` must be a finite"),
        (["--temperature", "-1"], "`temperature` must be a finite"),
        (["--temperature", "hot"], "--temperature"),
        (["--sampler", "top-q"], "--sampler"),
        (["--max-new-tokens", "-1"], "--max-new-tokens"),
        (["--num-samples", "0"], "--num-samples"),
        (["--stop", ""], "`stop` must be non-empty"),
        (["--stream", "--json"], "--stream writes one text"),
        (["--stream", "--num-samples", "2"], "--stream writes one text"),
    ],
)
def test_generate_refuses(refused, model_file, arguments, said):
    assert said in refused("generate", model_file, *arguments)


@pytest.mark.parametrize("command", ["generate", "evaluate", "info"])
@pytest.mark.parametrize(
    "name, data, said",
    [
        ("no.keras", None, "there is no file"),
        ("text.keras", b"no model", "not a .keras file"),
        ("m.h5", b"\x89HDF\r\n\x1a\n", "HDF5 is not read"),
        ("cut.keras", "cut", "cut off"),
    ],
)
def test_a_file_that_is_no_model_is_refused(
    refused, tmp_path, model_file, corpus, command, name, data, said
):
    path = tmp_path / name
    if data == "cut":
        data = model_file.read_bytes()[:-50]
    if data is not None:
        path.write_bytes(data)
    more = ["--corpus", corpus] if command == "evaluate" else []
    message = refused(command, path, *more)
    assert said in message and name in message


# ---------------------------------------------------------- evaluate, info


def test_evaluate_prints_the_sums_of_score(run, model_file, corpus):
    code, out, err = run("evaluate", model_file, "--corpus", corpus, "--json")
    assert (code, err) == (0, "")
    scores = load_model(model_file).score(TEXTS)
    result = json.loads(out)
    assert result["texts"] == len(TEXTS)
    assert result["characters"] == sum(score.characters for score in scores)
    nats = sum(score.nats for score in scores)
    assert result["nats"] == pytest.approx(nats, rel=1e-5)
    assert result["perplexity"] == pytest.approx(
        2 ** result["bits_per_character"]
    )


def test_evaluate_prints_a_table_for_people(run, model_file, corpus):
    _, out, _ = run("evaluate", model_file, "--corpus", corpus, "--limit", 3)
    rows = dict(line.rsplit(maxsplit=1) for line in out.splitlines())
    assert rows["texts"] == "3"
    assert float(rows["bits per character"]) > 0


def test_a_stream_is_evaluated_as_one_text(run, model_file, corpus):
    _, out, _ = run(
        *("evaluate", model_file, "--corpus", corpus),
        *("--mode", "windows", "--json"),
    )
    result = json.loads(out)
    expected = load_model(model_file).score(corpus.read_text())
    assert result["texts"] == 1
    assert result["nats"] == pytest.approx(expected.nats, rel=1e-5)


@trains
@pytest.mark.parametrize("mode", ["lines", "windows"])
def test_dynamic_evaluation_is_told_apart(run, model_file, tmp_path, mode):
    corpus = tmp_path / "few.txt"
    corpus.write_text("\n".join(TEXTS[:9]) + "\n")
    arguments = ["evaluate", model_file, "--corpus", corpus, "--mode", mode]
    static = json.loads(run(*arguments, "--json")[1])
    more = ["--dynamic", "--training-corpus", corpus]
    rates = ["--learning-rate", 0.02, "--decay", 0, "--segment-length", 16]
    code, out, err = run(*arguments, *more, *rates, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    learned = result.pop("dynamic")
    assert result == static and learned.keys() == _figures_of(static)
    assert learned["characters"] == static["characters"]
    # The texts repeat.
    assert learned["nats"] < 0.99 * static["nats"]
    _, out, _ = run(*arguments, "--dynamic")
    first, second = (
        [line.split()[0] for line in table.splitlines()]
        for table in out.split("\ndynamic evaluation\n")
    )
    assert first == second and len(first) > 6


def _figures_of(result):
    return result.keys() - {"model", "corpus"}


def test_blocks_are_scored_beside_the_stream(run, model_file, corpus):
    from keras_chargen.scoring import block_score

    arguments = ["evaluate", model_file, "--corpus", corpus]
    arguments += ["--mode", "windows", "--block-length", 32]
    model, text = load_model(model_file), corpus.read_text()
    result = json.loads(run(*arguments, "--json")[1])
    assert result["blocks"].keys() == _figures_of(result) - {"blocks"}
    expected = block_score(model, text, 32)
    assert result["blocks"]["nats"] == pytest.approx(expected.nats, rel=1e-5)
    drawn = ["--blocks", 3, "--seed", 1]
    result = json.loads(run(*arguments, *drawn, "--json")[1])
    expected = block_score(model, text, 32, 3, 1)
    assert result["blocks"]["nats"] == pytest.approx(expected.nats, rel=1e-5)
    assert "\nin blocks of 32\n" in run(*arguments)[1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--decay", 0.1], "--decay goes with --dynamic"),
        (["--training-corpus", "x"], "--training-corpus goes with --dynamic"),
        (["--blocks", 3], "--blocks goes with --block-length"),
        (["--block-length", 9], "--mode windows"),
        (["--block-length", 9999, "--mode", "windows"], "needs a stream"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(
    refused, model_file, corpus, arguments, said
):
    message = refused("evaluate", model_file, "--corpus", corpus, *arguments)
    assert said in message


@pytest.mark.skipif(
    BACKEND not in ("numpy", "openvino"), reason="has gradients"
)
def test_dynamic_evaluation_without_gradients_is_refused(
    refused, model_file, corpus, monkeypatch
):
    arguments = ["evaluate", model_file, "--corpus", corpus, "--dynamic"]
    assert "tensorflow, jax, torch" in refused(*arguments)
    # Keras takes the backend from its configuration file too.
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert "tensorflow, jax or torch" in refused(*arguments)


def test_a_corpus_without_a_known_character_is_scored_by_its_ends(
    run, model_file, tmp_path
):
    (tmp_path / "a.txt").write_text("§§\n")
    _, out, _ = run(
        "evaluate", model_file, "--corpus", tmp_path / "a.txt", "--json"
    )
    result = json.loads(out)
    assert (result["characters"], result["dropped"]) == (1, 2)


def test_info_names_the_active_backend(run):
    code, out, err = run("info")
    assert (code, err) == (0, "")
    assert f"backend           {BACKEND}" in out.splitlines()


def test_info_tells_what_a_file_holds(run, model_file):
    _, out, _ = run("info", model_file, "--json")
    result = json.loads(out)
    model = load_model(model_file)
    assert result["backend"] == BACKEND
    assert result["parameters"] == model.count_params()
    assert result["vocabulary_size"] == model.tokenizer.vocabulary_size()
    assert result["characters"] == "".join(model.tokenizer.characters)


# ---------------------------------------------------------- prepare


@pytest.mark.slow
@pytest.mark.needs_tensorflow
def test_prepare_builds_what_tfds_finds(run, refused, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    source, data = tmp_path / "in", tmp_path / "data"
    source.mkdir()
    for split in ("train", "test"):
        rows = [f'"1","{text}","x"\n' for text in TEXTS]
        (source / f"{split}.csv").write_text("".join(rows))
    arguments = ["prepare", "ag-news", "--from", source, "--data-dir", data]
    code, out, err = run(*arguments)
    assert code == 0 and "60 train" in err
    assert (Path(out.strip()) / "dataset_info.json").is_file()
    assert "--force" in refused(*arguments)
    assert run(*arguments, "--force")[0] == 0


@pytest.mark.needs_tensorflow
def test_prepare_refuses_a_place_without_the_files(refused, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    message = refused("prepare", "ag-news", "--from", tmp_path)
    assert "train.csv" in message


# ---------------------------------------------------------- the frame


def cpu_seconds(source, *arguments):
    """Runs Python: its seconds of CPU time, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    seconds = (
        after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    )
    return seconds, result


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_answers_at_once_without_a_framework(command):
    source = """
import sys
# What tells the package that it runs as the command.
sys.argv[0] = "keras-chargen"
from keras_chargen.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"keras", "tensorflow", "jax", "torch", "numpy"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    # The least that any command of Typer takes on this machine.
    least = """
import typer
app = typer.Typer()
app.command()(lambda: None)
app()
"""
    ours, theirs = [], []
    for _ in range(3):
        seconds, result = cpu_seconds(source, *command, "--help")
        ours.append(seconds)
        theirs.append(cpu_seconds(least, "--help")[0])
        assert "Usage" in result.stdout
        assert result.stderr.strip() == "[]"
    # The longest, of `train`, takes twice as long.
    assert min(ours) < 4 * min(theirs)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="imports itself")
def test_writing_imports_no_tensorflow(model_file):
    source = """
import sys
sys.argv[0] = "keras-chargen"
from keras_chargen.cli import main
try:
    main(["generate", *sys.argv[1:]])
finally:
    print("tensorflow" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", source, str(model_file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_what_no_encoding_holds_is_printed_all_the_same(
    model_file, monkeypatch
):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    cli._write("a\ud800é\n")
    output.flush()
    assert output.buffer.getvalue() == b"a??\n"


def test_a_fault_of_ours_keeps_its_traceback(model_file, monkeypatch):
    def fail(self, *args, **kwargs):
        return int("x")

    # As a framework would raise it, in a frame that is not ours.
    monkeypatch.setattr(CharRNN, "step", fail)
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["generate", str(model_file)])


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_writing_quietly(model_file):
    with process(
        *("generate", model_file, "--temperature", 1, "--stream"),
        *("--max-new-tokens", 2_000_000),
    ) as running:
        running.stdout.read(1)
        running.stdout.close()
        err = running.stderr.read()
    assert running.returncode == 0
    assert "Traceback" not in err


# ---------------------------------------------------------- samplers


@pytest.mark.parametrize(
    "options, sampler",
    [
        ((), "greedy"),
        (("--temperature", 0.7), "random"),
        (("--temperature", 0.5, "--temperature", 1.5), "random"),
        (("--top-k", 3), "top-k"),
        (("--top-p", 0.8, "--temperature", 0.7), "top-p"),
        (("--min-p", 0.1), "min-p"),
        (("--typical-p", 0.5), "typical"),
        (("--n-sigma", 1), "top-n-sigma"),
        (("--xtc-probability", 0.5, "--xtc-threshold", 0.1), "xtc"),
        (("--tau", 2, "--eta", 0.2), "mirostat"),
        (("--num-beams", 3, "--length-penalty", 1), "beam"),
        (("--sampler", "beam", "--ban", "e"), "beam"),
        (
            ("--sampler", "random", "--repetition-penalty", 1.2, "--dry", 0.8),
            "random",
        ),
        (("--presence-penalty", 1, "--frequency-penalty", 0.1), "greedy"),
        (("--no-repeat-ngram", 4, "--allow", "Today "), "greedy"),
    ],
)
def test_generate_takes_every_sampler(run, model_file, options, sampler):
    code, out, _ = run(
        *("generate", model_file, "--prompt", "Today", "--seed", 1),
        *("--max-new-tokens", 12, "--json", *options),
    )
    assert code == 0
    result = json.loads(out)
    assert result["sampler"] == sampler
    assert result["results"][0]["texts"][0].startswith("Today")
    assert len(result["results"][0]["texts"][0]) <= 17


@pytest.mark.parametrize(
    "options, message",
    [
        (("--top-k", 3, "--top-p", 0.5), "several samplers: top-k, top-p"),
        (("--top-p", 1.5), "`top_p` must be"),
        (("--sampler", "greedy", "--top-k", 3), "takes no option"),
        (("--sampler", "beam", "--temperature", 1), "a sampler that draws"),
        (("--sampler", "beam", "--top-k", 3), "takes --num-beams"),
        (("--num-beams", 2, "--num-samples", 3), "at most `num_beams`"),
        (("--num-beams", 2, "--stream"), "cannot stream"),
        (("--pattern", "("), "no regular expression"),
        (("--pattern", "é"), "cannot be written here"),
        (("--dry", -1), "`multiplier` must be"),
        (("--ban", ""), "`characters` must be"),
        (("--allow", "é"), "leaves no character"),
        (("--min-new-tokens", 101), "at most `max_new_tokens`"),
        (("--prompts-file", "missing.txt"), "missing.txt"),
        (("--prompts-file", "x", "--prompt", "y"), "exclude each other"),
        (("--out", "o.xlsx"), "must be one of '.txt'"),
        (("--out", "o.txt", "--json"), "excludes --stream"),
        (("--out", "missing/o.txt"), "no folder to write to"),
        (("--force",), "goes with --out"),
    ],
)
def test_generate_refuses_in_a_line(refused, model_file, options, message):
    assert message in refused("generate", model_file, *options)


def test_generate_writes_what_matches(run, model_file):
    code, out, _ = run(
        *("generate", model_file, "--pattern", "[TO][a-z]{2} (day|cat)"),
        *("--temperature", 1, "--num-samples", 5),
    )
    assert code == 0
    for line in out.splitlines():
        assert re.fullmatch("[TO][a-z]{2} (day|cat)", line)


# ---------------------------------------------------------- whole files


def test_prompts_come_from_a_file_and_go_to_a_file(run, model_file, tmp_path):
    prompts, out = tmp_path / "p.txt", tmp_path / "o.csv"
    prompts.write_text("Today\r\n\nThe cat\n")
    arguments = ("--max-new-tokens", 5, "--temperature", 1, "--seed", 4)
    code, _, err = run(
        *("generate", model_file, "--prompts-file", prompts),
        *("--out", out, *arguments),
    )
    assert code == 0 and "the texts of 3 prompts" in err
    rows = out.read_text().splitlines()
    assert rows[0] == "prompt,seed,sample,text,log_prob"
    assert [row.split(",")[0] for row in rows[1:]] == ["Today", "", "The cat"]
    _, printed, _ = run(
        "generate", model_file, "--prompts-file", prompts, *arguments
    )
    assert [row.split(",")[3] for row in rows[1:]] == printed.splitlines()


def test_prompts_come_from_standard_input(run, model_file, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"Today\nThe\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, _ = run(
        *("generate", model_file, "--prompts-file", "-", "--max-new-tokens", 3)
    )
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2
    assert lines[0].startswith("Today") and lines[1].startswith("The")


def test_an_interrupted_file_goes_on(run, model_file, tmp_path, monkeypatch):
    prompts, out = tmp_path / "p.txt", tmp_path / "o.jsonl"
    prompts.write_text("".join(f"Today {'at'[i % 2]}\n" for i in range(20)))
    monkeypatch.setattr(bulk, "PROMPTS_AT_ONCE", 8)
    arguments = (
        *("generate", model_file, "--prompts-file", prompts, "--out", out),
        *("--max-new-tokens", 5, "--temperature", 1),
    )
    marks = []

    def interrupt(path, progress):
        marks.append(progress)
        mark(path, progress)
        if len(marks) == 2:
            raise KeyboardInterrupt

    mark = bulk.mark
    monkeypatch.setattr(bulk, "mark", interrupt)
    code, _, err = run(*arguments)
    assert code == 130 and "interrupted after" in err
    monkeypatch.setattr(bulk, "mark", mark)
    # Without a seed the one that was begun with goes on.
    code, _, err = run(*arguments)
    assert code == 0 and "goes on after 8 prompts" in err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 20 and len({row["seed"] for row in rows}) == 1
    assert "exists; --force" in run(*arguments)[2]


# ---------------------------------------------------------- score


def test_score_prints_each_text_with_its_bits(run, model_file, corpus):
    code, out, _ = run("score", model_file, "--corpus", corpus, "--limit", 3)
    assert code == 0
    scores = load_model(model_file).score(TEXTS[:3])
    for line, text, one in zip(
        out.splitlines(), TEXTS[:3], scores, strict=True
    ):
        assert line == f"{one.bits_per_character:7.3f}  {text}"


def test_score_prints_one_json_object(run, model_file, corpus):
    arguments = ("score", model_file, "--corpus", corpus, "--limit", 2)
    code, out, _ = run(*arguments, "--json", "--per-character")
    result = json.loads(out)
    assert code == 0 and len(result["results"]) == 2
    first = result["results"][0]
    assert [c for c, _ in first["per_character"]] == [*TEXTS[0], "<eos>"]
    bits = sum(bits for _, bits in first["per_character"])
    assert bits / first["characters"] == pytest.approx(
        first["bits_per_character"], rel=1e-5
    )
    assert "per_character" not in json.loads(run(*arguments, "--json")[1])


def test_score_prints_csv(run, model_file, corpus):
    arguments = ("score", model_file, "--corpus", corpus, "--limit", 2)
    rows = list(csv.DictReader(run(*arguments, "--csv")[1].splitlines()))
    assert [row["text"] for row in rows] == TEXTS[:2]
    assert float(rows[0]["perplexity"]) > 1
    out = run(*arguments, "--csv", "--per-character")[1]
    rows = list(csv.DictReader(out.splitlines()))
    assert [r["character"] for r in rows if r["text"] == "1"] == [
        *TEXTS[1],
        "<eos>",
    ]


def test_score_prints_every_character(run, model_file, corpus):
    arguments = ("score", model_file, "--corpus", corpus, "--limit", 1)
    lines = run(*arguments, "--per-character")[1].splitlines()
    assert [line.split("  ")[-1] for line in lines[:-1]] == [
        repr(c) for c in [*TEXTS[0], "<eos>"]
    ]


def test_score_shows_colours(run, model_file, corpus, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    page = tmp_path / "page.html"
    code, out, err = run(
        *("score", model_file, "--corpus", corpus, "--limit", 2),
        *("--show", "--html", page),
    )
    assert code == 0 and f"wrote {page}" in err
    assert "\x1b[" in out and "T" in out
    text = page.read_text()
    assert text.count("<p><b>") == 2 and text.endswith("</html>\n")
    assert not (tmp_path / "page.html.new").exists()


def test_a_page_that_fails_replaces_nothing(run, model_file, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('"Today"\n' * 2000 + "{\n")
    code, _, err = run(
        "score", model_file, "--corpus", bad, "--html", page, "--json"
    )
    assert code == 2 and "line 2001" in err
    assert page.read_text() == "mine"
    assert not (tmp_path / "page.html.new").exists()


def test_score_refuses_two_outputs(refused, model_file, corpus):
    line = refused("score", model_file, "--corpus", corpus, "--json", "--show")
    assert "exclude each other" in line


@trains
def test_a_template_makes_texts_of_several_fields(train, run, tmp_path):
    table = tmp_path / "t.csv"
    rows = [["kind", "text"], ["a", "Today"], ["b", "The cat"]]
    table.write_text("".join(",".join(row) + "\n" for row in rows) * 1)
    with open(table, "a") as file:
        file.write("a,Today\nb,The cat\n" * 20)
    template = "{kind}: {text}"
    code, _, _, target = train("--template", template, texts=table)
    assert code == 0
    out = run(
        "score", target, "--corpus", table, "--template", template, "--csv"
    )[1]
    rows = list(csv.DictReader(out.splitlines()))
    assert {row["text"] for row in rows} == {"a: Today", "b: The cat"}
