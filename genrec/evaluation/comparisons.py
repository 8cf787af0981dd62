"""Paired comparisons of one system with many others: t tests, corrected for their number.

With m comparisons at 5%, about m / 20 of them look significant by chance alone. Holm's procedure bounds the chance that
any is wrong: the i-th smallest of m p-values is multiplied by m - i + 1, and no adjusted value is below an earlier one
(Holm 1979, "A simple sequentially rejective multiple test procedure"). The intervals that go with it are Bonferroni's:
each has the level 1 - 0.05 / m, so all m hold at once with 95%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from scipy.special import stdtr, stdtrit

from genrec.metrics import FloatArray

LEVEL = 0.05
"""The chance of a false finding among all comparisons."""


class Corrected(TypedDict):
    """A comparison among many: two-sided p, p after Holm, and the interval that holds together with the others'."""

    p: float
    p_holm: float
    all_low: float
    all_high: float


def corrected(differences: Mapping[str, FloatArray], family: int | None = None) -> dict[str, Corrected]:
    """A paired t test of each difference (Q,) against zero, corrected for the number of them.

    Args:
        differences: first system minus another on the same queries, by the other's name; at least two queries.
        family: the number of comparisons, where it is more than that of ``differences``.
    """
    many = max(len(differences), family or 0)
    tests = {name: _paired_t(values_Q, LEVEL / many) for name, values_Q in differences.items()}
    adjusted = holm([p for p, _, _ in tests.values()], many)
    return {
        name: Corrected(p=p, p_holm=p_holm, all_low=low, all_high=high)
        for (name, (p, low, high)), p_holm in zip(tests.items(), adjusted, strict=True)
    }


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    many = max(len(p_values), family or 0)
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = np.zeros(len(p_values)), 0.0
    for place, number in enumerate(order):
        largest = max(largest, min(1.0, (many - place) * p_values[number]))
        adjusted[number] = largest
    return adjusted.tolist()


def _paired_t(values_Q: FloatArray, level: float) -> tuple[float, float, float]:
    """Two-sided p of the mean, and its interval of 1 - ``level``; differences that are all equal leave no doubt."""
    queries, mean = len(values_Q), float(values_Q.mean())
    error = float(values_Q.std(ddof=1)) / queries**0.5
    if error < 1e-15:
        return (1.0 if abs(mean) < 1e-15 else 0.0), mean, mean
    p = 2.0 * float(stdtr(queries - 1, -abs(mean) / error))
    half = float(stdtrit(queries - 1, 1 - level / 2)) * error
    return p, mean - half, mean + half
