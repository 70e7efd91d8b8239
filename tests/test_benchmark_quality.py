"""What quality is compared with does what it says."""

import itertools
import math
import types

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TEXTS = ["to be or not to be", "that is the question", "to be"] * 4
ALPHABET = "".join(sorted(set("".join(TEXTS))))
# The examples of a test import the package that was put in its path.
several_examples = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Id 4 is in no text of training.
KNOWN = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1)
READ = st.lists(st.integers(0, 4), max_size=12)


def encode(texts):
    from benchmarks import protocols

    return [protocols.encode(text, ALPHABET) for text in texts]


@several_examples
@given(known=KNOWN, context=READ, order=st.integers(1, 5))
def test_kneser_ney_sums_to_one_after_any_context(
    benchmarks, known, context, order
):
    from benchmarks.peers.kneser_ney import KneserNey

    model = KneserNey(order, 5).fit(known)
    found = [model.probabilities([[*context, i]])[-1] for i in range(5)]
    assert min(found) > 0
    assert sum(found) == pytest.approx(1)


@several_examples
@given(known=KNOWN, read=READ, order=st.integers(1, 5))
def test_reading_gives_the_counts_of_training(benchmarks, known, read, order):
    from benchmarks.peers.kneser_ney import AdaptiveKneserNey, KneserNey

    static = KneserNey(order, 5).fit(known)
    adaptive = AdaptiveKneserNey(order, 5).fit(known)
    np.testing.assert_allclose(
        [adaptive._predict(*place) for place in adaptive._places([read])],
        static.probabilities([read]),
    )
    adaptive.nats([read])
    both = AdaptiveKneserNey(order, 5).fit([*known, read])
    assert adaptive.counts == both.counts
    assert adaptive.contexts == both.contexts


def test_kneser_ney_is_its_formula(benchmarks):
    from benchmarks.peers.kneser_ney import KneserNey, discounts_of

    model = KneserNey(2, 3).fit([[0, 0, 1], [0]])
    np.testing.assert_allclose(
        model.discounts, [[0, 1 / 3, 1, 1.5], [0, 0.5, 1, 1.5]]
    )
    # The boundary and 0 stand before 0; 0 before 1; what is taken is for all.
    unseen = (1 / 3 + 1) / 3 / 3
    zero = (2 - 1) / 3 + unseen
    one = (1 - 1 / 3) / 3 + unseen
    np.testing.assert_allclose(
        model.probabilities([[0, 1], [1], [0, 2, 2]]),
        [
            # Twice after the boundary, so one is taken.
            (2 - 1) / 2 + 1 / 2 * zero,
            # After 0 came 0 and 1. The text that it ends leads nowhere.
            (1 - 0.5) / 2 + 1 / 2 * one,
            1 / 2 * one,
            (2 - 1) / 2 + 1 / 2 * zero,
            1 / 2 * unseen,
            # After 2 nothing is known.
            unseen,
        ],
    )
    # Chen and Goodman's estimates, of 4, 3, 2 and 1 n-grams counted 1 to 4
    # times.
    counts = np.repeat([1, 2, 3, 4], [4, 3, 2, 1])
    np.testing.assert_allclose(
        discounts_of(counts), [0, 1 - 0.6, 2 - 3 * 0.4 * 2 / 3, 3 - 4 * 0.4 / 2]
    )


def test_kneser_ney_beats_single_characters_and_chance(benchmarks):
    from benchmarks.peers.kneser_ney import KneserNey

    size = len(ALPHABET)
    known, read = encode(TEXTS), encode(["that is not to be"])
    figures = []
    for order in (1, 4):
        total, count = KneserNey(order, size).fit(known).nats(read)
        assert count == len("that is not to be")
        figures.append(total / count)
    assert figures[1] < figures[0] < math.log(size)


def test_the_adaptive_one_learns_what_it_reads(benchmarks):
    from benchmarks.peers.kneser_ney import AdaptiveKneserNey, KneserNey

    known, read = encode(TEXTS), encode(["quite in haste"] * 5)
    static = KneserNey(4, len(ALPHABET)).fit(known).nats(read)
    adaptive = AdaptiveKneserNey(4, len(ALPHABET)).fit(known).nats(read)
    assert adaptive[1] == static[1]
    assert adaptive[0] < 0.8 * static[0]


