"""The benchmark scripts run, at toy size."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for name in [m for m in sys.modules if m.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.trains
def test_throughput_prints_every_figure_as_json(benchmarks, capsys):
    from benchmarks import throughput

    throughput.main(["--toy", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert {"machine", "versions", "date", "backend"} < set(result)
    figures = result["figures"]
    assert len(figures) == 6
    assert all(
        median > 0 and spread >= 0 for median, spread in figures.values()
    )


def test_throughput_says_how_to_use_it(benchmarks, capsys):
    from benchmarks import throughput

    with pytest.raises(SystemExit) as exit_:
        throughput.main(["--help"])
    assert exit_.value.code == 0
    assert "--toy" in capsys.readouterr().out


def test_samplers_measures_every_chain(benchmarks, capsys, monkeypatch):
    from benchmarks import samplers

    monkeypatch.setattr(samplers, "STEPS", 3)
    monkeypatch.setattr(samplers, "UNITS", 4)
    samplers.main(["speed", "--repeats", "1"])
    out = capsys.readouterr().out
    for name, *_ in samplers.chains():
        assert name in out


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
