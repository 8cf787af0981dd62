"""Transitions: how often one item directly followed another."""

from __future__ import annotations

import numpy as np

from genrec.baselines.sparse import Sparse, csr
from genrec.baselines.train_log import TrainLog
from genrec.metrics import FloatArray, IntArray


class Transition:
    """Scores items by how often they directly followed the newest item of the history, ties by popularity."""

    def __init__(self, log: TrainLog) -> None:
        self.counts_NN = following(log, 1)
        self.backoff_N = log.counts_N / (log.counts_N.max() + 1.0)

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N): transition counts plus popularity scaled below 1."""
        last_Q = recent_QH[:, 0]
        scores_QN = self.counts_NN[np.maximum(last_Q, 0)].toarray()
        scores_QN[last_Q < 0] = 0.0
        return scores_QN + self.backoff_N


def following(log: TrainLog, distance: int) -> Sparse:
    """Counts (N, N): how often the column's item is ``distance`` events after the row's item, within one user."""
    same_E = log.users_E[:-distance] == log.users_E[distance:]
    return _counted(log.items_E[:-distance][same_E], log.items_E[distance:][same_E], (log.n_items, log.n_items))


def following_rows(log: TrainLog, distance: int, rows: range, places_E: IntArray) -> Sparse:
    """Some ``rows`` (R, N) of ``following``; a negative ``distance`` counts the items before the row's.

    Args:
        places_E: the places in the log of all events with an item of ``rows``.
    """
    others_E = places_E + distance
    inside_E = (others_E >= 0) & (others_E < len(log.items_E))
    places_E, others_E = places_E[inside_E], others_E[inside_E]
    same_E = log.users_E[places_E] == log.users_E[others_E]
    row_E = log.items_E[places_E[same_E]] - rows.start
    return _counted(row_E, log.items_E[others_E[same_E]], (len(rows), log.n_items))


def _counted(row_E: IntArray, column_E: IntArray, shape: tuple[int, int]) -> Sparse:
    return csr(np.ones(len(row_E)), row_E, column_E, shape)
