"""The curves of ``bench tradeoff`` as a picture: what a reward's weight gains on its goal, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RELEVANCE = "ndcg@10"
SIZE_IN = 4.2
DPI = 120


def write_figure(variants: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A panel per variant, of validation relative to the SFT policy, in per cent; ``variants`` as they are tested.

    A line is a run, from the SFT policy through the versions that the guard looked at; the large point is what it kept,
    the mean over seeds. Left of the dashed line it keeps none.
    """
    figure = Figure(figsize=(SIZE_IN * len(variants), SIZE_IN), layout="constrained")
    panels = figure.subplots(1, len(variants), squeeze=False)[0]
    for axes, (name, one) in zip(panels, variants.items(), strict=True):
        _draw(axes, name, one)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI, metadata={"Software": None})


def _draw(axes: Axes, name: str, one: Mapping[str, Any]) -> None:
    goal, points = one["goal"], sorted(one["points"], key=lambda point: point["weight"])
    for number, point in enumerate(points):
        for by_seed in point["versions"]:
            path = [_percent(version, point, goal) for version in by_seed]
            axes.plot(*zip(*path, strict=True), "o-", color=f"C{number}", alpha=0.5, markersize=3, linewidth=1)
        kept = [100 * point[metric]["change"] for metric in (RELEVANCE, goal)]
        axes.scatter(*kept, s=60, color=f"C{number}", zorder=2, label=f"weight {point['weight']:g}")
    axes.axvline(-100 * one["share"], color="0.5", linestyle="--", linewidth=1)
    axes.axhline(0, color="0.8", linewidth=1, zorder=0)
    axes.set(title=name.replace("_", " "), xlabel="NDCG@10, change in %", ylabel=f"{goal}, change in %")
    axes.legend(frameon=False)


def _percent(version: Mapping[str, float], point: Mapping[str, Any], goal: str) -> Sequence[float]:
    """A version's NDCG@10 and goal relative to those of the SFT policies, in per cent."""
    return [100 * (version[metric] / max(point[metric]["sft"], 1e-12) - 1) for metric in (RELEVANCE, goal)]
