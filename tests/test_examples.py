"""The examples run, at toy size."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = "the cat sat on the mat, and that was that. " * 250


@pytest.mark.needs_tensorflow
@pytest.mark.trains
def test_the_tuner_keeps_its_trials_and_goes_on(tmp_path, capsys):
    pytest.importorskip("optuna")
    spec = importlib.util.spec_from_file_location("tune", EXAMPLES / "tune.py")
    tune = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tune)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    storage = f"sqlite:///{tmp_path / 'tune.db'}"
    for trials in (1, 2):
        study = tune.main(
            [
                *(str(text), "--trials", "1", "--seconds", "1"),
                *("--units", "8", "--storage", storage),
            ]
        )
        assert len(study.trials) == trials
    assert study.best_value == min(trial.value for trial in study.trials)
    assert 0 < study.best_value < 6
    assert f"{study.best_value:.4f} bits" in capsys.readouterr().out
