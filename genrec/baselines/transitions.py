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
    before_E, after_E = log.items_E[:-distance][same_E], log.items_E[distance:][same_E]
    ones_E = np.ones(len(before_E), dtype=np.float64)
    return csr(ones_E, before_E, after_E, (log.n_items, log.n_items))
