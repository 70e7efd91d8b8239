"""Files of texts: whole, resumable, never lost."""

import csv
import json

import keras
import pytest

from keras_chargen import CharRNN, CharTokenizer, bulk

PROMPTS = ["a", "cab had", "", "b\u2028é", "a bee"] * 4
SETTINGS = {"max_new_tokens": 12, "sampler": "random", "stop": None}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(4)
    model = CharRNN(CharTokenizer([*'abcdefgh .\n\\,"']), units=8)
    model.set_weights([3 * weight for weight in model.get_weights()])
    return model


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(bulk, "PROMPTS_AT_ONCE", 6)


def begin(model, out, prompts=PROMPTS, seed=3, force=False, num_samples=2):
    settings = {**SETTINGS, "seed": seed, "num_samples": num_samples}
    progress = bulk.check_out(out, settings, force)
    return bulk.write(
        model, prompts, out, progress, num_samples, seed, **SETTINGS
    )


def expected(model):
    return model.generate(
        PROMPTS, seed=3, num_samples=2, return_scores=True, **SETTINGS
    )


def test_a_csv_holds_every_text_with_its_prompt(model, tmp_path):
    out = tmp_path / "o.csv"
    assert list(begin(model, out)) == [6, 12, 18, 20]
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["prompt", "seed", "sample", "text", "log_prob"]
    assert len(rows) == 41
    texts = [one for pair in expected(model) for one in pair]
    for i, (row, one) in enumerate(zip(rows[1:], texts, strict=True)):
        assert row[:4] == [PROMPTS[i // 2], "3", str(i % 2), one.text]
        assert float(row[4]) == pytest.approx(one.log_probs.sum(), abs=1e-3)


def test_jsonl_holds_an_object_a_text(model, tmp_path):
    out = tmp_path / "o.jsonl"
    list(begin(model, out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    texts = [one.text for pair in expected(model) for one in pair]
    assert [row["text"] for row in rows] == texts
    assert rows[3]["prompt"] == "cab had" and rows[3]["sample"] == 1


def test_txt_holds_a_line_a_text(model, tmp_path):
    out = tmp_path / "o.txt"
    list(begin(model, out))
    lines = out.read_bytes().decode().split("\n")[:-1]
    texts = [one.text for pair in expected(model) for one in pair]
    assert any("\n" in text for text in texts)
    decoded = [
        line.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
        for line in lines
    ]
    assert decoded == texts


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_an_interrupted_file_goes_on_where_it_stopped(
    model, tmp_path, suffix, batches
):
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"o.{suffix}"
    list(begin(model, whole))
    written = begin(model, out)
    for _ in range(batches):
        next(written)
    written.close()
    if batches:
        # A kill in the middle of a write leaves half a record behind.
        with open(out, "ab") as file:
            file.write(b'half,"a rec')
        assert bulk.read_progress(out).prompts == 6 * batches
    rest = list(begin(model, out, iter(PROMPTS)))
    assert rest[-1] == 20 and len(rest) == 4 - batches
    assert out.read_bytes() == whole.read_bytes()
    assert not bulk.progress_path(out).exists()


def test_a_complete_file_is_not_replaced_without_force(model, tmp_path):
    out = tmp_path / "o.txt"
    out.write_text("mine")
    with pytest.raises(ValueError, match="exists; --force"):
        begin(model, out)
    assert out.read_text() == "mine"
    list(begin(model, out, force=True))
    assert out.read_bytes().count(b"\n") == 40


def test_other_settings_do_not_go_on(model, tmp_path):
    out = tmp_path / "o.txt"
    written = begin(model, out)
    next(written)
    written.close()
    before = out.read_bytes()
    with pytest.raises(ValueError, match="was begun with seed=3, not 4"):
        begin(model, out, seed=4)
    with pytest.raises(ValueError, match="only 2"):
        list(begin(model, out, PROMPTS[:2]))
    assert out.read_bytes() == before


def test_a_file_that_shrank_is_refused(model, tmp_path):
    out = tmp_path / "o.txt"
    written = begin(model, out)
    next(written)
    written.close()
    out.write_text("")
    with pytest.raises(ValueError, match="not what was begun"):
        begin(model, out)


def test_a_progress_of_nobody_is_refused(model, tmp_path):
    out = tmp_path / "o.txt"
    bulk.progress_path(out).write_text("[1")
    with pytest.raises(ValueError, match="no progress of ours"):
        begin(model, out)


def test_another_format_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"must be one of '\.txt'"):
        begin(model, tmp_path / "o.xlsx")
