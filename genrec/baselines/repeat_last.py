"""Repeat-last: the items of the history again, the newest first."""

from __future__ import annotations

import numpy as np

from genrec.baselines.train_log import TrainLog
from genrec.metrics import FloatArray, IntArray


class RepeatLast:
    """Scores an item by how lately it was in the history; the others by popularity, below these."""

    def __init__(self, log: TrainLog) -> None:
        self.backoff_N = log.counts_N / (log.counts_N.max() + 1.0)

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N): H for the newest item, then H - 1 …, plus popularity scaled below 1."""
        scores_QN = np.broadcast_to(self.backoff_N, (len(recent_QH), len(self.backoff_N))).copy()
        width = recent_QH.shape[1]
        for place in range(width - 1, -1, -1):  # A newer event of the same item overwrites an older one's score.
            rows_Q = np.flatnonzero(recent_QH[:, place] >= 0)
            items_Q = recent_QH[rows_Q, place]
            scores_QN[rows_Q, items_Q] = width - place + self.backoff_N[items_Q]
        return scores_QN
