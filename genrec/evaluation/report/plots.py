"""The report's figures as inline SVG whose colours are the page's CSS variables, so that dark mode changes them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Placeholder colours that nothing else in a figure has; _svg replaces each by its CSS variable.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "rule", **{colour: f"s{n}" for n, colour in enumerate(SERIES, 1)}}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "genrec",
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def bars(
    values: Mapping[str, Mapping[str, float]],
    spans: Mapping[str, Mapping[str, Sequence[float]]],
    labels: Mapping[str, str],
    metrics: Sequence[str],
) -> str:
    """One panel per metric, one bar per ranking, with its 95% interval as a whisker and its value written out."""
    with matplotlib.rc_context(_STYLE):
        names = list(values)
        figure, axes = _panels(len(metrics), height=0.5 + 0.36 * len(names))
        for axis, metric in zip(axes, metrics, strict=True):
            heights = [values[name][metric] for name in names]
            colours = [SERIES[0] if name == "model" else SERIES[1] if name == "sft" else MUTED for name in names]
            places = np.arange(len(names))
            axis.barh(places, heights, color=colours, height=0.62, alpha=0.9)
            for place, name, height in zip(places, names, heights, strict=True):
                low, high = spans.get(name, {}).get(metric, (height, height))
                axis.plot([low, high], [place, place], color=INK, linewidth=1.2)
                axis.annotate(
                    f"{height:.3f}", (high, place), (5, 0), textcoords="offset points", va="center", fontsize=9
                )
            axis.set_yticks(
                places, [labels.get(name, name) for name in names] if axis is axes[0] else [""] * len(names)
            )
            axis.tick_params(axis="y", labelcolor=INK)
            axis.invert_yaxis()
            axis.grid(False, axis="y")
            axis.set_xlim(0, 1.22 * max([*heights, 1e-9, *(s[metric][1] for s in spans.values() if metric in s)]))
            axis.locator_params(axis="x", nbins=4, prune="upper")
            axis.set_title(metric.upper())
        return _svg(figure)


def code_use(levels: Sequence[Mapping[str, Any]]) -> str:
    """Items per code at each level, most used codes first: a flat curve is even use, zeros are codes without items."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(levels), height=2.2)
        for number, (axis, level) in enumerate(zip(axes, levels, strict=True)):
            counts = np.asarray(level["counts"], dtype=np.float64)
            axis.fill_between(np.arange(len(counts)), counts, step="mid", color=SERIES[0], alpha=0.75, linewidth=0)
            axis.set_title(f"Level {number + 1}: {level['used']} of {level['size']} codes")
            axis.set_xlabel("codes, most used first")
            axis.set_ylabel("items" if number == 0 else "")
            axis.set_xlim(-0.5, len(counts) - 0.5)
            axis.set_ylim(bottom=0)
            axis.locator_params(axis="both", nbins=5)
        return _svg(figure)


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels, at most three in a row, each ``height`` inches high without its title."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(9.6, rows * (height + 0.6)), layout=ConstrainedLayoutEngine(wspace=0.07, hspace=0.12))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg [^>]*?)height="[^"]*"', r"\1\2", text, count=1)
