"""The report's figure of the codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from genrec.pages.figures import SERIES, svg_figure


def code_use(levels: Sequence[Mapping[str, Any]]) -> Markup:
    """Items per code at each level, most used codes first: a flat curve is even use, zeros are codes without items."""
    return svg_figure(partial(_draw, levels))


def _draw(levels: Sequence[Mapping[str, Any]]) -> Figure:
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
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels, at most three in a row, each ``height`` inches high without its title."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(9.6, rows * (height + 0.6)), layout=ConstrainedLayoutEngine(wspace=0.07, hspace=0.12))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]
