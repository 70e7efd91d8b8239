"""Measures rows in turn: each in a process of its own, A B A B.

A row names a function in a module of this folder and its arguments. The
function prepares (imports, builds, compiles, warms up) and returns `run()`,
which measures once and returns a number. Processes wait while others run, so
that what the machine does meanwhile falls on all of them.
"""

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Row(NamedTuple):
    """What is measured.

    Attributes:
        label: str, unique in a table.
        target: `"module:function"` below `benchmarks`.
        arguments: Dict of JSON values.
        backend: The value of `KERAS_BACKEND`, None for no Keras.
    """

    label: str
    target: str
    arguments: dict
    backend: str | None = None


def race(rows, repeats, log=None, apart=True):
    """Measures rows in turn.

    Args:
        rows: List of `Row`.
        repeats: Positive integer.
        log: Optional function of a str, told what goes on.
        apart: False keeps all rows in this process and under its backend: to
            see that they run, in seconds.

    Returns:
        Dict by label of `{"median", "spread", "values", "ready_seconds"}`,
        the spread being largest minus smallest over the median; of a row that
        failed `{"error": str}`.
    """
    results = {}
    with contextlib.ExitStack() as stack:
        runners = {}
        for row in rows:
            runner = stack.enter_context((_Runner if apart else _Guest)(row))
            answer = runner.wait()
            if "error" in answer:
                results[row.label] = answer
                if log:
                    log(f"{row.label}: {answer['error']}")
                continue
            runners[row.label] = runner
            results[row.label] = {**answer, "values": []}
            if log:
                log(f"{row.label}: ready in {answer['ready_seconds']:.1f} s")
        for _ in range(repeats):
            for label, runner in list(runners.items()):
                answer = runner.measure()
                if "error" in answer:
                    results[label] = answer
                    del runners[label]
                else:
                    results[label]["values"].append(answer["value"])
    for result in results.values():
        if "values" in result:
            values = result["values"]
            result["median"] = statistics.median(values)
            result["spread"] = (max(values) - min(values)) / result["median"]
    return results


class _Runner:
    """The process of a row, seen from outside."""

    def __init__(self, row):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if row.backend is not None:
            environment["KERAS_BACKEND"] = row.backend
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.race", row.target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self._send(row.arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def _send(self, value):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()

    def wait(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        return {"error": f"ended with exit code {self.process.wait()}"}

    def measure(self):
        self._send("go")
        return self.wait()


class _Guest:
    """A row in this process, with the manners of `_Runner`."""

    def __init__(self, row):
        self.row = row

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait(self):
        begin = time.perf_counter()
        try:
            self.run = _prepare(self.row.target, self.row.arguments)
        except ImportError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"ready_seconds": time.perf_counter() - begin}

    def measure(self):
        return {"value": self.run()}


def _prepare(target, arguments):
    module, _, function = target.partition(":")
    module = importlib.import_module(f"benchmarks.{module}")
    return getattr(module, function)(**arguments)


def _serve(target):
    """The process of a row, from inside."""
    # What frameworks print must not mix with answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    arguments = json.loads(sys.stdin.readline())
    begin = time.perf_counter()
    try:
        run = _prepare(target, arguments)
        answer(ready_seconds=time.perf_counter() - begin)
        for _ in sys.stdin:
            answer(value=run())
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        answer(error=f"{type(error).__name__}: {lines[0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    _serve(parser.parse_args().target)
