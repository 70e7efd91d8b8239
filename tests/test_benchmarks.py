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
