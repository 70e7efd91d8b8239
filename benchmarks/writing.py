"""Characters a second in writing, and seconds to the first one.

    python -m benchmarks.writing --backends jax,tensorflow --batch 1,256

Beside ours under each backend: the lesson's loop, which reads the whole prefix
again for each character; a loop of PyTorch's own cell, plain and compiled; and
KerasHub's sampler around our step. LSTM 128 over the characters of AG News
titles, the same weights for all, and no text ends by itself.

Rows are greedy, or drawn from the distribution where they say `random`. The
first character is that of `model.stream` in a process that has written before.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.race import Row, race
from benchmarks.report import log, make_parser, publish

BACKENDS = ("jax", "tensorflow", "torch")
BATCHES = (1, 32, 256, 1024)
CHARACTERS = [chr(code) for code in range(33, 115)]  # as many as AG News has
UNITS = 128
LESSON_LENGTH = 12  # eight characters a second
TARGETS = "writing, targets"
SAMPLERS = {"": "greedy", ", random": "random"}  # by what labels end with
PYTORCH = "peers.torch_steps:writing"


def main(arguments=None):
    """Measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--backends",
        default=",".join(BACKENDS),
        help="of ours, separated by commas",
    )
    parser.add_argument("--batch", default=",".join(map(str, BATCHES)))
    options = parser.parse_args(arguments)
    backends = options.backends.split(",")
    batches = [int(batch) for batch in options.batch.split(",")]
    units, seconds = (4, 0.05) if options.toy else (UNITS, 1.5)
    repeats = options.repeats or (1 if options.toy else 5)

    def measure(title, rows, unit="characters/s"):
        log(title)
        found = race(rows, repeats, log, apart=not options.toy)
        tables[title] = {k: {**row, "unit": unit} for k, row in found.items()}

    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.npz")
        save_weights(path, units)
        common = {"weights": path, "seconds": seconds}
        for batch in batches:
            given = {**common, "batch": batch}
            rows = rate_rows(backends, given, compiled=not options.toy)
            measure(f"writing, batch {batch}", rows)
            title = f"seconds to the first character, batch {batch}"
            measure(title, first_rows(backends, given), "s")
        measure(TARGETS, target_rows(backends, common))
    settings = {"units": units, "vocabulary_size": len(CHARACTERS) + 2}
    return publish("writing", settings, tables, options.json)


def save_weights(path, units):
    """Writes random weights that every row takes: kernel first, as in Keras.

    `<eos>` is the last id, and so unlikely that no text ends.
    """
    rng = np.random.default_rng(0)
    size = len(CHARACTERS) + 2
    shapes = [(size, 4 * units), (units, 4 * units), (4 * units,)]
    shapes += [(units, size), (size,)]
    weights = [rng.normal(0, 0.3, shape).astype("float32") for shape in shapes]
    weights[-1][-1] = -1e9
    named = {f"weight_{i}": weight for i, weight in enumerate(weights)}
    np.savez(path, eos_id=size - 1, **named)


def model_of(weights):
    """Our model with the weights in this file."""
    from keras_chargen import CharRNN, CharTokenizer

    arrays = np.load(weights)
    values = [arrays[f"weight_{i}"] for i in range(5)]
    model = CharRNN(CharTokenizer(CHARACTERS), units=len(values[1]))
    model.set_weights(values)
    return model


def ours(weights, batch, seconds, sampler="greedy"):
    """Measures characters a second of `generate`."""
    model = model_of(weights)

    def write(length):
        model.generate([""] * batch, length, sampler=sampler, seed=0)

    return _rate(write, batch, seconds)


def hub(weights, batch, seconds):
    """Measures KerasHub's greedy sampler around our step."""
    from keras_hub.samplers import GreedySampler

    model, sampler = model_of(weights), GreedySampler()

    def write(length):
        model.generate([""] * batch, length, sampler=sampler)

    return _rate(write, batch, seconds, length=16, longest=128)


def lesson(weights, length=LESSON_LENGTH):
    """Measures the lesson's loop, at the length of a short text."""
    from benchmarks.peers import notebook

    units = np.load(weights)["weight_1"].shape[0]
    return notebook.writing(["".join(CHARACTERS) + "Today "], units, length)


def first(weights, batch, seconds, sampler="greedy"):
    """Measures the seconds until `stream` gives its first piece."""
    model = model_of(weights)

    def run():
        begin = time.perf_counter()
        pieces = model.stream([""] * batch, 100, sampler=sampler, seed=0)
        next(pieces)
        return time.perf_counter() - begin

    run()
    return run


def _rate(write, batch, seconds, length=64, longest=1 << 20):
    """Returns `run()` over texts of a length that takes about `seconds`."""
    while True:
        write(length)  # a length may be compiled for
        begin = time.perf_counter()
        write(length)
        passed = time.perf_counter() - begin
        if passed > seconds / 2 or 2 * length > longest:
            break
        length *= 2

    def run():
        begin = time.perf_counter()
        write(length)
        return batch * length / (time.perf_counter() - begin)

    return run


def rate_rows(backends, arguments, compiled):
    """Returns the rows of a table of characters a second."""
    rows = []
    for suffix, sampler in SAMPLERS.items():
        for backend in backends:
            given = {**arguments, "sampler": sampler}
            label = f"ours, {backend}{suffix}"
            rows.append(Row(label, "writing:ours", given, backend))
        given = {**arguments, "drawn": sampler == "random"}
        rows.append(Row(f"PyTorch{suffix}", PYTORCH, given))
        if compiled:
            given = {**given, "compiled": True}
            rows.append(Row(f"PyTorch, compiled{suffix}", PYTORCH, given))
    rows.append(Row("KerasHub", "writing:hub", arguments, backends[0]))
    if arguments["batch"] == 1:
        rows.append(_lesson_row(arguments))
    return rows


def first_rows(backends, arguments):
    """Returns the rows of a table of seconds to the first character."""
    return [
        Row(
            f"ours, {backend}{suffix}",
            "writing:first",
            {**arguments, "sampler": sampler},
            backend,
        )
        for suffix, sampler in SAMPLERS.items()
        for backend in backends
    ]


def target_rows(backends, arguments):
    """Returns the rows of what is promised: batch 1 and 256 in turn."""
    return [
        *(
            Row(
                f"ours, {backend}, batch {batch}",
                "writing:ours",
                {**arguments, "batch": batch},
                backend,
            )
            for backend in backends
            for batch in (1, 256)
        ),
        Row("PyTorch", PYTORCH, {**arguments, "batch": 1}),
        _lesson_row(arguments),
    ]


def _lesson_row(arguments):
    given = {"weights": arguments["weights"]}
    return Row("notebook", "writing:lesson", given, "tensorflow")


if __name__ == "__main__":
    main()
