"""Characters a second in training: ours under each backend, and others.

    python -m benchmarks.training --quick

An epoch over the first texts of a corpus, padding not counted. Ours is measured
end to end: texts in memory, the pipeline, `model.fit`, as `compile()` leaves
it. PyTorch and JAX get the batches of its first epoch, ready in memory; the
notebook goes its own way. What is timed is trained on once before, so compiling
counts in `ready_seconds`.
"""

import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.protocols import DATA, SHAKESPEARE, TITLES, read_titles
from benchmarks.race import Row, race
from benchmarks.report import log, make_parser, publish

BACKENDS = ("tensorflow", "jax", "torch")
UNITS = (128, 512)
MODES = ("lines", "windows")
BATCH_SIZES = (8, 64, 256)
SEQUENCE_LENGTH = 128
NOTEBOOK_BATCH_SIZE = 8
# Where each is fastest, LSTM 128 on lines, and beside it.
BEST = {
    "tensorflow": (128, 256),
    "jax": (32, 64),
    "torch": (64, 128),
    "PyTorch": (32, 64, 128),
}
# Characters of one measurement times units: 2 to 5 seconds.
EFFORT = 60_000_000


def main(arguments=None):
    """Measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="LSTM 128 on lines alone, three measurements",
    )
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, help="of ours"
    )
    parser.add_argument("--units", type=int, nargs="+")
    parser.add_argument("--mode", nargs="+", choices=MODES)
    parser.add_argument(
        "--batch",
        nargs="+",
        help='sizes, and "best": each at its own, LSTM 128 on lines alone',
    )
    parser.add_argument("--only", nargs="+", help="labels of rows")
    options = parser.parse_args(arguments)
    repeats = 1 if options.toy else 3 if options.quick else 5
    repeats = options.repeats or repeats

    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, rows in plan(options, Path(folder)):
            log(title)
            found = race(rows, repeats, log, apart=not options.toy)
            for result in found.values():
                result["unit"] = "characters/s"
            tables[title] = found
    if not tables:
        parser.error("no row is of this batch size and label")
    settings = {
        "repeats": repeats,
        "characters_times_units": EFFORT,
        "sequence_length": SEQUENCE_LENGTH,
        "corpora": {mode: corpus_name(mode, options.toy) for mode in MODES},
    }
    return publish("training", settings, tables, options.json)


def plan(options, folder):
    """Yields the title and the rows of each table.

    Args:
        options: What `main` parses.
        folder: `Path` for what the processes of the rows read.
    """
    units, modes, sizes = UNITS, MODES, (*BATCH_SIZES, "best")
    backends, effort = BACKENDS, EFFORT
    if options.quick:
        units, modes = (128,), ("lines",)
    if options.toy:
        units, modes, sizes, effort = (4,), ("lines",), (8,), 1200
        # A toy is one process, of the backend that is active.
        backends = (os.environ.get("KERAS_BACKEND", "tensorflow"),)
    corpora = [
        Corpus(mode, folder, options.toy) for mode in options.mode or modes
    ]
    for width, corpus, size in itertools.product(
        options.units or units, corpora, options.batch or sizes
    ):
        if size == "best" and (width, corpus.mode) != (128, "lines"):
            continue
        title, rows = table(
            corpus, width, size, effort // width, options.backends or backends
        )
        if options.only:
            rows = [row for row in rows if row.label in options.only]
        if rows:
            yield title, rows


def table(corpus, units, size, characters, backends):
    """Returns the title and the rows of what is measured in turn.

    Args:
        corpus: `Corpus`.
        units: Positive integer.
        size: Batch size of all, or `"best"`: each at its own.
        characters: Positive integer, about so many are timed.
        backends: List of str, those of ours.
    """
    title = f"training, LSTM {units}, {corpus.mode}, "
    if size != "best":
        size = int(size)
        rows = [
            corpus.ours(f"ours, {name}", name, units, size, characters)
            for name in backends
        ]
        rows += [
            corpus.peer("PyTorch", "plain_torch", units, size, characters),
            corpus.peer("JAX", "plain_jax", units, size, characters),
        ]
        # Of windows the notebook knows nothing.
        if size == NOTEBOOK_BATCH_SIZE and corpus.mode == "lines":
            rows.append(corpus.notebook("notebook", units, characters))
        return f"{title}batch {size}", rows
    rows = [
        corpus.ours(f"ours, {name}, batch {n}", name, units, n, characters)
        for name in backends
        for n in BEST[name]
    ]
    rows += [
        corpus.peer(f"PyTorch, batch {n}", "plain_torch", units, n, characters)
        for n in BEST["PyTorch"]
    ]
    if corpus.mode == "lines":
        name = f"notebook, batch {NOTEBOOK_BATCH_SIZE}"
        rows.append(corpus.notebook(name, units, characters))
    return f"{title}best batches", rows


class Corpus:
    """Texts, and rows that train on them.

    Args:
        mode: `"lines"` or `"windows"`.
        folder: `Path` for what the processes of the rows read.
        toy: Whether a few texts do.
    """

    def __init__(self, mode, folder, toy):
        from keras_chargen import CharTokenizer

        self.mode = mode
        self.texts = read_texts(mode, toy)
        self.folder = folder
        self.tokenizer = CharTokenizer()
        self.tokenizer.adapt(self.texts)
        self.path = folder / f"{mode}.json"
        self.path.write_text(json.dumps(self.texts))
        self._batches = {}

    def ours(self, label, backend, units, batch_size, characters):
        """Returns the row of `model.fit`."""
        arguments = {
            "texts": str(self.path),
            "count": self.first(characters),
            "mode": self.mode,
            "units": units,
            "batch_size": batch_size,
            "characters": self.batches(batch_size, characters)[0],
        }
        return Row(label, "training:ours", arguments, backend)

    def peer(self, label, module, units, batch_size, characters):
        """Returns the row of a peer that takes ready batches."""
        arguments = {
            "batches": str(self.batches(batch_size, characters)[-1]),
            "vocabulary_size": self.tokenizer.vocabulary_size(),
            "units": units,
        }
        return Row(label, f"peers.{module}:training", arguments)

    def notebook(self, label, units, characters):
        """Returns the row of the notebook: slow, so fewer texts do."""
        arguments = {
            "texts": self.texts[: self.first(characters / 4)],
            "units": units,
            "batch_size": NOTEBOOK_BATCH_SIZE,
        }
        return Row(label, "peers.notebook:training", arguments, "tensorflow")

    def batches(self, batch_size, characters):
        """Returns the batches of an epoch: their characters, a file of them."""
        key = (batch_size, characters)
        if key not in self._batches:
            texts = self.texts[: self.first(characters)]
            dataset = make_dataset(texts, self.tokenizer, self.mode, batch_size)
            found = list(dataset.as_numpy_iterator())
            path = self.folder / f"{self.mode}-{batch_size}-{characters}.npz"
            names = ("ids", "targets", "weights")
            arrays = {
                f"{name}_{i}": part
                for i, batch in enumerate(found)
                for name, part in zip(names, batch, strict=True)
            }
            np.savez(path, **arrays)
            # Padding has no weight.
            total = sum(int(weights.sum()) for *_, weights in found)
            self._batches[key] = total, path
        return self._batches[key]

    def first(self, characters):
        """Returns how many texts hold so many characters."""
        sums = itertools.accumulate(map(len, self.texts))
        return 1 + sum(1 for _ in itertools.takewhile(characters.__gt__, sums))


def ours(texts, count, mode, units, batch_size, characters):
    """Measures an epoch of `model.fit` over the first `count` texts."""
    import keras

    from keras_chargen import CharRNN, CharTokenizer

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.begin

    texts = json.loads(Path(texts).read_text())
    tokenizer = CharTokenizer()
    tokenizer.adapt(texts)
    model = CharRNN(tokenizer, units=units)
    model.compile()

    # Its later epochs are timed, as they are most of a training.
    dataset = make_dataset(texts[:count], tokenizer, mode, batch_size)

    def run():
        clock = Clock()
        model.fit(
            dataset,
            shuffle=False,
            callbacks=[clock],
            verbose=0,
        )
        return characters / clock.seconds

    run()
    return run


def make_dataset(texts, tokenizer, mode, batch_size):
    """Returns the batches of an epoch, the same from each new dataset."""
    from keras_chargen import pipeline

    if mode == "lines":
        return pipeline.lines(texts, tokenizer, batch_size)
    return pipeline.windows(
        texts, tokenizer, batch_size, sequence_length=SEQUENCE_LENGTH
    )


def corpus_name(mode, toy=False):
    """Returns the corpus of a mode: that beside the checkout, or our own."""
    beside = {
        "lines": TITLES["train"],
        "windows": SHAKESPEARE,
    }[mode]
    return "python-docs" if toy or not (DATA / beside).is_file() else beside


def read_texts(mode, toy=False):
    """Returns the texts of the corpus of a mode."""
    from keras_chargen import open_corpus

    name = corpus_name(mode, toy)
    if name == "python-docs":
        return list(open_corpus(name, limit=100 if toy else None))
    if mode == "windows":
        return list(open_corpus(str(DATA / name)))
    return read_titles("train")


if __name__ == "__main__":
    main()
