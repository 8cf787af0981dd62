"""The health page: ``sid_health.html``, one file with inline figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from genrec.pages import render as pages
from genrec.pages.figures import GRID, SERIES, svg_figure
from genrec.sid.health import POOL, sample_rows
from genrec.sid.prefixes import prefix_numbers
from genrec.sid.vectors import Ints, Longs

ROWS, PREFIXES, TITLES, LABEL = 25, 10, 6, 34


ReadItems = Callable[[Longs, Sequence[str]], pa.Table]
"""Reads some columns of the item table at some rows."""


def write_page(read: ReadItems, codes_NL: Ints, health: Mapping[str, Any], path: Path) -> None:
    """Write the page for the items (title, categories, brand) and their codes (N, L), atomically.

    Labels are those of all items, or of the ``POOL`` that the health was measured on.
    """
    rows = sample_rows(len(codes_NL), POOL)
    kind, labels = item_labels(read(rows, ("categories", "brand")))
    context = {
        "title": "Semantic ID health",
        "health": health,
        "use": svg_figure(partial(_use_figure, codes_NL, health["level_sizes"])),
        "heat": svg_figure(partial(_heat_figure, codes_NL[rows, 0], labels, health["level_sizes"][0], kind))
        if any(labels)
        else "",
        "kind": kind,
        "samples": sample_prefixes(read, codes_NL, health["level_sizes"]),
    }
    pages.write_page(path, "genrec.sid", "health.html.j2", context)


def item_labels(items: pa.Table) -> tuple[str, list[str]]:
    """The kind of label that groups items in the heat map, and each item's label ('' if unknown).

    Labels are categories at the smallest depth that has at least five of them; else brands; else ('', []).
    """
    paths: list[list[str]] = [path or [] for path in items["categories"].to_pylist()]
    depth_max = max((len(path) for path in paths), default=0)
    for depth in range(depth_max):
        labels = [path[min(depth, len(path) - 1)] if path else "" for path in paths]
        if len(set(labels) - {""}) >= 5 or depth == depth_max - 1:
            return "category", labels
    brands = [brand or "" for brand in items["brand"].to_pylist()]
    return ("brand", brands) if any(brands) else ("", [])


def sample_prefixes(read: ReadItems, codes_NL: Ints, level_sizes: list[int]) -> list[dict[str, Any]]:
    """Ten prefixes of L - 1 codes (N, L) with several items, drawn by a fixed seed, each with a few of its items."""
    numbers, which_N, counts = np.unique(
        prefix_numbers(codes_NL[:, :-1], level_sizes), return_inverse=True, return_counts=True
    )
    several = np.flatnonzero(counts > 1) if (counts > 1).any() else np.arange(len(numbers))
    chosen = np.random.default_rng(0).choice(several, min(PREFIXES, len(several)), replace=False)
    groups = [np.flatnonzero(which_N == group) for group in sorted(chosen.tolist())]
    titles = iter(read(np.concatenate([rows[:TITLES] for rows in groups]), ("title",))["title"].to_pylist())
    samples: list[dict[str, Any]] = []
    for rows in groups:
        shown = [{"codes": codes, "title": next(titles)} for codes in codes_NL[rows[:TITLES]].tolist()]
        samples.append({"prefix": codes_NL[rows[0], :-1].tolist(), "items": len(rows), "shown": shown})
    return samples


def _use_figure(codes_NL: Ints, level_sizes: list[int]) -> Figure:
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for level, (size, axes) in enumerate(zip(level_sizes, np.ravel(figure.subplots(1, len(level_sizes))), strict=True)):
        counts = np.sort(np.bincount(codes_NL[:, level], minlength=size))[::-1]
        axes.fill_between(np.arange(size), counts, step="mid", color=SERIES[0])
        axes.axhline(len(codes_NL) / size, color=GRID, linewidth=0.8)
        axes.set(title=f"level {level + 1}", xlabel="codes, most frequent first", ylabel="items" if level == 0 else "")
    return figure


def _heat_figure(code_N: Ints, labels: list[str], codes: int, kind: str) -> Figure:
    common = [name for name, _ in Counter(label for label in labels if label).most_common(ROWS)]
    row_of = {name: row for row, name in enumerate(common)}
    counts_RK = np.zeros((len(common), codes))
    for label, code in zip(labels, code_N.tolist(), strict=True):
        if label in row_of:
            counts_RK[row_of[label], code] += 1
    counts_RK = counts_RK[:, counts_RK.any(axis=0)]
    order_K = np.lexsort((-counts_RK.max(axis=0), counts_RK.argmax(axis=0)))
    share_RK = counts_RK[:, order_K] / counts_RK.sum(axis=1, keepdims=True)
    figure = Figure(figsize=(9, 1 + 0.22 * len(common)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    image = axes.imshow(np.sqrt(share_RK), aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(common)), [plain_label(name) for name in common], fontsize=7)
    axes.set(
        xlabel=f"the {counts_RK.shape[1]} level-1 codes of these items, sorted by their most frequent {kind}", xticks=[]
    )
    figure.colorbar(image, ax=axes, label=f"√ fraction of the {kind}'s items", fraction=0.03)
    return figure


def plain_label(text: str) -> str:
    """A shop's text as the label of a figure: one line of at most ``LABEL`` characters, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LABEL else f"{line[: LABEL - 1]}…"
