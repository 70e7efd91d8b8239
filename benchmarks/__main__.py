"""All scripts in turn, then what must be reached, with pass or MISS.

    python -m benchmarks --quick
    python -m benchmarks training startup
    python -m benchmarks --targets

Without names all scripts run. Each leaves `benchmarks/results/NAME.json`; the
plot beside them and the tables in `benchmarks/README.md` follow from all that
are there. `--targets` runs none and judges these.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import plot, tables
from benchmarks.race import ROOT
from benchmarks.report import log, shown
from benchmarks.targets import TARGETS, evaluate

# Each with its options for `--quick`.
SCRIPTS = {
    "training": ["--quick"],
    "writing": [],
    "reading": [],
    "startup": [],
    "scaling": [],
}
RESULTS = Path(__file__).parent / "results"


def main(arguments=None):
    """Runs and judges; returns the exit code, 1 where a script failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=[])
    parser.add_argument(
        "--targets",
        action="store_true",
        help="run nothing, judge what is there",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the figures of the targets"
    )
    parser.add_argument(
        "--toy", action="store_true", help="seconds, to see that all run"
    )
    parser.add_argument("--repeats", type=int)
    parser.add_argument(
        "--results", type=Path, help="folder; with --toy none is kept else"
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in SCRIPTS:
            parser.error(f"NAME must be of {', '.join(SCRIPTS)}: {name}")
    extra = ["--toy"] if options.toy else []
    if options.repeats:
        extra += ["--repeats", str(options.repeats)]

    kept = options.results or (None if options.toy else RESULTS)
    results = load(kept) if kept else {}
    failed = []
    for name in [] if options.targets else options.names or SCRIPTS:
        found = run(name, [*extra, *(SCRIPTS[name] if options.quick else [])])
        if found is None:
            failed.append(name)
            continue
        results[name] = found
        if kept:
            kept.mkdir(parents=True, exist_ok=True)
            text = json.dumps(found, indent=1)
            (kept / f"{name}.json").write_text(text + "\n")
    if kept and results:
        if importlib.util.find_spec("matplotlib"):
            plot.write(results, kept / "speed.svg")
        else:
            log("no matplotlib: speed.svg is that of earlier results")
    if kept == RESULTS:
        tables.write(results)
    print(report(results))
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


def run(name, arguments):
    """Runs a script in a process of its own.

    Returns:
        What it published, or None where it failed.
    """
    log(f"== {name}")
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--json", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    log(f"== {name}: {time.perf_counter() - begin:.0f} s")
    if done.returncode:
        return None
    return json.loads(done.stdout.splitlines()[-1])


def load(folder):
    """Returns the results that a folder holds, by name of the script."""
    return {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in SCRIPTS
        if (folder / f"{name}.json").exists()
    }


def report(results):
    """Returns the table of targets as text."""
    lines = []
    for target in TARGETS:
        value, verdict = evaluate(target, results)
        figure = "" if value is None else f"{shown(value)} {target.unit}"
        bound = f"{target.relation} {target.bound:,} {target.unit}"
        lines.append(f"{target.what:<68}{figure:>10} {bound:>12}  {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
