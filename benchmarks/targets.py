"""What must be reached: the table of issue 5, each row a function of results.

`results` is a dict by name of a script of what it published.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "Torch"}
OURS = tuple(f"ours, {name}" for name in BACKENDS)
TRAINING = "training, LSTM 128, lines, best batches"
WRITING = "writing, targets"
READING = "file to batches"
HELP = "seconds to --help"
KERAS = "seconds to import keras"
FIRST_TEXT = "seconds to first text"


class Target(NamedTuple):
    """What must be reached.

    Attributes:
        what: What is compared with what.
        relation: `">="`, `"<="` or `"<"`.
        bound: What the value is compared with.
        unit: `"x"` or `"s"`.
        value: Function of the results; a `KeyError` names a missing figure.
    """

    what: str
    relation: str
    bound: float
    unit: str
    value: Callable


class Outcome(NamedTuple):
    """A target evaluated; `value` is None where a figure is missing."""

    value: float | None
    verdict: str


def evaluate(target, results):
    """Returns the `Outcome`: `"pass"`, `"MISS"`, or what is missing."""
    try:
        value = target.value(results)
    except KeyError as error:
        return Outcome(None, f"missing: {error.args[0]}")
    holds = {
        ">=": value >= target.bound,
        "<=": value <= target.bound,
        "<": value < target.bound,
    }[target.relation]
    return Outcome(value, "pass" if holds else "MISS")


def best(results, script, title, *names):
    """Returns the row of the largest median.

    Args:
        results: As everywhere here.
        script: Name of a script.
        title: Title of one of its tables.
        *names: Labels; `"PyTorch"` is also `"PyTorch, batch 64"`.

    Raises:
        KeyError: None of these rows was measured.
    """
    table = results.get(script, {}).get("tables", {}).get(title, {})
    rows = [
        row
        for label, row in table.items()
        if "median" in row
        and any(
            label == name or label.startswith(f"{name}, batch ")
            for name in names
        )
    ]
    if not rows:
        raise KeyError(f"{script}: {title}: {' or '.join(names)}")
    return max(rows, key=lambda row: row["median"])


def ratio(row, other):
    """Returns the median of the ratios, run by run.

    Rows of one table are measured in turn, so what the machine did meanwhile
    fell on both. Where the numbers of runs differ it is that of the medians.
    """
    values, others = row["values"], other["values"]
    if len(values) != len(others):
        return row["median"] / other["median"]
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def _training(ours, peer):
    def value(results):
        return ratio(
            best(results, "training", TRAINING, *ours),
            best(results, "training", TRAINING, peer),
        )

    return value


def _writing(ours, peer):
    def value(results):
        return ratio(
            best(results, "writing", WRITING, *(f"{x}, batch 1" for x in ours)),
            best(results, "writing", WRITING, peer),
        )

    return value


def _writing_together(results):
    one, many = (
        best(results, "writing", WRITING, *(f"{x}, batch {n}" for x in OURS))
        for n in (1, 256)
    )
    return ratio(many, one)


def _reading(results):
    read = best(results, "reading", READING, "ours")
    # Measured by another script, so not in turn.
    return read["median"] / best(results, "training", TRAINING, *OURS)["median"]


def _help(results):
    return best(results, "startup", HELP, "ours")["median"]


def _first_text(backend):
    def value(results):
        return ratio(
            best(results, "startup", FIRST_TEXT, backend),
            best(results, "startup", KERAS, backend),
        )

    return value


TARGETS = (
    Target(
        "training, best backend at its best batch, against the notebook",
        *(">=", 6, "x"),
        _training(OURS, "notebook"),
    ),
    Target(
        "training, best backend against PyTorch, each at its best batch",
        *(">=", 1.15, "x"),
        _training(OURS, "PyTorch"),
    ),
    *(
        Target(
            f"training, {BACKENDS[name]} against PyTorch",
            *(">=", bound, "x"),
            _training((f"ours, {name}",), "PyTorch"),
        )
        for name, bound in (("tensorflow", 0.9), ("jax", 0.9), ("torch", 0.8))
    ),
    *(
        Target(
            f"writing, batch 1, {BACKENDS[name]} against the notebook",
            *(">=", 5000, "x"),
            _writing((f"ours, {name}",), "notebook"),
        )
        for name in ("jax", "tensorflow")
    ),
    Target(
        "writing, batch 1, best backend against a PyTorch step loop",
        *(">=", 10, "x"),
        _writing(OURS, "PyTorch"),
    ),
    Target(
        "writing, batch 256 against batch 1, per character",
        *(">=", 3, "x"),
        _writing_together,
    ),
    Target(
        "reading, file to batches, against what LSTM 128 training consumes",
        *(">=", 20, "x"),
        _reading,
    ),
    Target("keras-chargen --help", "<", 0.3, "s", _help),
    *(
        Target(
            f"first text from a saved model against import keras, {name}",
            *("<=", 2, "x"),
            _first_text(key),
        )
        for key, name in BACKENDS.items()
    ),
)
