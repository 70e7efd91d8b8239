"""How good models get in a given time, beside what any of this must beat.

    KERAS_BACKEND=torch python -m benchmarks.quality
    KERAS_BACKEND=jax python -m benchmarks.quality fast
    KERAS_BACKEND=torch python -m benchmarks.quality --quick

Each piece of work trains by the command line, with a preset and its time, on
all of the training text, and the weights at the end of the time are those
judged: none are chosen by the text that judges them. The time is that of
training, compilation included; start-up and reading are not in it. Whole texts
are read once, character by character, with the state carried on; blocks are
those of nanoGPT (`protocols.blocks`): 256 characters (64 beside nanoGPT's own
CPU setting) at 240 random places, from a state of zeros. All figures of
tinyshakespeare are of its last 10 %, in nats a character; those of AG News
titles of `test.csv`, `<eos>` counted, in bits a character.

What was found is kept in `benchmarks/results/quality.json`, with `--quick`
nowhere: there all is small and of `python-docs`, to see that it runs.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import plot, protocols, tables
from benchmarks.environment import describe
from benchmarks.race import ROOT
from benchmarks.report import log

RESULTS = Path(__file__).parent / "results" / "quality.json"
FIELD = ("--field", "title")
BLOCKS = ("--block-length", "256", "--blocks", "240")
# In a third of its time `headlines` sees too little to drop so much.
BRIEF = ("--dropout", "0.3", "--weight-dropout", "0.2")
KILLS = (signal.SIGTERM, signal.SIGKILL)


class Bench:
    """A folder with the texts, and the commands of the package.

    Args:
        folder: `Path`.
        quick: Whether all is small.
    """

    def __init__(self, folder, quick):
        self.folder = folder
        self.quick = quick
        # The size of a model is most of the time that a small run takes.
        self.small = ("--units", "16", "--batch-size", "8") if quick else ()

    def shakespeare(self):
        """Returns the paths of the two parts of tinyshakespeare."""
        text = (
            "\n".join(self._small_texts()[:700])
            if self.quick
            else protocols.read_shakespeare()
        )
        paths = self.folder / "train.txt", self.folder / "test.txt"
        for path, part in zip(
            paths, protocols.split_shakespeare(text), strict=True
        ):
            path.write_text(part, encoding="utf-8", newline="")
        return paths

    def titles(self, part):
        """Returns AG News titles, as a list and as a path of a file."""
        if self.quick:
            cut = slice(0, 200) if part == "train" else slice(200, 300)
            texts = self._small_texts()[cut]
        else:
            texts = protocols.read_titles(part)
        path = self.folder / f"{part}.jsonl"
        lines = (json.dumps({"title": text}) + "\n" for text in texts)
        path.write_text("".join(lines), encoding="utf-8")
        return texts, path

    @staticmethod
    def _small_texts():
        from keras_chargen.corpora import open_corpus

        return list(open_corpus("python-docs", limit=1000))

    def minutes(self, minutes):
        """Returns a time budget as the command has it."""
        return "3s" if self.quick else f"{60 * minutes:g}s"

    def train(self, preset, corpus, minutes, *options):
        """Trains: the model file, seconds of training, and the command."""
        out = self.folder / f"{preset}.keras"
        budget = self.minutes(minutes)
        words = [
            *("train", "--preset", preset, "--corpus", str(corpus)),
            *("--time-budget", budget, "--held-out", "0", "--seed", "0"),
            *("--out", str(out), "--force", *self.small, *options),
        ]
        log(f"training {preset}, {budget}")
        told = self.command(*words)
        seconds = float(re.search(r"after (\d+) s", told.stderr)[1])
        return out, seconds

    def command(self, *words):
        """Runs `keras-chargen`; what fails ends this script."""
        done = subprocess.run(
            [sys.executable, "-m", "keras_chargen", *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        if done.returncode:
            sys.exit(f"keras-chargen {words[0]} failed: {done.stderr[-2000:]}")
        return done

    def evaluate(self, model, corpus, *options):
        """Returns what `evaluate --json` finds."""
        words = ("--corpus", str(corpus), *options, "--json")
        return json.loads(self.command("evaluate", str(model), *words).stdout)


def floors(bench):
    """Kneser-Ney n-grams, on both texts."""
    from benchmarks.peers.kneser_ney import AdaptiveKneserNey, KneserNey

    train, test = (
        path.read_text(encoding="utf-8") for path in bench.shakespeare()
    )
    alphabet = "".join(sorted(set(train)))
    train, test = (protocols.encode(x, alphabet) for x in (train, test))
    found = {}
    for name, kind in (
        ("Kneser-Ney, order 7", KneserNey),
        ("the same, learning as it reads", AdaptiveKneserNey),
    ):
        nats, count = kind(7, len(alphabet) + 1).fit([train]).nats([test])
        found[f"shakespeare: {name}"] = figure(nats / count, "nats")
    train, test = (bench.titles(part)[0] for part in ("train", "test"))
    alphabet = "".join(sorted(set("".join(train)))) + "\n"
    train, test = (
        [protocols.encode(text + "\n", alphabet) for text in texts]
        for texts in (train, test)
    )
    nats, count = KneserNey(8, len(alphabet) + 1).fit(train).nats(test)
    found["titles: Kneser-Ney, order 8"] = figure(
        protocols.bits(nats, count), "bits"
    )
    return found


def fast(bench):
    """What `fast` reaches in a tenth of the time of nanoGPT's CPU setting."""
    from benchmarks.peers import nanogpt

    paths = bench.shakespeare()
    train, test = (path.read_text(encoding="utf-8") for path in paths)
    alphabet = "".join(sorted(set(train)))
    train, test = (protocols.encode(x, alphabet) for x in (train, test))
    log("training nanoGPT's CPU setting")
    steps = 3 if bench.quick else 2000
    for seconds, nats in nanogpt.train(train, test, len(alphabet) + 1, steps):
        log(f"  {seconds:.0f} s: {nats:.4f} nats")
    model, ours = bench.train("fast", paths[0], SHARE * seconds / 60)
    blocks = ("--mode", "windows", "--block-length", "64", "--blocks", "240")
    found = bench.evaluate(model, paths[1], *blocks)["blocks"]
    return {
        "nanoGPT's CPU setting, blocks of 64": figure(
            nats, "nats", seconds=seconds
        ),
        "fast in a tenth of that time, blocks of 64": figure(
            found["nats_per_character"], "nats", nats, seconds=ours
        ),
    }


