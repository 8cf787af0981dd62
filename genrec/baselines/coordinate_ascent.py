"""Settings tuned one at a time on a grid, in each direction as long as the value rises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

Settings = TypeVar("Settings", bound=Any)
"""A frozen dataclass of numbers."""

Grid = Mapping[str, Sequence[float]]
"""By setting its values in order; it includes that of the start."""


def coordinate_ascent(
    value: Callable[[Settings], float], start: Settings, grid: Grid, budget: int
) -> tuple[Settings, dict[Settings, float]]:
    """The best settings found from ``start``, and the values of all settings that were tried.

    It ends when no step helps, or when ``budget`` settings were tried.
    """
    tried = {start: value(start)}
    best, before = start, None
    while best != before and len(tried) < budget:
        before = best
        for name, step in product(grid, (1, -1)):
            best = _ascend(value, best, grid, name, step, tried, budget)
    return best, tried


def _ascend(
    value: Callable[[Settings], float],
    best: Settings,
    grid: Grid,
    name: str,
    step: int,
    tried: dict[Settings, float],
    budget: int,
) -> Settings:
    """The settings after steps along one coordinate of the grid, as long as each is better than the one before."""
    while (move := _move(best, grid, name, step)) is not None and len(tried) < budget:
        if move not in tried:
            tried[move] = value(move)
        if tried[move] <= tried[best]:
            break
        best = move
    return best


def _move(settings: Settings, grid: Grid, name: str, step: int) -> Settings | None:
    """The settings one grid step away; None beyond the end of the grid."""
    values = grid[name]
    index = values.index(getattr(settings, name)) + step
    return replace(settings, **{name: values[index]}) if 0 <= index < len(values) else None
