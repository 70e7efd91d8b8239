"""The last results as tables, between the marks of `benchmarks/README.md`."""

from pathlib import Path

from benchmarks.report import shown
from benchmarks.targets import TARGETS, evaluate

QUALITY = (
    "<!-- quality: `python -m benchmarks.quality` writes it -->",
    "<!-- end of quality -->",
)
README = Path(__file__).parent / "README.md"
BEGIN = "<!-- results: `python -m benchmarks` writes them -->"
END = "<!-- end of results -->"


def write(results, path=README):
    """Puts the tables in place of the last ones."""
    _put(path, (BEGIN, END), render(results))


def write_quality(results, path=README):
    """Puts the table of `benchmarks.quality` in place of the last one."""
    _put(path, QUALITY, quality(results))


def _put(path, marks, table):
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    text = f"{before}{marks[0]}\n\n{table}\n{marks[1]}{after}"
    path.write_text(text, encoding="utf-8")


def quality(results):
    """Returns what `benchmarks.quality` found as Markdown.

    Args:
        results: Dict by name of a piece of work of where it ran, and its rows.
    """
    lines = [
        "| what | found | bound | | training | backend | machine | date |",
        "|---|---:|---:|---|---:|---|---|---|",
    ]
    for found in results.values():
        for what, row in found["rows"].items():
            if "curve" in row:
                continue
            unit = row["unit"]
            bound = verdict = time = ""
            if "bound" in row:
                bound = f"{row['relation']} {row['bound']:.4g} {unit}"
                verdict = "pass" if row["holds"] else "MISS"
            if "seconds" in row:
                time = f"{row['seconds']:,.0f} s"
            lines.append(
                f"| {what} | {row['value']:.4f} {unit} | {bound} | {verdict} "
                f"| {time} | {found['backend']} | {found['machine']} "
                f"| {found['date']} |"
            )
    places = {
        f"Python {found['python']}, {found['versions']}."
        for found in results.values()
    }
    return "\n".join([*lines, "", *sorted(places)]) + "\n"


def render(results):
    """Returns what was found as Markdown.

    Args:
        results: Dict by name of a script of what it published.
    """
    parts = [_targets(results)]
    if results:
        parts.append("![characters a second, by batch size](results/speed.svg)")
    for name, found in results.items():
        parts.append(f"### {name}")
        parts.append(
            f"{found['machine']}; Python {found['python']}, "
            f"{found['versions']}; {found['date']}."
        )
        for title, columns in _by_batch(found["tables"]).items():
            parts.append(f"**{title}**")
            parts.append(_table(columns))
    return "\n\n".join(parts) + "\n"


def _targets(results):
    lines = ["| what | bound | found | |", "|---|---:|---:|---|"]
    for target in TARGETS:
        value, verdict = evaluate(target, results)
        found = "" if value is None else f"{shown(value)} {target.unit}"
        bound = f"{target.relation} {target.bound:,} {target.unit}"
        lines.append(f"| {target.what} | {bound} | {found} | {verdict} |")
    return "\n".join(lines)


def _by_batch(tables):
    """Tables of several batch sizes become columns of one."""
    groups = {}
    for title, rows in tables.items():
        title, comma, size = title.partition(", batch ")
        group = groups.setdefault(title, {})
        group[f"batch {size}" if comma else ""] = rows
    return groups


def _table(columns):
    labels = dict.fromkeys(label for rows in columns.values() for label in rows)
    units = {
        row["unit"]: None
        for rows in columns.values()
        for row in rows.values()
        if "unit" in row
    }
    heads = [", ".join(filter(None, (name, *units))) for name in columns]
    lines = [
        f"| | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    for label in labels:
        cells = [_cell(rows.get(label)) for rows in columns.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row):
    if row is None:
        return ""
    if "error" in row:
        return "failed"
    return f"{shown(row['median'])} ± {row['spread'] / 2:.0%}"
