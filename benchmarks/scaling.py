"""What length, batch, width, depth and corpus do to the cost of a character.

    KERAS_BACKEND=jax python -m benchmarks.scaling

Each table ends with the exponent of the straight line that fits cost against
size best, both as logarithms: 1 where twice the size costs twice as much, 0
where it costs no more. What is measured is warm: compiled, and run once.
"""

import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.race import Row, race
from benchmarks.reading import write_text
from benchmarks.report import log, make_parser, publish

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SECONDS = 12  # what would take longer than this once is left out
BATCH_SIZE = 64
LENGTH = 64


class Sizes(NamedTuple):
    """What is measured; `units` and `characters` also where they are fixed."""

    lengths: tuple = (100, 1_000, 10_000, 100_000)
    batches: tuple = (1, 4, 16, 64, 256, 1_024)
    units: tuple = (64, 128, 256, 512, 1_024)
    layers: tuple = (1, 2, 3, 4)
    rows: tuple = (8, 32, 128, 512)
    sequences: tuple = (32, 128, 512, 2_048)
    megabytes: tuple = (20, 200, 2_000)
    default_units: int = 128
    steps: int = 4


TOY = Sizes(
    lengths=(5, 10),
    batches=(1, 2),
    units=(4, 8),
    layers=(1, 2),
    rows=(2, 4),
    sequences=(4, 8),
    megabytes=(0.1, 2),
    default_units=4,
    steps=1,
)


