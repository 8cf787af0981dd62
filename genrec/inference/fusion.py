"""How much the item head and ItemKNN count in the search, tuned on validation.

A search guided by both ranks the candidates of a query by

    log p_sid(item) + a · log p_head(item) + b · log p_knn(item)

so the weights (a, b) are tuned by ranking the candidates of wide searches again, without a new search for each pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.baselines.sparse import Sparse, values_at
from genrec.inference.prior import RankedItems, normalise
from genrec.metrics import FloatArray, IntArray, means, per_query

HEAD_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
PRIOR_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
VALUE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Fusion:
    """The weights with the best validation NDCG@10, that NDCG@10, and the NDCG@10 of each pair that was tried."""

    head_weight: float
    prior_weight: float
    ndcg: float
    tried: dict[tuple[float, float], float]


def leaf_log_prior(scores: Sparse, items_QK: IntArray, smooth: float) -> FloatArray:
    """log p_knn (Q, K) of candidates as ``NodePrior`` computes it, from scores (Q, N); any finite number at -1."""
    shares = normalise(scores)
    query_X = np.repeat(np.arange(len(items_QK)), items_QK.shape[1])
    own_QK = values_at(shares, query_X, items_QK.clip(min=0).ravel()).reshape(items_QK.shape)
    spread_Q1 = np.where(np.diff(shares.indptr) > 0, smooth, 1.0)[:, None]
    return np.log((1 - spread_Q1) * own_QK + spread_Q1 / shares.shape[1])


def tune_fusion(
    candidates: Sequence[RankedItems],
    targets_Q: IntArray,
    prior_log: Sequence[FloatArray] | None = None,
    *,
    head_weights: Sequence[float] = HEAD_WEIGHTS,
    prior_weights: Sequence[float] = PRIOR_WEIGHTS,
) -> Fusion:
    """The weights of a grid with the best NDCG@10 on validation queries with ``targets_Q``.

    Ties go to the smaller weights. A target that no search found counts as missed under all weights.

    Args:
        candidates: the answers of some searches to the same queries.
        prior_log: log p_knn (Q, K) of the candidates of each; None: there is no prior, b = 0.
    """
    items_QK = np.concatenate([found.items_QK for found in candidates], axis=1)
    sid_QK = np.concatenate([found.logp_QK for found in candidates], axis=1)
    heads = [np.zeros(found.logp_QK.shape) if found.head_QK is None else found.head_QK for found in candidates]
    head_QK = np.concatenate(heads, axis=1)
    prior_QK = np.zeros(sid_QK.shape) if prior_log is None else np.concatenate(prior_log, axis=1)
    if all(found.head_QK is None for found in candidates):
        head_weights = (0.0,)
    if prior_log is None:
        prior_weights = (0.0,)
    wanted_QK = items_QK == targets_Q[:, None]
    first_QK = _first_of_each(items_QK)
    tried: dict[tuple[float, float], float] = {}
    for a in head_weights:
        for b in prior_weights:
            score_QK = np.where(items_QK >= 0, sid_QK + a * head_QK + b * prior_QK, -np.inf)
            target_Q1 = np.where(wanted_QK, score_QK, -np.inf).max(axis=1, keepdims=True)
            above_Q = (first_QK & (score_QK > target_Q1)).sum(axis=1)
            ranks_Q = np.where(np.isfinite(target_Q1[:, 0]), above_Q + 1, 0)
            tried[a, b] = means(per_query(ranks_Q, (10,)))["ndcg@10"]
    best = max(tried, key=lambda pair: (tried[pair], -pair[1], -pair[0]))
    return Fusion(*best, tried[best], tried)


def _first_of_each(items_QK: IntArray) -> np.ndarray:
    """True at the first occurrence (Q, K) of each item in its row; False at -1."""
    order_QK = np.argsort(items_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(items_QK, order_QK, 1)
    is_first_QK = np.diff(sorted_QK, axis=1, prepend=-1) != 0
    found_QK = np.zeros(items_QK.shape, dtype=bool)
    np.put_along_axis(found_QK, order_QK, is_first_QK, 1)
    return found_QK
