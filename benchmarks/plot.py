"""The plot of the last results: ours beside what people would use.

Equal results give an equal file.
"""

# Okabe and Ito's colours, told apart by colour-blind readers too; ours are
# the cold ones.
COLORS = {
    "ours, jax": "#0072B2",
    "ours, tensorflow": "#56B4E9",
    "ours, torch": "#009E73",
    "PyTorch": "#E69F00",
    "PyTorch, compiled": "#F0E442",
    "JAX": "#D55E00",
    "KerasHub": "#CC79A7",
    "notebook": "#777777",
}
PANELS = (
    ("training", "training, LSTM 128, lines", "Training, LSTM 128", "linear"),
    ("writing", "writing", "Writing, LSTM 128", "log"),
)

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "keras_chargen",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write(results, path):
    """Draws the results as an SVG.

    Args:
        results: Dict by name of a script of what it published.
        path: Path of the file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, panel in zip(
            figure.subplots(1, len(PANELS)), PANELS, strict=True
        ):
            _draw(axes, results, *panel)
        handles = {}
        for axes in figure.axes:
            for handle, label in zip(
                *axes.get_legend_handles_labels(), strict=True
            ):
                handles.setdefault(label, handle)
        if handles:
            figure.legend(
                handles.values(),
                handles.keys(),
                loc="outside lower center",
                ncols=len(COLORS),
                frameon=False,
                columnspacing=1,
                handlelength=1,
            )
        figure.savefig(path, format="svg", metadata={"Date": None})


def write_curve(results, path):
    """Draws how the run of `benchmarks.quality` that was interrupted learned.

    Args:
        results: Dict by name of a piece of work of its rows.
        path: Path of the SVG.
    """
    rows = results.get("best", {}).get("rows", {})
    found = [row for row in rows.values() if "curve" in row]
    if not found:
        return
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axes = figure.subplots()
        seconds, nats = zip(*found[0]["curve"], strict=True)
        axes.plot([x / 60 for x in seconds], nats, ".-", color="#009E73")
        for second, signal in found[0]["stops"]:
            axes.axvline(second / 60, color="#777777", linestyle=":")
            axes.annotate(
                f" {signal}",
                (second / 60, 1),
                xycoords=("data", "axes fraction"),
                va="top",
            )
        axes.set_xlabel("minutes of training")
        axes.set_ylabel("nats per character, held out")
        figure.savefig(path, metadata={"Date": None})


def _draw(axes, results, script, prefix, title, scale):
    tables = results.get(script, {}).get("tables", {})
    start = f"{prefix}, batch "
    groups = {
        name.removeprefix(start): rows
        for name, rows in tables.items()
        if name.startswith(start)
    }
    present = [
        label
        for label in COLORS
        if any("median" in rows.get(label, {}) for rows in groups.values())
    ]
    width = 0.85 / max(1, len(present))
    for i, label in enumerate(present):
        bars = [
            (place + (i - (len(present) - 1) / 2) * width, rows[label])
            for place, rows in enumerate(groups.values())
            if "median" in rows.get(label, {})
        ]
        axes.bar(
            [place for place, _ in bars],
            [row["median"] for _, row in bars],
            width,
            # From the slowest run to the fastest.
            yerr=_errors([row for _, row in bars]),
            error_kw={"linewidth": 0.7},
            color=COLORS[label],
            edgecolor="black",
            linewidth=0.4,
            label=label,
        )
    axes.set_title(title)
    axes.set_yscale(scale)
    axes.set_ylabel("characters/s")
    axes.set_xlabel("batch")
    axes.set_xticks(range(len(groups)), groups)
    if scale == "linear":
        axes.yaxis.set_major_formatter("{x:,.0f}")


def _errors(rows):
    return [
        [row["median"] - min(row["values"]) for row in rows],
        [max(row["values"]) - row["median"] for row in rows],
    ]