def main(arguments=None):
    """Measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--only",
        choices=("writing", "training", "corpus"),
        help="a part of the tables",
    )
    parser.add_argument(
        "--megabytes", type=float, nargs="+", help="sizes of the corpus"
    )
    options = parser.parse_args(arguments)
    sizes = TOY if options.toy else Sizes()
    if options.megabytes:
        sizes = sizes._replace(megabytes=tuple(options.megabytes))
    repeats = options.repeats or (1 if options.toy else 3)
    tables = {}
    if options.only in (None, "writing"):
        tables |= writing(sizes, repeats)
    if options.only in (None, "training"):
        tables |= training(sizes, repeats)
    if options.only in (None, "corpus"):
        tables |= corpus(sizes)
    settings = {"repeats": repeats, **sizes._asdict()}
    return publish("scaling", settings, tables, options.json)


def writing(sizes, repeats):
    """Cost of writing against length and batch."""
    model = _model(sizes.default_units)
    # No text ends by itself, so all are as long as they may be.
    kernel, bias = model.get_layer("logits").get_weights()
    bias[model.tokenizer.eos_id] = -1e9
    model.get_layer("logits").set_weights([kernel, bias])

    def write(batch, length):
        texts = model.generate([""] * batch, length, sampler="random", seed=0)
        assert all(len(text) == length for text in texts)

    return {
        "writing, by length, batch 1": _table(
            "characters",
            lambda length: (lambda: write(1, length), length),
            sizes.lengths,
            repeats,
            "The state is carried, so a character costs the same anywhere: a "
            "straight line, on top of what a call costs, which weighs on the "
            "short texts and keeps the exponent below 1",
        ),
        "writing, by batch, 100 characters": _table(
            "rows",
            lambda batch: (
                lambda: write(batch, sizes.lengths[0]),
                batch * sizes.lengths[0],
            ),
            sizes.batches,
            repeats,
            "No straight line: rows share the weights that are read for them "
            "and the cost of a step, until arithmetic is all that is left",
        ),
    }


def training(sizes, repeats):
    """Cost of training against width, depth, batch and length."""

    def fit(
        units=sizes.default_units, layers=1, rows=BATCH_SIZE, length=LENGTH
    ):
        model = _model(units, layers)
        model.compile()
        # Fewer steps where each takes long.
        steps = max(1, min(sizes.steps, 1_024 // units))
        rng = np.random.default_rng(0)
        ids = rng.integers(1, 90, (steps * rows, length + 1), "int32")

        def run():
            model.fit(
                ids[:, :-1],
                ids[:, 1:],
                batch_size=rows,
                shuffle=False,
                verbose=0,
            )

        return run, steps * rows * length

    return {
        "training, by units": _table(
            "units",
            lambda units: fit(units=units),
            sizes.units,
            repeats,
            "Square where the recurrent product is all; below it what costs "
            "in proportion (gates, logits) or not at all (calls)",
            per_character=True,
        ),
        "training, by layers": _table(
            "layers",
            lambda layers: fit(layers=layers),
            sizes.layers,
            repeats,
            "A straight line that begins above 0: logits and loss are there "
            "once",
            per_character=True,
        ),
        "training, by rows of a batch": _table(
            "rows",
            lambda rows: fit(rows=rows),
            sizes.rows,
            repeats,
            "Below 1: a step of the recurrence has a fixed cost that the "
            "rows share",
        ),
        "training, by length of a row": _table(
            "characters",
            lambda length: fit(rows=8, length=length),
            sizes.sequences,
            repeats,
            "A straight line: one step after the other, each the same",
        ),
    }


def corpus(sizes):
    """Memory and seconds against the size of the corpus, a process each."""
    found = {}
    for megabytes in sizes.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "corpus.txt")
            write_text(path, int(megabytes * 1e6))
            row = Row(
                f"{megabytes:,g} megabytes",
                "scaling:peak_memory",
                {"path": str(path), "units": sizes.default_units},
                os.environ.get("KERAS_BACKEND"),
            )
            # One after the other, so that one file is on the disk at a time.
            found |= race([row], 1, log)
    for result in found.values():
        result["unit"] = "MB at the peak"
    peaks = [row.get("median") for row in found.values()]
    if all(peaks) and len(peaks) > 1:
        found["exponent"] = _exponent(
            sizes.megabytes,
            peaks,
            "About 0: texts beyond 64 MB lie in a file, and what is shuffled "
            "is bounded. `ready` is all of it: imports, reading the corpus, "
            "fitting the buckets, three batches of training",
        )
    return {"memory, by size of the corpus": found}


def peak_memory(path, units):
    """Reads a corpus and trains on a few batches of it."""
    from keras_chargen import CharRNN, pipeline
    from keras_chargen.corpora import open_corpus
    from keras_chargen.tokenizer import CharacterCounts, CharTokenizer

    counts = CharacterCounts()
    texts = pipeline.text_dataset(counts.watch(open_corpus(path)))
    tokenizer = CharTokenizer()
    tokenizer.adapt_counts(counts.by_character())
    model = CharRNN(tokenizer, units=units)
    model.compile()
    batches = pipeline.lines(texts, tokenizer, BATCH_SIZE)
    model.fit(batches.take(3), shuffle=False, verbose=0)
    return _peak_megabytes


def _peak_megabytes():
    status = Path("/proc/self/status")
    if status.exists():
        # A child's ru_maxrss begins with what its parent had: this does not.
        kilobytes = status.read_text().partition("VmHWM:")[2].split()[0]
        return int(kilobytes) / 1e3
    # Kilobytes, on macOS bytes.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _model(units, layers=1):
    from keras_chargen import CharRNN, CharTokenizer

    tokenizer = CharTokenizer([chr(32 + i) for i in range(95)])
    return CharRNN(tokenizer, units=units, num_layers=layers)


def _table(what, prepare, sizes, repeats, words, per_character=False):
    """Measures all sizes in turn.

    Args:
        what: str, what the sizes count.
        prepare: Function of a size that returns what is to be timed, and how
            many characters it handles.
        sizes: Ascending numbers.
        repeats: Positive integer.
        words: str, why the exponent is what it is.
        per_character: Whether it is that of the cost of a character, not of
            all that is timed.
    """
    runs = {}
    for size in sizes:
        run, characters = prepare(size)
        log(f"{size:,} {what}")
        run()
        begin = time.perf_counter()
        run()
        if time.perf_counter() - begin > SECONDS:
            log("too slow under this backend; larger ones are left out")
            break
        runs[size] = run, characters, []
    for _ in range(repeats):
        for run, _, values in runs.values():
            begin = time.perf_counter()
            run()
            values.append(time.perf_counter() - begin)
    found = {}
    costs = []
    for size, (_, characters, values) in runs.items():
        median = statistics.median(values)
        costs.append(median / characters if per_character else median)
        found[f"{size:,} {what}"] = {
            "median": median / characters * 1e6,
            "spread": (max(values) - min(values)) / median,
            "values": [value / characters * 1e6 for value in values],
            "unit": "µs/character",
        }
    if len(costs) > 1:
        found["exponent"] = _exponent(list(runs), costs, words)
    return found


def _exponent(sizes, costs, words):
    slope, _ = np.polyfit(np.log(sizes), np.log(costs), 1)
    return {"median": float(slope), "spread": 0.0, "unit": "", "note": words}


if __name__ == "__main__":
    main()