def shakespeare(bench):
    """The preset `shakespeare`: 10 minutes."""
    train, test = bench.shakespeare()
    model, seconds = bench.train("shakespeare", train, 10)
    found = bench.evaluate(model, test, "--mode", "windows", *BLOCKS)
    return judged("shakespeare, 10 minutes", found, seconds, 1.55)


def best(bench):
    """The preset `best`: 45 minutes, stopped once, killed once, resumed."""
    # A second saved is soon over: what reads it must be there.
    import keras_chargen.checkpoints  # noqa: F401

    train, test = bench.shakespeare()
    run = bench.folder / "run"
    minutes = 0.1 if bench.quick else 45
    with _Collector(run, 60 * minutes / 15) as collector:
        model, stops = _interrupted(bench, train, run, 60 * minutes)
    found = bench.evaluate(
        *(model, test, "--mode", "windows", *BLOCKS, "--dynamic"),
        *("--training-corpus", str(train)),
    )
    results = judged(
        "best, 45 minutes, interrupted twice",
        found,
        60 * minutes,
        *(1.43, 1.40, 1.34),
    )
    results["best: its curve"] = {
        "curve": curve(collector.paths, test),
        "stops": stops,
    }
    return results


def titles(bench):
    """The preset `headlines` and the notebook, 10 minutes each."""
    _, train = bench.titles("train")
    _, test = bench.titles("test")
    model, seconds = bench.train("headlines", train, 10, *FIELD, *BRIEF)
    ours = bench.evaluate(model, test, *FIELD)
    ours = figure(ours["bits_per_character"], "bits", seconds=seconds)
    log("training the notebook's model")
    told = [sys.executable, "-m", "benchmarks.quality", "--notebook"]
    told += [str(train), str(test), "2" if bench.quick else "600"]
    # It is of Keras 3 under TensorFlow.
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        told, stdout=subprocess.PIPE, check=True, cwd=ROOT, env=environment
    )
    nats, count = json.loads(done.stdout.splitlines()[-1])
    theirs = protocols.bits(nats, count)
    return {
        "titles, the notebook, 10 minutes": figure(theirs, "bits"),
        "titles, headlines, 10 minutes": ours,
        "titles: the notebook less ours": figure(
            theirs - ours["value"], "bits", 0.25, at_least=True
        ),
    }


def headlines(bench):
    """The preset `headlines`: 30 minutes."""
    _, train = bench.titles("train")
    _, test = bench.titles("test")
    model, seconds = bench.train("headlines", train, 30, *FIELD)
    found = bench.evaluate(model, test, *FIELD)
    bits = found["bits_per_character"]
    return {
        "titles, headlines, 30 minutes": figure(
            bits, "bits", 2.22, seconds=seconds
        )
    }


WORKS = {
    function.__name__: function
    for function in (floors, fast, shakespeare, titles, headlines, best)
}
SHARE = 0.095  # of nanoGPT's time; seconds of training are told as a whole


def figure(value, unit, bound=None, at_least=False, **others):
    """Returns a row of the results."""
    row = {"value": value, "unit": unit, **others}
    if bound is not None:
        row["bound"] = bound
        row["holds"] = value >= bound if at_least else value <= bound
        row["relation"] = ">=" if at_least else "<="
    return row


def judged(name, found, seconds, blocks, whole=None, dynamic=None):
    """Returns the rows of a model of tinyshakespeare, with what they must be.

    Args:
        name: Of the model.
        found: What `evaluate --json` gave.
        seconds: Of training.
        blocks: Bound of nats in blocks.
        whole: Bound of nats of the whole text, or None.
        dynamic: Bound of nats in dynamic evaluation, or None.
    """

    def row(scores, bound):
        nats = scores["nats_per_character"]
        return figure(nats, "nats", bound, seconds=seconds)

    rows = {
        f"{name}: in blocks of 256": row(found["blocks"], blocks),
        f"{name}: whole text": row(found, whole),
    }
    if "dynamic" in found:
        rows[f"{name}: dynamic evaluation"] = row(found["dynamic"], dynamic)
    return rows


