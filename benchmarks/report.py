"""What the scripts share: their options, and how they print what they found."""

import argparse
import json
import sys
import textwrap

from benchmarks.environment import describe


def make_parser(doc):
    """Returns the parser of a script, with the options that all have.

    Args:
        doc: The docstring of the script; its first line is shown.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--toy", action="store_true", help="seconds, to see that it runs"
    )
    parser.add_argument(
        "--repeats", type=int, help="measurements of each figure"
    )
    return parser


def log(message):
    """Tells on standard error what goes on."""
    print(message, file=sys.stderr, flush=True)


def publish(name, settings, tables, as_json):
    """Prints what was found, for people or as one JSON object.

    Args:
        name: Of the script.
        settings: Dict of what was measured with.
        tables: Dict by title of dicts by label of what `race.race` gives, each
            with `"unit"` too, and perhaps a `"note"` in words.
        as_json: Whether to print JSON.

    Returns:
        The object as a dict.
    """
    found = {
        "benchmark": name,
        **describe(),
        "settings": settings,
        "tables": tables,
    }
    if as_json:
        print(json.dumps(found))
        return found
    for key in ("machine", "versions", "python", "date"):
        print(f"{key:<10}{found[key]}")
    for title, rows in tables.items():
        print(f"\n{title}")
        for label, row in rows.items():
            if "error" in row:
                print(f"  {label:<44} {row['error']}")
                continue
            print(
                f"  {label:<44}{shown(row['median']):>14} {row['unit']:<14}"
                f"± {row['spread'] / 2:.0%}"
                + (
                    f", ready in {row['ready_seconds']:.1f} s"
                    if "ready_seconds" in row
                    else ""
                )
            )
            if "note" in row:
                print(textwrap.indent(textwrap.fill(row["note"], 74), "    "))
    return found


def shown(value):
    """A figure with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