@pytest.mark.slow
@pytest.mark.under("numpy")
def test_kneser_ney_has_the_known_figures_on_shakespeare(
    benchmarks, shared_data
):
    from benchmarks import protocols
    from benchmarks.peers.kneser_ney import AdaptiveKneserNey

    text = protocols.read_shakespeare()
    alphabet = "".join(sorted(set(text)))
    known, read = (
        protocols.encode(part, alphabet)
        for part in protocols.split_shakespeare(text)
    )
    assert len(known) + len(read) == len(text) == 1_115_394
    model = AdaptiveKneserNey(7, len(alphabet)).fit([known])
    total = -np.log(super(type(model), model).probabilities([read])).sum()
    assert total / len(read) == pytest.approx(1.5165, abs=1e-3)
    total, count = model.nats([read])
    assert count == len(read) == 111_540
    assert total / count == pytest.approx(1.407, abs=1e-3)


@pytest.mark.slow
@pytest.mark.under("numpy")
def test_kneser_ney_has_the_known_figure_on_titles(benchmarks, shared_data):
    from benchmarks import protocols
    from benchmarks.peers.kneser_ney import KneserNey

    known = protocols.read_titles("train")
    alphabet = "".join(sorted(set("".join(known)) | {"\n"}))
    known, read = (
        [protocols.encode(f"{title}\n", alphabet) for title in titles]
        for titles in (known, protocols.read_titles("test"))
    )
    assert (len(known), len(read)) == (11_352, 3_825)
    # An id more for characters that training has not.
    model = KneserNey(8, len(alphabet) + 1).fit(known)
    assert protocols.bits(*model.nats(read)) == pytest.approx(2.328, abs=1e-3)


def test_shakespeare_is_split_at_nine_tenths(benchmarks):
    from benchmarks import protocols

    assert protocols.split_shakespeare("abcdefghijk") == ("abcdefghi", "jk")


def test_a_missing_file_is_told_in_one_line(benchmarks, monkeypatch, tmp_path):
    from benchmarks import protocols

    monkeypatch.setattr(protocols, "DATA", tmp_path)
    for read in (
        protocols.read_shakespeare,
        lambda: protocols.read_titles("test"),
    ):
        with pytest.raises(SystemExit, match=r"^.+ is missing.*$"):
            read()


def test_encode_has_one_id_for_what_is_not_known(benchmarks):
    from benchmarks import protocols

    found = protocols.encode("bax\U0001f600", "ab")
    assert found.tolist() == [1, 0, 2, 2] and found.dtype == "int32"


def test_blocks_are_of_one_text_and_the_same_from_a_seed(benchmarks):
    from benchmarks import protocols

    inputs, targets = protocols.blocks(np.arange(20), 7, 500)
    assert inputs.shape == targets.shape == (500, 7)
    np.testing.assert_array_equal(inputs + 1, targets)
    # Every place of a whole block is drawn.
    assert set(inputs[:, 0]) == set(range(13))
    again, _ = protocols.blocks(np.arange(20), 7, 500)
    np.testing.assert_array_equal(inputs, again)
    other, _ = protocols.blocks(np.arange(20), 7, 500, seed=1)
    assert (inputs != other).any()


def test_the_blocks_are_those_that_the_package_scores(benchmarks):
    from benchmarks import protocols
    from keras_chargen import CharRNN, CharTokenizer, block_score

    tokenizer = CharTokenizer([*"abc"])
    model = CharRNN(tokenizer, units=2)
    text = "abcacbbca" * 5
    rows, targets = protocols.blocks(tokenizer.tokenize(text), 8, 4, seed=2)
    logits = keras.ops.convert_to_numpy(model(rows)).astype("float64")
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    nats = (np.log(np.exp(logits).sum(-1)) - chosen).sum()
    found = block_score(model, text, 8, blocks=4, seed=2)
    assert found.characters == targets.size
    assert found.nats == pytest.approx(nats, rel=1e-4)


def test_the_transformer_is_that_of_nanogpt(benchmarks):
    torch = pytest.importorskip("torch")
    from benchmarks.peers import nanogpt

    torch.manual_seed(0)
    model = nanogpt.build(65)
    weights = dict(model.named_parameters())
    # It tells 0.80M, and leaves the places out.
    assert sum(w.numel() for w in weights.values()) == 795_904 + 64 * 128
    assert weights["blocks.0.join.weight"].std().item() == pytest.approx(
        0.02 / math.sqrt(8), rel=0.05
    )
    ids = torch.randint(65, (2, 9))
    logits = model(ids)
    assert logits.shape == (2, 9, 65)
    # What comes later changes nothing.
    torch.testing.assert_close(model(ids[:, :5]), logits[:, :5])
    rates = [nanogpt.rate_of(step, 2000) for step in (0, 99, 100, 1050, 1999)]
    np.testing.assert_allclose(
        rates, [1e-3 / 101, 1e-1 / 101, 1e-3, 5.5e-4, 1e-4], rtol=1e-4
    )


