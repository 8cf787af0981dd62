"""Recommenders without a network: what every model has to beat.

All of them learn from train positions alone. A history is a row of ``recent_QH``: item rows, newest first,
padded with -1. Whether an item may be recommended again is read off the train log: where no train target
repeats an earlier item of its user, repeats are taken to be impossible and seen items are masked for the
baselines. (The generative model gets no such mask; it must learn it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.baselines.sparse import Sparse, csr
from genrec.errors import InputError
from genrec.evaluation.metrics import FloatArray, IntArray

CONTEXT, TRAIN = 0, 1
CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class TrainLog:
    """The train part of all users' sequences, laid end to end: E events, oldest first within a user."""

    items_E: NDArray[np.int64]
    users_E: NDArray[np.int64]
    times_E: NDArray[np.int64]
    n_items: int

    @property
    def counts_N(self) -> NDArray[np.int64]:
        """Train events per item."""
        return np.bincount(self.items_E, minlength=self.n_items)

    @property
    def repeat_share(self) -> float:
        """Share of train targets that the same user had touched before (a user's first event is no target)."""
        if self.items_E.size == 0:
            return 0.0
        distinct = np.unique(self.users_E * self.n_items + self.items_E).size
        users = np.unique(self.users_E).size
        targets = self.items_E.size - users
        return (self.items_E.size - distinct) / targets if targets else 0.0


def train_log(sequences: pa.Table, n_items: int) -> TrainLog:
    """The events that train rows show: each user's context and train positions up to the last train target.

    ``sequences`` has the columns ``items`` and ``split`` (0 context, 1 train, 2 valid, 3 test), and may have
    ``times``; without it an event's time is its position. A user without a train target adds nothing.
    Raises InputError when no train target exists or an item is not in the catalogue.
    """
    items_E, lengths_U = _flat(sequences, "items")
    split_E, split_lengths_U = _flat(sequences, "split")
    if not np.array_equal(lengths_U, split_lengths_U):
        raise InputError("sequences: the columns items and split differ in length; run prepare again")
    users_E = np.repeat(np.arange(len(lengths_U)), lengths_U)
    position_E = np.arange(len(items_E)) - np.repeat(np.cumsum(lengths_U) - lengths_U, lengths_U)
    last_U = np.full(len(lengths_U), -1)
    is_train_E = split_E == TRAIN
    np.maximum.at(last_U, users_E[is_train_E], position_E[is_train_E])
    keep_E = (position_E <= last_U[users_E]) & (split_E <= TRAIN)
    if not keep_E.any():
        raise InputError("sequences hold no train position (split code 1); the baselines need a train split")
    low, high = int(items_E.min()), int(items_E.max())
    if low < 0 or high >= n_items:
        raise InputError(f"sequences hold item {low if low < 0 else high}; the catalogue has rows 0 to {n_items - 1}")
    times_E = _flat(sequences, "times")[0] if "times" in sequences.column_names else position_E
    return TrainLog(items_E[keep_E], users_E[keep_E], times_E[keep_E], n_items)


def recent_history(queries: pa.Table, max_history: int) -> NDArray[np.int64]:
    """The ``history`` column as ``recent_QH``: at most ``max_history`` items, newest first, padded with -1."""
    items_E, lengths_Q = _flat(queries, "history")
    ends_Q = np.cumsum(lengths_Q)
    place_QH = ends_Q[:, None] - 1 - np.arange(max_history)[None, :]
    inside_QH = np.arange(max_history)[None, :] < lengths_Q[:, None]
    if items_E.size == 0:
        return np.full(inside_QH.shape, -1, dtype=np.int64)
    return np.where(inside_QH, items_E[np.maximum(place_QH, 0)], -1)


class Baseline(Protocol):
    """Anything that scores the whole catalogue for a history."""

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N), higher is better. Callers keep Q small: the result is dense."""
        ...


class Popularity:
    """Train events per item, the same for everyone. ``recent`` counts only that share of the newest events."""

    def __init__(self, log: TrainLog, recent: float = 1.0) -> None:
        if not 0.0 < recent <= 1.0:
            raise InputError(f"recent is {recent}; a share of the log's newest events in (0, 1] was expected")
        kept_E = log.times_E >= np.quantile(log.times_E, 1.0 - recent)
        counts_N = np.bincount(log.items_E[kept_E], minlength=log.n_items).astype(np.float64)
        self.recent = recent
        self.scores_N = counts_N + log.counts_N / (log.counts_N.max() + 1.0)

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N): counts in the window; ties go to the item with more events in the whole log."""
        return np.broadcast_to(self.scores_N, (len(recent_QH), len(self.scores_N))).copy()


class Transition:
    """How often an item directly followed the history's newest item; popularity where nothing is known."""

    def __init__(self, log: TrainLog) -> None:
        self.counts_NN = following(log, 1)
        self.backoff_N = log.counts_N / (log.counts_N.max() + 1.0)

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N): transition counts, with popularity (below 1) added."""
        last_Q = recent_QH[:, 0]
        scores_QN = self.counts_NN[np.maximum(last_Q, 0)].toarray()
        scores_QN[last_Q < 0] = 0.0
        return scores_QN + self.backoff_N


def following(log: TrainLog, distance: int) -> Sparse:
    """Counts (N, N): how often column's item came ``distance`` events after row's item, of the same user."""
    same_E = log.users_E[:-distance] == log.users_E[distance:]
    before_E, after_E = log.items_E[:-distance][same_E], log.items_E[distance:][same_E]
    ones_E = np.ones(len(before_E), dtype=np.float64)
    return csr(ones_E, before_E, after_E, (log.n_items, log.n_items))


def rank(
    baseline: Baseline, recent_QH: IntArray, k: int, *, mask_seen: bool, chunk_bytes: int = CHUNK_BYTES
) -> NDArray[np.int64]:
    """The k best items of each history, (Q, min(k, N)), best first, padded with -1 where masks leave fewer.

    Dense scores are made for as many queries at a time as fit ``chunk_bytes`` (scores and working copies).
    """
    n_items = baseline.dense(recent_QH[:1]).shape[1] if len(recent_QH) else 0
    chunk = max(1, chunk_bytes // max(1, 24 * n_items))
    parts = [np.zeros((0, min(k, n_items)), dtype=np.int64)]
    for start in range(0, len(recent_QH), chunk):
        recent_CH = recent_QH[start : start + chunk]
        scores_CN = baseline.dense(recent_CH)
        if mask_seen:
            row_CH = np.broadcast_to(np.arange(len(recent_CH))[:, None], recent_CH.shape)
            scores_CN[row_CH[recent_CH >= 0], recent_CH[recent_CH >= 0]] = -np.inf
        parts.append(_top(scores_CN, k))
    return np.concatenate(parts)


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


def _flat(table: pa.Table, column: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A list column's values end to end, and each row's length."""
    if column not in table.column_names:
        raise InputError(f"the table has columns {table.column_names}, {column!r} was expected; run prepare again")
    lists = table.column(column).combine_chunks()
    array = cast("pa.ListArray", lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists)
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    if array.null_count or array.flatten().null_count:
        raise InputError(f"the column {column!r} holds nulls; every sequence needs its {column}")
    return array.flatten().to_numpy(zero_copy_only=False).astype(np.int64), np.diff(offsets).astype(np.int64)
