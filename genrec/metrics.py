"""Hit rate, NDCG and reciprocal rank over the whole catalogue, one value per query, for items and for semantic IDs.

A ranking is an integer array ``ranked_QK``: item rows, best first, padded with -1. A query has one target, whose rank
counts from 1, so

    HR@k = 1 if rank <= k, else 0
    NDCG@k = 1 / log2(1 + rank) if rank <= k, else 0    (the ideal DCG is 1; Järvelin & Kekäläinen 2002)
    MRR@k = 1 / rank if rank <= k, else 0
    Prefix@l@k = 1 if one of the first k items has the first l codes of the target, else 0

With one target, Recall@k is HR@k. Prefix@l@k tells at which level a policy goes wrong: it falls as l grows, and at
l = L it is HR@k of semantic IDs that no items share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from genrec.errors import InputError

KS = (1, 3, 5, 10, 20, 50)

IntArray = NDArray[np.integer]
FloatArray = NDArray[np.floating]


def target_ranks(ranked_QK: IntArray, targets_Q: IntArray) -> NDArray[np.int64]:
    """Rank (Q,), from 1, of each target in its ranking; 0 where the target is missing.

    Raises:
        InputError: shapes that do not fit, or a negative target.
    """
    _check(ranked_QK, targets_Q)
    if ranked_QK.shape[1] == 0:
        return np.zeros(len(targets_Q), dtype=np.int64)
    found_QK = ranked_QK == targets_Q[:, None]
    return np.where(found_QK.any(axis=1), found_QK.argmax(axis=1) + 1, 0).astype(np.int64)


def sid_ranking(ranked_QK: IntArray, sid_of_item_N: IntArray) -> NDArray[np.int64]:
    """The ranking (Q, K) with items replaced by the numbers of their SIDs, each SID once, at its best rank.

    ``sid_of_item_N``: the number of each item's SID, see ``sid_numbers``. Padded with -1.
    """
    sids_QK = np.where(ranked_QK >= 0, sid_of_item_N[np.maximum(ranked_QK, 0)], -1).astype(np.int64)
    order_QK = np.argsort(sids_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(sids_QK, order_QK, axis=1)
    first_QK = np.ones_like(sorted_QK, dtype=bool)
    first_QK[:, 1:] = sorted_QK[:, 1:] != sorted_QK[:, :-1]
    keep_QK = np.zeros_like(first_QK)
    np.put_along_axis(keep_QK, order_QK, first_QK & (sorted_QK >= 0), axis=1)
    front_QK = np.argsort(~keep_QK, axis=1, kind="stable")
    return np.where(np.take_along_axis(keep_QK, front_QK, axis=1), np.take_along_axis(sids_QK, front_QK, axis=1), -1)


def sid_target_ranks(ranked_QK: IntArray, targets_Q: IntArray, sid_of_item_N: IntArray) -> NDArray[np.int64]:
    """Rank (Q,), from 1, of the target's SID among the distinct SIDs of the ranking; 0 where it is missing."""
    _check(ranked_QK, targets_Q)
    return target_ranks(sid_ranking(ranked_QK, sid_of_item_N), sid_of_item_N[targets_Q])


def sid_numbers(codes_NL: IntArray) -> NDArray[np.int64]:
    """Numbers (N,), from 0, of the SIDs ``codes_NL``: equal SIDs have equal numbers."""
    return np.unique(codes_NL, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def prefix_ranks(ranked_QK: IntArray, targets_Q: IntArray, codes_NL: IntArray) -> NDArray[np.int64]:
    """Rank (Q, L), from 1, of the first item whose first l = 1 … L codes are those of the target; 0 where none is.

    ``codes_NL``: each item's semantic ID, coarse to fine.
    """
    _check(ranked_QK, targets_Q)
    ranks_QL = np.zeros((len(targets_Q), codes_NL.shape[1]), dtype=np.int64)
    if ranked_QK.shape[1] == 0:
        return ranks_QL
    same_QK = ranked_QK >= 0
    rows_QK = np.maximum(ranked_QK, 0)
    for level, code_N in enumerate(codes_NL.T):
        same_QK &= code_N[rows_QK] == code_N[targets_Q][:, None]
        ranks_QL[:, level] = np.where(same_QK.any(axis=1), same_QK.argmax(axis=1) + 1, 0)
    return ranks_QL


def prefix_per_query(ranks_QL: IntArray, ks: Sequence[int] = KS) -> dict[str, FloatArray]:
    """``{"prefix@l@k": (Q,)}`` for every level l = 1 … L and every k, from the result of ``prefix_ranks``."""
    return {
        f"prefix@{level}@{k}": ((ranks_Q > 0) & (ranks_Q <= k)).astype(np.float64)
        for k in ks
        for level, ranks_Q in enumerate(ranks_QL.T, start=1)
    }


def per_query(ranks_Q: IntArray, ks: Sequence[int] = KS) -> dict[str, FloatArray]:
    """``{"hr@k": (Q,), "ndcg@k": (Q,), "mrr@k": (Q,)}`` for every k, from ranks (1 is best, 0 is missing)."""
    found_Q = ranks_Q > 0
    gain_Q = np.where(found_Q, 1.0 / np.log2(1.0 + np.maximum(ranks_Q, 1)), 0.0)
    values: dict[str, FloatArray] = {}
    for k in ks:
        inside_Q = found_Q & (ranks_Q <= k)
        values[f"hr@{k}"] = inside_Q.astype(np.float64)
        values[f"ndcg@{k}"] = np.where(inside_Q, gain_Q, 0.0)
        values[f"mrr@{k}"] = np.where(inside_Q, 1.0 / np.maximum(ranks_Q, 1), 0.0)
    return values


def means(values: Mapping[str, FloatArray]) -> dict[str, float]:
    """The mean of each per-query vector; 0 for an empty one."""
    return {name: float(vector.mean()) if vector.size else 0.0 for name, vector in values.items()}


def measure(ranked_QK: IntArray, targets_Q: IntArray, ks: Sequence[int] = KS) -> dict[str, float]:
    """Item-level HR@k, NDCG@k and MRR@k of a ranking, averaged over its queries."""
    return means(per_query(target_ranks(ranked_QK, targets_Q), ks))


def _check(ranked_QK: IntArray, targets_Q: IntArray) -> None:
    if ranked_QK.ndim != 2 or targets_Q.ndim != 1 or len(ranked_QK) != len(targets_Q):
        raise InputError(
            f"got rankings of shape {ranked_QK.shape} and targets of shape {targets_Q.shape}, which do not fit; "
            "wanted (queries, k) and (queries,)"
        )
    if targets_Q.size and int(targets_Q.min()) < 0:
        raise InputError(f"a target is {int(targets_Q.min())}; wanted item rows from 0")