class _Collector:
    """Keeps copies of the checkpoints of a run, about so many seconds apart."""

    def __init__(self, run, seconds):
        self.run, self.seconds = run, seconds
        self.kept = run.with_name("kept")
        self.paths: list = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._collect)

    def __enter__(self):
        self.kept.mkdir()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _collect(self):
        last = time.monotonic()
        while not self._over.wait(1):
            if time.monotonic() - last >= self.seconds:
                last = time.monotonic()
                self._keep()
        self._keep()

    def _keep(self):
        for path in sorted(self.run.glob("checkpoint-*.ckpt"))[-1:]:
            kept = self.kept / path.name
            if kept not in self.paths:
                shutil.copy(path, kept)
                self.paths.append(kept)


def _interrupted(bench, corpus, run, seconds):
    """Trains `best` in three parts.

    Returns:
        The model file, and seconds of training and name of each interruption.
    """
    stops = []
    out = bench.folder / "best.keras"
    often = "1s" if bench.quick else "60s"
    begin = [
        *("--preset", "best", "--corpus", str(corpus), "--held-out", "0"),
        *("--time-budget", f"{seconds:g}s", "--seed", "0"),
        *("--out", str(out), "--checkpoint-dir", str(run)),
        *("--checkpoint-every", often, *bench.small),
    ]
    for number, kill in enumerate((*KILLS, None)):
        words = begin if number == 0 else ["--resume", str(run)]
        log(f"training best, part {number + 1}")
        process = subprocess.Popen(
            [sys.executable, "-m", "keras_chargen", "train", *words],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        if kill is not None:
            at = _wait_for_checkpoint(process, run, seconds * (number + 1) / 3)
            stops.append([at, kill.name])
            process.send_signal(kill)
        _, told = process.communicate()
        expected = {signal.SIGTERM: 143, signal.SIGKILL: -9, None: 0}[kill]
        if process.returncode != expected:
            sys.exit(f"keras-chargen train ended otherwise: {told[-2000:]}")
    return out, stops


def _wait_for_checkpoint(process, run, seconds):
    """Waits for a checkpoint of so many seconds, and returns of how many."""
    seen, at = None, 0.0
    while process.poll() is None:
        time.sleep(0.2)
        newest = max(run.glob("checkpoint-*.ckpt"), default=None)
        if newest != seen:
            seen = newest
            at = elapsed(newest)
            if at >= seconds:
                break
    return at


def elapsed(path):
    """Returns the seconds of training that a checkpoint is of."""
    from keras_chargen import checkpoints

    states = checkpoints.read(path).header["callbacks"]
    return dict(states)["TimeBudget"]["elapsed"]


def curve(paths, corpus):
    """Returns seconds of training and nats of the whole text, by checkpoint."""
    from keras_chargen import CharRNN, checkpoints, scoring

    text = corpus.read_text(encoding="utf-8")
    points = []
    for path in paths:
        saved = checkpoints.read(path)
        # Judged in float32, as the file is that training ends with.
        config = {**saved.header["model"], "dtype": "float32"}
        model = CharRNN.from_config(config)
        for i, variable in enumerate(model.trainable_variables):
            variable.assign(saved.arrays[f"trained/{i}"])
        score = scoring.stream_score(model, [text])
        points.append([elapsed(path), score.nats / score.characters])
        log(f"  {points[-1][0]:.0f} s: {points[-1][1]:.4f} nats")
    return points


def main(arguments=None):
    """Runs; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=[])
    parser.add_argument(
        "--quick", action="store_true", help="a minute, to see that all run"
    )
    parser.add_argument("--notebook", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.notebook:
        return _notebook(*options.notebook)
    for name in options.names:
        if name not in WORKS:
            parser.error(f"NAME must be of {', '.join(WORKS)}: {name}")
    results = {}
    if RESULTS.exists() and not options.quick:
        results = json.loads(RESULTS.read_text())
    for name in options.names or WORKS:
        with tempfile.TemporaryDirectory() as folder:
            found = WORKS[name](Bench(Path(folder), options.quick))
        results[name] = {**describe(), "rows": found}
        if not options.quick:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(tables.quality(results))
    if not options.quick:
        tables.write_quality(results)
        plot.write_curve(results, RESULTS.with_suffix(".svg"))
    return 0


def _notebook(train, test, seconds):
    """Trains and judges the notebook's model: prints nats and characters."""
    from benchmarks.peers import notebook

    train, test = (
        [
            json.loads(x)["title"]
            for x in Path(path).read_text().split("\n")
            if x
        ]
        for path in (train, test)
    )
    trained = notebook.train_for(train, 128, float(seconds))
    print(json.dumps(notebook.nats(*trained, test)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
