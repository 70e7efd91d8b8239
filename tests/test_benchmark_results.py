"""What the benchmarks found is judged, drawn and tabled as it is."""

import json
import subprocess

import pytest


def row(*values, unit="characters/s"):
    median = sorted(values)[len(values) // 2]
    spread = (max(values) - min(values)) / median
    return {
        "values": list(values),
        "median": median,
        "spread": spread,
        "unit": unit,
    }


@pytest.fixture
def results():
    """Made-up results in which every target is reached."""
    about = {
        "machine": "2 cores",
        "versions": "keras 3",
        "python": "3.11",
        "date": "2026-11-25",
        "settings": {},
    }
    training = {
        "ours, jax, batch 64": row(200, 240, 220),
        "ours, jax, batch 256": row(100, 110, 120),
        "ours, tensorflow, batch 64": row(150, 150, 150),
        "ours, torch, batch 64": row(140, 140, 140),
        "PyTorch, batch 32": row(90, 95, 100),
        "PyTorch, batch 64": row(100, 150, 110),
        "notebook, batch 8": row(20, 20, 20),
    }
    one = {
        "ours, jax": row(100_000),
        "ours, tensorflow": row(90_000),
        "PyTorch": row(1_000),
        "PyTorch, compiled": row(50_000),
        "notebook": row(8),
    }
    seconds = {
        name: row(3.0, unit="s") for name in ("tensorflow", "jax", "torch")
    }
    tables = {
        "training": {
            "training, LSTM 128, lines, batch 64": {"PyTorch": row(90, 100)},
            "training, LSTM 128, lines, best batches": training,
        },
        "writing": {
            "writing, batch 1": one,
            "writing, batch 256": {"ours, jax": row(300_000)},
            "writing, targets": {
                "ours, jax, batch 1": row(100_000),
                "ours, jax, batch 256": row(300_000),
                "ours, tensorflow, batch 1": row(90_000),
                "PyTorch": row(1_000),
                "notebook": row(8),
            },
        },
        "reading": {
            "file to batches": {
                "ours": row(4_400),
                "ours, later epochs": row(9_000),
            }
        },
        "startup": {
            "seconds to --help": {"ours": row(0.2, unit="s")},
            "seconds to import keras": seconds,
            "seconds to first text": {
                name: row(5.0, unit="s") for name in seconds
            },
        },
    }
    return {
        name: {"benchmark": name, **about, "tables": found}
        for name, found in tables.items()
    }


def judged(results):
    from benchmarks.targets import TARGETS, evaluate

    return {target.what: evaluate(target, results) for target in TARGETS}


AGAINST_PYTORCH = (
    "training, best backend against PyTorch, each at its best batch"
)


def test_every_target_that_is_reached_passes(benchmarks, results):
    assert {verdict for _, verdict in judged(results).values()} == {"pass"}


def test_rows_measured_in_turn_are_compared_run_by_run(benchmarks, results):
    # 200 / 100, 240 / 150, 220 / 110; of the medians it would be the same.
    assert judged(results)[AGAINST_PYTORCH].value == 2
    tables = results["training"]["tables"]
    rows = tables["training, LSTM 128, lines, best batches"]
    rows["PyTorch, batch 64"] = row(110, 100, 180)
    assert judged(results)[AGAINST_PYTORCH].value == pytest.approx(200 / 110)


def test_a_target_that_is_not_reached_misses(benchmarks, results):
    tables = results["training"]["tables"]
    rows = tables["training, LSTM 128, lines, best batches"]
    rows["PyTorch, batch 64"] = row(200, 240, 220)
    results["startup"]["tables"]["seconds to --help"]["ours"] = row(0.3)
    found = judged(results)
    assert found[AGAINST_PYTORCH] == (1, "MISS")
    assert found["keras-chargen --help"] == (0.3, "MISS")
    assert found["training, JAX against PyTorch"].verdict == "pass"
    assert found["training, TensorFlow against PyTorch"].verdict == "MISS"


def test_a_target_names_the_figure_that_is_missing(benchmarks, results):
    del results["reading"]
    rows = results["writing"]["tables"]["writing, targets"]
    rows["notebook"] = {"error": "OSError: gone"}
    found = judged(results)
    assert found["writing, batch 1, JAX against the notebook"] == (
        None,
        "missing: writing: writing, targets: notebook",
    )
    missing = [what for what, (value, _) in found.items() if "reading" in what]
    assert len(missing) == 1
    assert (
        found[missing[0]].verdict == "missing: reading: file to batches: ours"
    )


def test_equal_results_give_an_equal_plot(benchmarks, results, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    for name in ("one.svg", "other.svg"):
        plot.write(results, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "other.svg").read_bytes()
    text = drawn.decode()
    assert "ours, jax" in text and "<dc:date>" not in text
    plot.write({}, tmp_path / "none.svg")


def test_batch_sizes_are_columns_of_one_table(benchmarks, results):
    from benchmarks import tables

    text = tables.render(results)
    assert "| | batch 1, characters/s | batch 256, characters/s |" in text
    assert "| ours, jax | 100,000 ± 0% | 300,000 ± 0% |" in text
    assert "| PyTorch | 1,000 ± 0% |  |" in text
    assert "| PyTorch, batch 64 | 110 ± 23% |" in text


def test_tables_take_the_place_of_the_last_ones(benchmarks, results, tmp_path):
    from benchmarks import tables

    path = tmp_path / "README.md"
    path.write_text(f"above\n{tables.BEGIN}\nold\n{tables.END}\nbelow\n")
    tables.write(results, path)
    once = path.read_text()
    assert once.startswith("above\n") and once.endswith("\nbelow\n")
    assert "old" not in once and "Python 3.11, keras 3" in once
    tables.write(results, path)
    assert path.read_text() == once


def test_the_readme_shows_the_results_that_are_committed(benchmarks):
    from benchmarks import __main__, tables

    text = tables.README.read_text(encoding="utf-8")
    shown = text.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert (
        shown.strip() == tables.render(__main__.load(__main__.RESULTS)).strip()
    ), "run `python -m benchmarks --targets`"


@pytest.fixture
def scripts(benchmarks, results, monkeypatch):
    """The command, with scripts that do not run; yields their commands."""
    from benchmarks import __main__

    commands = []

    def run(command, **_):
        commands.append(command[2:])
        name = command[2].removeprefix("benchmarks.")
        text = "noise\n" + json.dumps(results.get(name))
        code = int(name not in results)
        return subprocess.CompletedProcess(command, code, text)

    monkeypatch.setattr(__main__.subprocess, "run", run)
    return commands


def test_all_scripts_run_and_are_judged(scripts, results, tmp_path, capsys):
    from benchmarks.__main__ import main

    code = main(["--quick", "--repeats", "2", "--results", str(tmp_path)])
    assert scripts[0] == [
        "benchmarks.training",
        *("--json", "--repeats", "2", "--quick"),
    ]
    assert [name for name, *_ in scripts] == [
        f"benchmarks.{name}"
        for name in ("training", "writing", "reading", "startup", "scaling")
    ]
    kept = json.loads((tmp_path / "startup.json").read_text())
    assert kept == results["startup"]
    out = capsys.readouterr().out
    assert "keras-chargen --help" in out and "pass" in out
    # There is no made-up scaling.
    assert code == 1 and "failed: scaling" in out


def test_results_are_judged_without_a_run(scripts, results, tmp_path, capsys):
    from benchmarks.__main__ import main

    (tmp_path / "startup.json").write_text(json.dumps(results["startup"]))
    assert main(["--targets", "--results", str(tmp_path)]) == 0
    assert not scripts
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if "--help" in line] == ["pass"]
    assert any("missing: training" in line for line in lines)


def test_toy_results_are_not_kept(scripts, monkeypatch, tmp_path):
    from benchmarks import __main__

    monkeypatch.setattr(__main__, "RESULTS", tmp_path)
    assert __main__.main(["--toy", "startup"]) == 0
    assert scripts == [["benchmarks.startup", "--json", "--toy"]]
    assert not list(tmp_path.iterdir())
