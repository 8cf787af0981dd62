"""Lists whose items differ from each other, chosen greedily from the most probable ones.

``vectors``, ``categories``: maximal marginal relevance (Carbonell & Goldstein 1998). The next item maximises

    (1 - λ) · p(i) / max_j p(j) - λ · max over chosen j of similarity(i, j)

with the cosine of the items' vectors, or the share of common categories (Jaccard), as similarity.

``calibrated``: the list's shares of categories follow those of the history (Steck 2018, Calibrated recommendations,
equations 2-5). The next item maximises, for the list S that it makes,

    (1 - λ) · Σ_{i in S} p(i) / max_j p(j) / |S| - λ · KL(q_history || (1 - α) q_S + α q_history),  α = 0.01

``beams``: the search itself spreads, see ``genrec.policy.decoding.sampling.BeamGroups``.

λ is the request's weight. Scores stay the model's probabilities, so a diverse list need not fall.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from genrec.inference.catalog_view import CatalogView
from genrec.inference.request import Diversity
from genrec.metrics import FloatArray
from genrec.sid.vectors import unit_rows

SMOOTHING = 0.01
"""α: the history's share in the list's distribution, so that the divergence is finite."""

Gain = Callable[[list[int]], FloatArray]
"""What each of M candidates (M,) costs in variety after the chosen ones (indices)."""


def diversify(
    ranked: list[tuple[int, float]], k: int, diversity: Diversity, view: CatalogView, history: Sequence[int]
) -> list[tuple[int, float]]:
    """The ``k`` items of a diverse list in the order of their choice.

    Args:
        ranked: item rows with their probabilities, best first.
        history: rows of the user's items.
    """
    if not ranked or not diversity.weight or diversity.kind == "beams":
        return ranked[:k]
    rows, weight = [row for row, _ in ranked], diversity.weight
    relevance_M = np.array([score for _, score in ranked]) / max(ranked[0][1], 1e-300)
    if diversity.kind == "calibrated":
        cost = calibration_cost(_shares(view, rows), _shares(view, history))
    else:
        cost = redundancy(_cosines(view, rows) if diversity.kind == "vectors" else _overlaps(view, rows))
    return [ranked[index] for index in choose(relevance_M, cost, weight, k)]


def choose(relevance_M: FloatArray, cost: Gain, weight: float, k: int) -> list[int]:
    """The indices of ``k`` candidates, chosen one after the other; ties go to the more relevant, the earlier one."""
    chosen: list[int] = []
    for _ in range(min(k, len(relevance_M))):
        value_M = (1 - weight) * relevance_M - weight * cost(chosen)
        value_M[chosen] = -np.inf
        chosen.append(int(np.argmax(value_M)))
    return chosen


def redundancy(similarity_MM: FloatArray) -> Gain:
    """The largest similarity of each candidate with a chosen one; 0 for the first."""

    def cost(chosen: list[int]) -> FloatArray:
        return similarity_MM[:, chosen].max(axis=1) if chosen else np.zeros(len(similarity_MM))

    return cost


def calibration_cost(shares_MC: FloatArray, history_HC: FloatArray) -> Gain:
    """How far the categories of the list that each candidate would make are from the history's, as KL in nats."""
    wanted_C = history_HC.mean(axis=0)

    def cost(chosen: list[int]) -> FloatArray:
        list_MC = (shares_MC[chosen].sum(axis=0) + shares_MC) / (len(chosen) + 1)
        smooth_MC = (1 - SMOOTHING) * list_MC + SMOOTHING * wanted_C
        asked_C = wanted_C > 0
        return (wanted_C[asked_C] * np.log(wanted_C[asked_C] / smooth_MC[:, asked_C])).sum(axis=1)

    return cost


def _cosines(view: CatalogView, rows: Sequence[int]) -> FloatArray:
    """Cosines (M, M) of the vectors of items, 0 where they are negative."""
    vectors_NF = view.catalog.vectors_NF
    if vectors_NF is None:  # refused before the search, see ``CatalogView.require``
        return np.zeros((len(rows), len(rows)))
    unit_MF = unit_rows(vectors_NF[list(rows)].float().numpy())
    return (unit_MF @ unit_MF.T).clip(0, 1).astype(np.float64)


def _overlaps(view: CatalogView, rows: Sequence[int]) -> FloatArray:
    """|common categories| / |categories of both| (M, M)."""
    has_MC = _shares(view, rows) > 0
    common_MM = has_MC.astype(np.float64) @ has_MC.T
    sizes_M = has_MC.sum(axis=1)
    return common_MM / np.maximum(sizes_M[:, None] + sizes_M - common_MM, 1)


def _shares(view: CatalogView, rows: Sequence[int]) -> FloatArray:
    """Shares (M, C) of an item's categories, over all categories of the catalogue: 1 / their number for each."""
    shares_MC = np.zeros((len(rows), len(view.category_numbers)))
    for place, row in enumerate(rows):
        own = [view.category_numbers[name] for name in view.attributes.of(row)[0]]
        shares_MC[place, own] = 1 / max(1, len(set(own)))
    return shares_MC
