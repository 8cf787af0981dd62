"""The best items by a baseline's scores.

A history is a row of ``recent_QH``: item rows, newest first, padded with -1. If no train target repeats an earlier item
of its user (``TrainLog.repeat_share`` is 0), repeats are taken to be impossible, and the items of a query's history are
excluded from its ranking: from those of the baselines, and from those of the policy
(``genrec.inference.batch.without_seen``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genrec.metrics import FloatArray, IntArray

CHUNK_BYTES = 32 * 2**20


class Baseline(Protocol):
    """Anything that scores the whole catalogue for a history."""

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N), higher is better, minus infinity for no answer. The result is dense: callers keep Q small."""
        ...


@runtime_checkable
class PersonalBaseline(Baseline, Protocol):
    """One whose scores may depend on who the user is, besides the history."""

    def dense_of(self, users_Q: IntArray, recent_QH: IntArray) -> FloatArray:
        """``dense`` for the histories of these users, numbered as in ``TrainLog.users_E``; -1: not known."""
        ...


def rank(
    baseline: Baseline,
    recent_QH: IntArray,
    k: int,
    *,
    mask_seen: bool,
    users_Q: IntArray | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> NDArray[np.int64]:
    """The k best items of each history, (Q, min(k, N)), best first, padded with -1 where masks leave fewer.

    Args:
        mask_seen: exclude the items of each history.
        users_Q: the users, where they are known.
        chunk_bytes: memory for dense scores and their working copies; it sets how many queries are scored at a time.
    """
    chunks = _chunks(baseline, recent_QH, users_Q, chunk_bytes, mask_seen=mask_seen)
    parts = [_top(scores_CN, k) for _, scores_CN in chunks]
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.int64)


def target_ranks_of(
    baseline: Baseline,
    recent_QH: IntArray,
    targets_Q: IntArray,
    *,
    mask_seen: bool,
    users_Q: IntArray | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> NDArray[np.int64]:
    """Rank (Q,), from 1, of each target among all items, ties to the lower item; 0 for a target without a score.

    Counting what is above a target is faster than ``rank``, which sorts.
    """
    ranks_Q = np.zeros(len(targets_Q), dtype=np.int64)
    for rows, scores_CN in _chunks(baseline, recent_QH, users_Q, chunk_bytes, mask_seen=mask_seen):
        target_C1 = targets_Q[rows, None]
        wanted_C1 = np.take_along_axis(scores_CN, target_C1, axis=1)
        tied_CN = (scores_CN == wanted_C1) & (np.arange(scores_CN.shape[1]) < target_C1)
        above_C = (scores_CN > wanted_C1).sum(axis=1) + tied_CN.sum(axis=1)
        ranks_Q[rows] = np.where(np.isneginf(wanted_C1[:, 0]), 0, 1 + above_C)
    return ranks_Q


def _chunks(
    baseline: Baseline, recent_QH: IntArray, users_Q: IntArray | None, chunk_bytes: int, *, mask_seen: bool
) -> Iterator[tuple[slice, FloatArray]]:
    """Queries of as many rows as ``chunk_bytes`` hold, and their scores (C, N), masked."""
    if not len(recent_QH):
        return
    chunk = max(1, chunk_bytes // max(1, 24 * baseline.dense(recent_QH[:1]).shape[1]))
    for start in range(0, len(recent_QH), chunk):
        rows = slice(start, start + chunk)
        users_C = None if users_Q is None else users_Q[rows]
        yield rows, _masked(_scores(baseline, recent_QH[rows], users_C), recent_QH[rows], mask_seen=mask_seen)


def _scores(baseline: Baseline, recent_CH: IntArray, users_C: IntArray | None) -> FloatArray:
    if users_C is None or not isinstance(baseline, PersonalBaseline):
        return baseline.dense(recent_CH)
    return baseline.dense_of(users_C, recent_CH)


def _masked(scores_CN: FloatArray, recent_CH: IntArray, *, mask_seen: bool) -> FloatArray:
    """The scores, under ``mask_seen`` minus infinity for the items of each history; changed in place."""
    if mask_seen:
        row_CH = np.broadcast_to(np.arange(len(recent_CH))[:, None], recent_CH.shape)
        scores_CN[row_CH[recent_CH >= 0], recent_CH[recent_CH >= 0]] = -np.inf
    return scores_CN


def _top(scores_QN: FloatArray, k: int) -> NDArray[np.int64]:
    """The k best columns of each row, best first, ties to the lower column; -1 for a score of minus infinity."""
    queries, n_items = scores_QN.shape
    k = min(k, n_items)
    border_Q1 = np.partition(scores_QN, n_items - k, axis=1)[:, n_items - k, None]
    kept_QN = scores_QN >= border_Q1
    for row in np.flatnonzero(kept_QN.sum(axis=1) > k):
        tied = np.flatnonzero(scores_QN[row] == border_Q1[row])
        kept_QN[row, tied[k - int(kept_QN[row].sum()) :]] = False
    best_QK = np.nonzero(kept_QN)[1].reshape(queries, k)
    value_QK = np.take_along_axis(scores_QN, best_QK, axis=1)
    order_QK = np.argsort(-value_QK, axis=1, kind="stable")
    ranked_QK = np.take_along_axis(best_QK, order_QK, axis=1)
    return np.where(np.isneginf(np.take_along_axis(value_QK, order_QK, axis=1)), -1, ranked_QK)
