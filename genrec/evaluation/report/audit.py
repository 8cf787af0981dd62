"""The figures of training as panels of curves: what people look at first, then everything else that was recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

FIRST = {
    "loss": "Training loss",
    "lr": "Learning rate",
    "reward": "Mean reward",
    "zero_advantage_groups": "Share of zero-advantage groups",
    "kl": "KL to the SFT policy",
    "gradient_norm": "Norm of the gradient",
    "prob_shift": "Probability gained, by popularity",
    "advantage_share": "Share of the advantage, by reward",
    "level_credit": "Credit, by level",
    "ratio": "Ratio of new to old probability",
    "clip_fraction": "Share of clipped codes",
    "ndcg@10": "Validation NDCG@10",
    "hr@10": "Validation HR@10",
    "hr@50": "Validation HR@50",
}
"""Titles of panels, in their order; a panel of ``ratio`` holds ``ratio``, ``ratio/mean``, ``ratio/std``, …"""

HEADINGS = {"sft": "Supervised fine-tuning", "grpo": "Reinforcement learning"}
SHOWN = 6
"""Panels of a stage that are open at once; the others are folded."""

POINTS = 400
"""Points of a curve on the page: every n-th of longer ones, and the last."""


def training_panels(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """``{"heading", "panels": [{"title", "series": [{"name", "points": [[step, value]]}]}], "shown"}`` of each stage.

    Args:
        curves: stages to points with "step" and figures by name; what is no number is left out.
    """
    found: list[dict[str, Any]] = []
    for stage, heading in HEADINGS.items():
        panels = _panels(curves.get(stage, ()))
        if panels:
            found.append({"heading": heading, "panels": panels, "shown": SHOWN})
    return found


def _panels(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for point in points for name in point if name not in ("step", "epoch"))
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.split("/")[0], []).append(name)
    order = [name for name in FIRST if name in families] + [name for name in families if name not in FIRST]
    panels = [{"title": FIRST.get(name, name), "series": _series(points, name, families[name])} for name in order]
    return [panel for panel in panels if panel["series"]]


def _series(points: Sequence[Mapping[str, Any]], family: str, names: Sequence[str]) -> list[dict[str, Any]]:
    found = [{"name": _member(name, family), "points": _values(points, name)} for name in names]
    return [one for one in found if one["points"]]


def _member(name: str, family: str) -> str:
    """What a figure is called within its panel: ``kl/1`` is level 1 of ``kl``."""
    rest = name.removeprefix(family).removeprefix("/")
    return f"level {rest}" if rest.isdigit() else rest or "all"


def _values(points: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    known = [[point["step"], point[name]] for point in points if _is_figure(point.get(name))]
    stride = -(-len(known) // POINTS)
    return [*known[:: stride or 1], *(known[-1:] if stride > 1 and (len(known) - 1) % stride else ())]


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
