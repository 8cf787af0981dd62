"""STAR (Lee et al. 2024, 2410.16458): neighbours by text and by co-occurrence, without training.

    score(j) = Σ_h decay^h · (text · max(0, cos(v_h, v_j)) + (1 - text) · |U_h ∩ U_j| / sqrt(|U_h| |U_j|))     eq. 1-2

over the history's items h = 0, 1, … from the newest, with v an item's text vector and U the users who had it. With
``text`` 1 it knows no user, so it serves items that nobody has had (the cold-start baseline ``text``). Each item's
``neighbours`` most similar texts count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrec.baselines.sparse import Sparse, csr
from genrec.baselines.train_log import TrainLog
from genrec.errors import InputError
from genrec.metrics import FloatArray, IntArray

NEIGHBOURS = 500
"""Text neighbours kept for each item; the others' cosines count as 0."""

CHUNK = 1024
"""Items whose cosines to all others are held at a time."""


@dataclass(frozen=True)
class StarSettings:
    """``text``: weight of the text's cosines beside co-occurrence; ``decay``: of an item per newer one after it."""

    text: float = 0.5
    decay: float = 0.7

    def __post_init__(self) -> None:
        if not (0 <= self.text <= 1 and 0 < self.decay <= 1):
            raise InputError(f"got {self}; wanted text in [0, 1] and decay in (0, 1]")


@dataclass(frozen=True)
class Similarities:
    """Sparse (N, N): cosines of texts, and of the sets of users; and popularity (N,), below every score of either."""

    text_NN: Sparse
    users_NN: Sparse
    backoff_N: FloatArray

    @classmethod
    def of(cls, log: TrainLog, vectors_ND: FloatArray) -> Similarities:
        """From the train log and the items' text vectors (N, D)."""
        return cls(text_neighbours(vectors_ND), user_cosines(log), 1e-6 * log.counts_N / max(1, log.counts_N.max()))


def text_neighbours(vectors_ND: FloatArray, neighbours: int = NEIGHBOURS) -> Sparse:
    """Positive cosines (N, N) of each item's nearest items, itself left out, sparse."""
    count = len(vectors_ND)
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = (vectors_ND / np.maximum(length_N1, 1e-12)).astype(np.float32)
    kept = min(neighbours, count - 1)
    rows, columns, values = [], [], []
    for start in range(0, count, CHUNK):
        cosine_CN = unit_ND[start : start + CHUNK] @ unit_ND.T
        row_C = np.arange(len(cosine_CN))
        cosine_CN[row_C, start + row_C] = -np.inf
        best_CK = np.argpartition(-cosine_CN, kept - 1, axis=1)[:, :kept]
        value_CK = np.take_along_axis(cosine_CN, best_CK, axis=1)
        good_CK = value_CK > 0
        rows.append(np.repeat(start + row_C, kept)[good_CK.ravel()])
        columns.append(best_CK[good_CK])
        values.append(value_CK[good_CK].astype(np.float64))
    return csr(np.concatenate(values), np.concatenate(rows), np.concatenate(columns), (count, count))


def user_cosines(log: TrainLog) -> Sparse:
    """|U_i ∩ U_j| / sqrt(|U_i| |U_j|), (N, N), sparse; 0 where i = j."""
    pairs = np.unique(log.users_E * np.int64(log.n_items) + log.items_E)
    users_E, items_E = pairs // log.n_items, pairs % log.n_items
    had_UN = csr(np.ones(len(pairs)), users_E, items_E, (int(users_E.max()) + 1, log.n_items))
    both_NN = (had_UN.T @ had_UN).tocoo()
    size_N = np.bincount(items_E, minlength=log.n_items)
    other_E = both_NN.row != both_NN.col
    row_E, column_E = both_NN.row[other_E], both_NN.col[other_E]
    value_E = both_NN.data[other_E] / np.sqrt(size_N[row_E] * size_N[column_E])
    return csr(value_E, row_E, column_E, both_NN.shape)


class Star:
    """See the module's formula."""

    def __init__(self, similarities: Similarities, settings: StarSettings) -> None:
        self.settings, self._backoff_N = settings, similarities.backoff_N
        text = settings.text
        self._similarity_NN = (similarities.text_NN * text + similarities.users_NN * (1 - text)).tocsr()

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N)."""
        weight_H = self.settings.decay ** np.arange(recent_QH.shape[1])
        inside_QH = recent_QH >= 0
        query_QH = np.broadcast_to(np.arange(len(recent_QH))[:, None], recent_QH.shape)
        value_QH = np.broadcast_to(weight_H, recent_QH.shape)
        shape = (len(recent_QH), self._similarity_NN.shape[0])
        history_QN = csr(value_QH[inside_QH], query_QH[inside_QH], recent_QH[inside_QH], shape)
        return (history_QN @ self._similarity_NN).toarray() + self._backoff_N
