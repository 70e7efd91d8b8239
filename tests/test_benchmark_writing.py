"""The benchmark of writing runs, and its peers write what ours writes."""

import json

import keras
import pytest

BACKEND = keras.backend.backend()


@pytest.mark.slow
@pytest.mark.trains
def test_writing_measures_ours_and_every_peer(benchmarks, capsys):
    from benchmarks import writing

    writing.main(["--toy", "--json", "--backends", BACKEND, "--batch", "1"])
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert list(tables) == [
        "writing, batch 1",
        "seconds to the first character, batch 1",
        "writing, targets",
    ]
    ours = {f"ours, {BACKEND}", f"ours, {BACKEND}, random"}
    peers = {"PyTorch", "PyTorch, random", "KerasHub", "notebook"}
    assert set(tables["writing, batch 1"]) == ours | peers
    assert set(tables["seconds to the first character, batch 1"]) == ours
    for table in tables.values():
        for label, row in table.items():
            # A session has the backend it tests, and not the others.
            if row.get("error", "").startswith("ModuleNotFoundError"):
                assert label.startswith(("PyTorch", "KerasHub"))
                continue
            assert row["median"] > 0


@pytest.mark.trains
def test_the_loop_of_pytorch_writes_what_ours_writes(benchmarks, tmp_path):
    pytest.importorskip("torch")
    from benchmarks import writing
    from benchmarks.peers import torch_steps

    path = str(tmp_path / "weights.npz")
    writing.save_weights(path, units=6)
    model = writing.model_of(path)
    theirs = torch_steps.writer(path, batch=2)(40)
    text = model.generate("", 40)
    for row in theirs:
        assert model.tokenizer.detokenize(row) == text
    assert len(set(text)) > 1
