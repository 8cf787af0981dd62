"""Popularity: train events per item, the same list for everyone."""

from __future__ import annotations

import numpy as np

from genrec.baselines.train_log import TrainLog
from genrec.errors import InputError
from genrec.metrics import FloatArray, IntArray


class Popularity:
    """Scores items by their train events among the newest share ``recent`` of the log.

    Raises:
        InputError: ``recent`` outside (0, 1].
    """

    def __init__(self, log: TrainLog, recent: float = 1.0) -> None:
        if not 0.0 < recent <= 1.0:
            raise InputError(f"got recent={recent}; wanted a share of the log's newest events in (0, 1]")
        kept_E = log.times_E >= np.quantile(log.times_E, 1.0 - recent)
        newest_N = np.bincount(log.items_E[kept_E], minlength=log.n_items)
        self.recent = recent
        self.scores_N = popularity_scores(newest_N, log.counts_N)

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N): counts among the newest events; ties go to the item with more events in the whole log."""
        return np.broadcast_to(self.scores_N, (len(recent_QH), len(self.scores_N))).copy()


def popularity_scores(newest_N: IntArray, counts_N: IntArray) -> FloatArray:
    """Scores (N,): counts among the newest events, and below 1 those of the whole log, which settle ties."""
    return newest_N.astype(np.float64) + counts_N / (counts_N.max() + 1.0)
