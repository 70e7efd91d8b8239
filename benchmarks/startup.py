"""Seconds and megabytes from the start of a process to what a user waits for.

    python -m benchmarks.startup --backends jax torch

`--help`, `import keras_chargen` and the first text from a saved model, under
each backend, beside `import keras` alone. Each measurement is a process from
its start to its end, and its peak of resident memory; all are measured in
turn. A first round of all fills the cache of compiled programs, which lies in
a folder of its own, and is reported apart. Modules are byte-compiled, as pip
leaves them.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import log, make_parser, publish

ROOT = Path(__file__).parents[1]
BACKENDS = ("tensorflow", "jax", "torch", "numpy", "openvino")
PROMPT = "Today "
# Writes the model file; its texts do not end by themselves.
MAKE = """
import sys
from keras_chargen import CharRNN, CharTokenizer, save_model
characters = [chr(code) for code in range(32, 114)]
model = CharRNN(CharTokenizer(characters), units=int(sys.argv[2]))
weights = model.get_weights()
weights[-1][model.tokenizer.eos_id] = -30
model.set_weights(weights)
save_model(model, sys.argv[1])
"""


def measure(arguments, backend, cache):
    """Runs Python with arguments, from the start of the process to its end.

    Args:
        arguments: List of str.
        backend: The value of `KERAS_BACKEND`.
        cache: str, the folder of compiled programs.

    Returns:
        Seconds, megabytes at the peak, and standard output.

    Raises:
        RuntimeError: It failed; the message is its last line.
    """
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "KERAS_CHARGEN_CACHE": cache,
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        with process.stdout:
            output = process.stdout.read()
        # The one call that tells what this child alone has used.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [
                f"ended with exit code {process.returncode}"
            ]
            raise RuntimeError(lines[-1])
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit / 1e6, output


def tasks(backends, model_file):
    """Yields what is measured: `(name, label, backend, arguments)`."""
    yield "--help", "ours", "tensorflow", ["-m", "keras_chargen", "--help"]
    for backend in backends:
        yield "import keras", backend, backend, ["-c", "import keras"]
        yield (
            "import keras_chargen",
            backend,
            backend,
            ["-c", "import keras_chargen"],
        )
        command = ["-m", "keras_chargen", "generate", model_file]
        yield "first text", backend, backend, [*command, "--prompt", PROMPT]


def race(planned, repeats, cache):
    """Measures tasks in turn, after a round that fills caches.

    Returns:
        Dict of tables by title.
    """
    tables = {
        f"{unit} to {name}": {}
        for unit in ("seconds", "megabytes")
        for name, *_ in planned
    }
    cold = tables["seconds to first text, nothing cached"] = {}
    for turn in range(repeats + 1):
        for name, label, backend, arguments in planned:
            rows = {
                unit: tables[f"{unit} to {name}"].setdefault(
                    label, {"values": [], "unit": short}
                )
                for unit, short in (("seconds", "s"), ("megabytes", "MB"))
            }
            if "error" in rows["seconds"]:
                continue
            try:
                seconds, megabytes, output = measure(arguments, backend, cache)
                if name == "first text" and not output.startswith(PROMPT):
                    raise RuntimeError(f"wrote {output[:20]!r}")
            except RuntimeError as error:
                log(f"{name}, {label}: {error}")
                for row in rows.values():
                    row["error"] = str(error)
                continue
            if turn:
                rows["seconds"]["values"].append(seconds)
                rows["megabytes"]["values"].append(megabytes)
            elif name == "first text":
                cold[label] = {"values": [seconds], "unit": "s"}
        log(f"round {turn} of {repeats}")
    for rows in tables.values():
        for row in rows.values():
            if "error" not in row:
                values = row["values"]
                row["median"] = statistics.median(values)
                row["spread"] = (max(values) - min(values)) / row["median"]
    return tables


def main(arguments=None):
    """Measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        help="by default those that are installed",
    )
    chosen = parser.parse_args(arguments)
    backends = chosen.backends or [
        backend
        for backend in BACKENDS
        # Keras imports JAX for NumPy.
        if importlib.util.find_spec(backend.replace("numpy", "jax"))
    ]
    repeats = chosen.repeats or (1 if chosen.toy else 5)
    units = 8 if chosen.toy else 128
    with tempfile.TemporaryDirectory() as folder:
        model_file = str(Path(folder, "model.keras"))
        cache = str(Path(folder, "cache"))
        measure(["-c", MAKE, model_file, str(units)], backends[0], "off")
        planned = list(tasks(backends, model_file))
        tables = race(planned, repeats, cache)
    settings = {
        "backends": backends,
        "repeats": repeats,
        "units": units,
        "characters": 100,
        "prompt": PROMPT,
    }
    return publish("startup", settings, tables, chosen.json)


if __name__ == "__main__":
    main()
