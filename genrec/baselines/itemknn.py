"""Item-based nearest neighbours on sequences, with everything that makes them strong left to tune.

Similarity of a history item i to a candidate j (Deshpande & Karypis 2004; Ludewig & Jannach 2018 for order and decay):

    C[i, j] = sum over train pairs of w(distance), pairs against the order of time weighted by ``backward``
    S[i, j] = C[i, j] / (n_i^source_power * n_j^target_power + shrink)

and a candidate's score is the sum of S over the history, the newest item counting most. The diagonal of S is
what a repeat purchase lives from; ``self_weight`` scales it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrec.baselines.sparse import Sparse, csr, keep_largest
from genrec.baselines.train_log import TrainLog
from genrec.baselines.transitions import following
from genrec.errors import InputError
from genrec.metrics import FloatArray, IntArray

MAX_WINDOW = 10


@dataclass(frozen=True)
class KnnSettings:
    """What ItemKNN's tuning chooses. Pairs at most ``window`` events apart count."""

    window: int = 5
    distance_decay: float = 1.0  # w(d) = d ** -distance_decay
    backward: float = 0.5  # weight of "j came before i" beside "j came after i"
    source_power: float = 0.25  # both powers 0.5: the cosine
    target_power: float = 0.25
    shrink: float = 10.0
    self_weight: float = 1.0
    recency_decay: float = 1.0  # history item h (0 = newest) weighs (h + 1) ** -recency_decay
    neighbours: int = 500  # kept per item
    popularity: float = 1e-3  # of log(1 + count), scaled to at most 1: orders items without a neighbour's vote

    def __post_init__(self) -> None:
        if not 1 <= self.window <= MAX_WINDOW or self.neighbours < 1 or self.popularity <= 0:
            raise InputError(
                f"{self}: window must lie in 1..{MAX_WINDOW}, neighbours be at least 1 and popularity above 0"
            )


class Pairs:
    """Ordered co-occurrence counts of a train log: one sparse (N, N) matrix per distance, for all settings."""

    def __init__(self, log: TrainLog, window: int = MAX_WINDOW) -> None:
        self.counts_N = log.counts_N.astype(np.float64)
        self.at_distance = [following(log, distance) for distance in range(1, window + 1)]

    def weighted(self, settings: KnnSettings) -> Sparse:
        """C (N, N) of the module's formula."""
        total = self.at_distance[0] * 0.0
        for distance, counts in enumerate(self.at_distance[: settings.window], start=1):
            total = total + counts * distance**-settings.distance_decay
        return (total + total.T * settings.backward).tocsr() if settings.backward else total.tocsr()


class ItemKNN:
    """Neighbour scores for histories; see the module's formula. Scores stay sparse until they are ranked."""

    def __init__(self, pairs: Pairs, settings: KnnSettings) -> None:
        self.settings = settings
        self.similarity_NN = keep_largest(_similarity(pairs, settings), settings.neighbours)
        popularity_N = np.log1p(pairs.counts_N)
        self.backoff_N = settings.popularity * popularity_N / max(1.0, float(popularity_N.max()))

    def scores(self, recent_QH: IntArray) -> Sparse:
        """Similarity sums (Q, N), sparse, without the popularity term: the prior on the trie."""
        weight_H = (np.arange(recent_QH.shape[1]) + 1.0) ** -self.settings.recency_decay
        inside_QH = recent_QH >= 0
        query_QH = np.broadcast_to(np.arange(len(recent_QH))[:, None], recent_QH.shape)
        value_QH = np.broadcast_to(weight_H, recent_QH.shape)
        shape = (len(recent_QH), self.similarity_NN.shape[0])
        history_QN = csr(value_QH[inside_QH], query_QH[inside_QH], recent_QH[inside_QH], shape)
        return (history_QN @ self.similarity_NN).tocsr()

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N): similarity sums with the popularity term added."""
        return self.scores(recent_QH).toarray() + self.backoff_N


def _similarity(pairs: Pairs, settings: KnnSettings) -> Sparse:
    counts_NN = pairs.weighted(settings).tocoo()
    size_N = np.maximum(pairs.counts_N, 1.0)
    scale_E = size_N[counts_NN.row] ** settings.source_power * size_N[counts_NN.col] ** settings.target_power
    value_E = counts_NN.data / (scale_E + settings.shrink)
    value_E = np.where(counts_NN.row == counts_NN.col, value_E * settings.self_weight, value_E)
    similar_NN = csr(value_E, counts_NN.row, counts_NN.col, counts_NN.shape)
    similar_NN.eliminate_zeros()
    return similar_NN
