"""The benchmark scripts run, at toy size."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

TEXTS = ["Today is a day", "The cat sat down", "On Sunday"] * 4


@pytest.fixture
def race(benchmarks, monkeypatch, tmp_path):
    """`race` with a module `probe` that tells who ran when."""
    from benchmarks import race

    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("__init__.py", "race.py"):
        shutil.copy(Path(race.__file__).with_name(name), folder)
    (folder / "probe.py").write_text(
        "import os\n"
        "def prepare(name, value=1, broken=False):\n"
        "    print('noise')\n"
        "    if value is None:\n"
        "        raise ValueError('no value\\nmore')\n"
        "    def run():\n"
        "        with open('turns', 'a') as file:\n"
        "            print(name, os.environ.get('KERAS_BACKEND'), file=file)\n"
        "        if broken:\n"
        "            raise OSError('broke')\n"
        "        return value\n"
        "    return run\n"
    )
    monkeypatch.setattr(race, "ROOT", tmp_path)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    return race


def row(race, name, backend=None, **arguments):
    arguments = {"name": name, **arguments}
    return race.Row(name, "probe:prepare", arguments, backend)


def test_rows_are_measured_in_turn_each_under_its_backend(race, tmp_path):
    rows = [row(race, "a", "jax", value=3), row(race, "b", value=5)]
    results = race.race(rows, 3)
    turns = (tmp_path / "turns").read_text().splitlines()
    assert turns == ["a jax", "b None"] * 3
    assert results["a"]["values"] == [3, 3, 3]
    assert results["b"]["median"] == 5 and results["b"]["spread"] == 0
    assert results["a"]["ready_seconds"] > 0


def test_a_row_that_fails_is_reported_and_the_others_go_on(race, tmp_path):
    rows = [
        row(race, "never ready", value=None),
        row(race, "breaks", broken=True),
        row(race, "holds"),
    ]
    told = []
    results = race.race(rows, 2, told.append)
    assert results["never ready"] == {"error": "ValueError: no value"}
    assert results["breaks"] == {"error": "OSError: broke"}
    assert results["holds"]["values"] == [1, 1]
    assert (tmp_path / "turns").read_text().count("breaks") == 1
    assert told[0] == "never ready: ValueError: no value"


@pytest.mark.slow
@pytest.mark.trains
def test_training_measures_ours_and_every_peer(benchmarks, capsys, monkeypatch):
    from benchmarks import training

    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    training.main(["--toy", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["corpora"]["lines"] == "python-docs"
    rows = found["tables"]["training, LSTM 4, lines, batch 8"]
    assert list(rows) == [
        f"ours, {keras.backend.backend()}",
        "PyTorch",
        "JAX",
        "notebook",
    ]
    for label, row in rows.items():
        # A session has the backend it tests, and not the others.
        if row.get("error", "").startswith("ModuleNotFoundError"):
            assert label in ("PyTorch", "JAX")
            continue
        assert row["median"] > 0 and row["unit"] == "characters/s"


@pytest.mark.needs_tensorflow
def test_training_says_that_no_row_has_a_label(benchmarks, capsys):
    from benchmarks import training

    with pytest.raises(SystemExit):
        training.main(["--toy", "--only", "Pytorch"])
    assert "no row" in capsys.readouterr().err


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize("mode", ["lines", "windows"])
def test_peers_get_the_batches_of_an_epoch_of_ours(
    benchmarks, tmp_path, monkeypatch, mode
):
    from benchmarks import training

    monkeypatch.setattr(training, "SEQUENCE_LENGTH", 16)
    monkeypatch.setattr(training, "read_texts", lambda *_: TEXTS * 2)
    corpus = training.Corpus(mode, tmp_path, toy=True)
    count = corpus.first(60)
    assert sum(map(len, TEXTS[: count - 1])) < 60
    assert sum(map(len, TEXTS[:count])) >= 60
    row = corpus.ours("ours", "jax", 4, 2, 60).arguments
    characters, path = corpus.batches(2, 60)
    arrays = np.load(path)
    dataset = training.make_dataset(TEXTS[:count], corpus.tokenizer, mode, 2)
    total = 0
    for i, batch in enumerate(dataset.as_numpy_iterator()):
        total += batch[2].sum()
        for name, part in zip(
            ("ids", "targets", "weights"), batch, strict=True
        ):
            np.testing.assert_array_equal(arrays[f"{name}_{i}"], part)
    assert i + 1 == len(arrays.files) // 3
    assert (row["count"], row["characters"]) == (count, characters)
    assert characters == total


@pytest.mark.needs_tensorflow
def test_the_best_batches_are_measured_in_one_table(
    benchmarks, tmp_path, monkeypatch
):
    from benchmarks import training

    monkeypatch.setattr(training, "read_texts", lambda *_: TEXTS * 30)
    corpus = training.Corpus("lines", tmp_path, toy=True)
    title, rows = training.table(corpus, 128, "best", 4000, ["jax"])
    assert title == "training, LSTM 128, lines, best batches"
    labels = [row.label for row in rows]
    assert len(set(labels)) == len(labels)
    assert {label.split(", batch ")[0] for label in labels} == {
        "ours, jax",
        "PyTorch",
        "notebook",
    }


@pytest.mark.needs_tensorflow
def test_the_notebook_pads_on_the_left_and_counts_no_padding(benchmarks):
    from benchmarks.peers import notebook

    tokenizer = notebook.LegacyTokenizer(["ab", "a"])
    # As often as each other: by first appearance.
    assert tokenizer.word_index == {"a": 1, "\n": 2, "b": 3}
    ((inputs, targets),) = notebook.dataset(["ab", "a"], tokenizer, 8)
    assert inputs.shape == targets.shape == (2, 2, 4)
    np.testing.assert_array_equal(targets.numpy().argmax(-1), [[3, 2], [1, 2]])
    assert notebook.count([(inputs, targets)]) == 4
    np.testing.assert_array_equal(inputs.numpy().argmax(-1), [[1, 3], [0, 1]])


@pytest.mark.slow
@pytest.mark.under("tensorflow")
def test_the_notebook_writes_character_by_character(benchmarks):
    from benchmarks.peers import notebook

    assert notebook.writing(TEXTS, units=2, length=3)() > 0
    tokenizer = notebook.LegacyTokenizer(TEXTS)
    model = notebook.build(len(tokenizer.word_index) + 1, units=2)
    text = notebook.write(model, tokenizer, "To", 3)
    assert text.startswith("To") and len(text) == 5


@pytest.mark.needs_tensorflow
def test_reading_measures_ours_and_every_peer(benchmarks, capsys):
    from benchmarks import reading

    reading.main(["--toy", "--json"])
    result = json.loads(capsys.readouterr().out)
    rows = result["tables"]["file to batches"]
    assert {"ours", *reading.PEERS} < set(rows)
    for label, row in rows.items():
        if row.get("error", "").startswith("ModuleNotFoundError"):
            assert label.startswith("tokenizers")
        else:
            assert row["median"] > 0 and row["unit"] == "characters/s"


@pytest.mark.needs_tensorflow
@pytest.mark.parametrize("name", ["host", "graph", "legacy"])
def test_reading_measures_text_to_ids_alone(benchmarks, tmp_path, name):
    from benchmarks import reading

    (tmp_path / "t.txt").write_text("ab\ncd\n")
    run = reading.text_to_ids(str(tmp_path / "t.txt"), name, seconds=0.01)
    assert run() > 0


@pytest.mark.slow
@pytest.mark.under("torch")
def test_scaling_fits_an_exponent_to_every_table(benchmarks, capsys):
    from benchmarks import scaling

    scaling.main(["--toy", "--json"])
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert len(tables) == 7
    for rows in tables.values():
        exponent = rows.pop("exponent")
        assert exponent["note"]
        assert len(rows) == 2
        assert all(row["median"] > 0 for row in rows.values())


def test_the_exponent_of_scaling_is_that_of_the_cost(benchmarks):
    from benchmarks import scaling

    found = scaling._exponent([1, 10, 100], [3, 300, 30_000], "why")
    assert found["median"] == pytest.approx(2)


@pytest.mark.under("torch")
def test_samplers_measures_every_chain(benchmarks, capsys, monkeypatch):
    from benchmarks import samplers

    monkeypatch.setattr(samplers, "STEPS", 3)
    monkeypatch.setattr(samplers, "UNITS", 4)
    samplers.main(["speed", "--repeats", "1"])
    out = capsys.readouterr().out
    for name, *_ in samplers.chains():
        assert name in out


@pytest.mark.under("torch")
def test_samplers_tells_how_varied_texts_are(
    benchmarks, capsys, monkeypatch, tmp_path
):
    from benchmarks import samplers
    from keras_chargen import CharRNN, CharTokenizer, save_model

    texts = ["Today is a day", "The cat sat down", "On Sunday"] * 4
    tokenizer = CharTokenizer()
    tokenizer.adapt(texts)
    save_model(CharRNN(tokenizer, units=4), tmp_path / "m.keras")
    (tmp_path / "t.txt").write_text("\n".join(texts))
    samplers.main(
        ["text", str(tmp_path / "m.keras"), "--corpus", str(tmp_path / "t.txt")]
    )
    out = capsys.readouterr().out
    assert "greedy, DRY" in out and "area under the curve" in out


def test_the_figures_of_samplers_are_what_they_say(benchmarks):
    import numpy as np

    from benchmarks import samplers

    assert samplers.distinct(["abab"], 2) == 2 / 3
    assert samplers.repetition(["abcabc", "xyz"], 3) == 1 / 5
    real, garbled = np.array([1.0, 2.0]), np.array([1.5, 3.0])
    assert samplers.area_under_curve(real, garbled) == 0.75
    rng = np.random.default_rng(0)
    assert samplers.swapped("a a", rng) is None
    assert samplers.swapped("a bc d", rng) == "a cb d"


@pytest.mark.slow
@pytest.mark.trains
def test_kernels_times_both_loops_and_names_what_ran(
    benchmarks, capsys, monkeypatch
):
    from benchmarks import kernels
    from keras_chargen import recurrent

    monkeypatch.setattr(kernels, "SHAPE", (4, 8))
    ours = recurrent.loops_are_ours
    kernels.main(["--toy", "--json"])
    assert recurrent.loops_are_ours is ours
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (rows,) = found["tables"].values()
    assert len(rows) == 8
    assert all(row["median"] > 0 for row in rows.values())
    ran = rows["lstm 4, float32"]["note"]
    expected = {"torch": "aten::lstm", "jax": "while"}
    assert expected.get(found["backend"], "While") in ran


@pytest.mark.slow
def test_startup_measures_every_backend_beside_keras_alone(benchmarks, capsys):
    import keras

    from benchmarks import startup

    backend = keras.backend.backend()
    startup.main(["--toy", "--json", "--backends", backend])
    tables = json.loads(capsys.readouterr().out)["tables"]
    for unit, symbol in (("seconds", "s"), ("megabytes", "MB")):
        assert list(tables[f"{unit} to --help"]) == ["ours"]
        for name in ("import keras", "import keras_chargen", "first text"):
            (row,) = tables[f"{unit} to {name}"].values()
            assert row["median"] > 0 and row["unit"] == symbol
    assert tables["seconds to first text, nothing cached"][backend]["values"]


def test_startup_tells_of_a_backend_that_fails(benchmarks, monkeypatch):
    from benchmarks import startup

    def fail(arguments, backend, cache):
        raise RuntimeError("No module named 'abacus'")

    monkeypatch.setattr(startup, "measure", fail)
    tables = startup.race(list(startup.tasks(["jax"], "m.keras")), 1, "off")
    for unit in ("seconds", "megabytes"):
        row = tables[f"{unit} to first text"]["jax"]
        assert row["error"] == "No module named 'abacus'"


def test_startup_tells_how_a_process_failed(benchmarks):
    from benchmarks import startup

    with pytest.raises(RuntimeError, match="ValueError: 7"):
        startup.measure(["-c", "raise ValueError(7)"], "jax", "off")