def test_the_transformer_learns(benchmarks):
    pytest.importorskip("torch")
    from benchmarks.peers import nanogpt

    ids = np.concatenate(encode(TEXTS))
    (t0, first), (t1, _), (t2, last) = nanogpt.train(
        ids, ids, len(ALPHABET), steps=20, every=15
    )
    assert 0 < t0 < t1 < t2
    assert first == pytest.approx(math.log(len(ALPHABET)), abs=0.2)
    assert last < first - 0.2


@pytest.mark.slow
@pytest.mark.under("tensorflow")
def test_the_notebook_trains_for_seconds_and_counts_what_it_predicts(
    benchmarks, monkeypatch
):
    from benchmarks.peers import notebook

    # A clock that goes on by a second each time it is read.
    clock = types.SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(notebook, "time", clock)
    model, tokenizer = notebook.train_for(TEXTS, 8, 3)
    # Two batches are an epoch.
    assert int(model.optimizer.iterations) == 3
    # After so few it knows next to nothing.
    total, count = notebook.nats(model, tokenizer, TEXTS)
    size = len(tokenizer.word_index) + 1
    assert total / count == pytest.approx(math.log(size), abs=0.3)
    # All but the first character, and the line end.
    assert count == len("".join(TEXTS))
    # The character that it does not know is dropped.
    assert notebook.nats(model, tokenizer, ["bé"])[1] == 1


# ---------------------------------------------------------- all of it


@pytest.mark.slow
@pytest.mark.under("torch")
def test_quality_runs_all_its_work_at_small_scale(benchmarks, capsys):
    from benchmarks import quality

    before = quality.RESULTS.read_text() if quality.RESULTS.exists() else None
    assert quality.main(["--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = {
        cells[1]: cells[2].split()
        for cells in (
            [cell.strip() for cell in line.split("|")] for line in lines
        )
        if len(cells) > 6 and cells[2][:1].isdigit()
    }
    expected = {
        "shakespeare: Kneser-Ney, order 7": "nats",
        "titles: Kneser-Ney, order 8": "bits",
        "nanoGPT's CPU setting, blocks of 64": "nats",
        "fast in a tenth of that time, blocks of 64": "nats",
        "shakespeare, 10 minutes: in blocks of 256": "nats",
        "titles, the notebook, 10 minutes": "bits",
        "titles, headlines, 30 minutes": "bits",
        "best, 45 minutes, interrupted twice: dynamic evaluation": "nats",
    }
    for name, unit in expected.items():
        value, found = figures[name]
        # Below what guessing costs.
        assert found == unit and 0 < float(value) < 7
    # What runs small leaves nothing behind.
    after = quality.RESULTS.read_text() if quality.RESULTS.exists() else None
    assert after == before


def test_a_figure_holds_within_its_bound_alone(benchmarks):
    from benchmarks.quality import figure

    assert figure(1.43, "nats", 1.43)["holds"]
    assert not figure(1.44, "nats", 1.43)["holds"]
    assert figure(0.3, "bits", 0.25, at_least=True)["holds"]
    assert not figure(0.2, "bits", 0.25, at_least=True)["holds"]
    assert "holds" not in figure(2.3, "bits")


def test_the_table_tells_what_missed_and_where_it_ran(benchmarks):
    from benchmarks import tables
    from benchmarks.quality import figure

    place = {
        name: name for name in ("machine", "backend", "python", "versions")
    }
    rows = {
        "a": figure(1.5, "nats", 1.4, seconds=600.0),
        "b": figure(0.3, "bits", 0.25, at_least=True),
        "c": {"curve": [[1, 2.0]], "stops": []},
    }
    text = tables.quality({"x": {**place, "date": "today", "rows": rows}})
    where = "backend | machine | today |"
    assert f"| a | 1.5000 nats | <= 1.4 nats | MISS | 600 s | {where}" in text
    assert f"| b | 0.3000 bits | >= 0.25 bits | pass |  | {where}" in text
    assert "| c |" not in text
    assert text.endswith("\nPython python, versions.\n")


def test_the_curve_is_drawn_with_its_interruptions(benchmarks, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    path = tmp_path / "curve.svg"
    rows = {"c": {"curve": [[60, 2.0], [120, 1.5]], "stops": [[90, "SIGTERM"]]}}
    plot.write_curve({"best": {"rows": rows}}, path)
    assert "SIGTERM" in path.read_text()
    plot.write_curve({}, tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
