"""Item-based nearest neighbours on sequences, with all settings that make them strong open to tuning.

Similarity of a history item i to a candidate j (Deshpande & Karypis 2004; Ludewig & Jannach 2018 for order and decay):

    F[i, j] = Σ d^-distance_decay over all pairs of train events of one user with j d events after i, d <= window
    C[i, j] = F[i, j] + backward · F[j, i]
    S[i, j] = C[i, j] / (n_i^source_power · n_j^target_power + shrink), times self_weight where i = j
    score(j) = Σ_h (h + 1)^-recency_decay · S[history_h, j], h = 0 for the newest item

with n_i the train events of item i. The diagonal of S is what recommends an item again; each row of S keeps its
``neighbours`` largest entries. Ranking adds ``popularity`` · log(1 + n_j) / max_i log(1 + n_i) to the score.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from genrec.baselines.sparse import Sparse, csr, keep_largest, row_of_entry, stacked_on_disk
from genrec.baselines.train_log import TrainLog
from genrec.baselines.transitions import following, following_rows
from genrec.data.files import write_json
from genrec.data.matrix_files import map_matrix, write_matrix
from genrec.errors import InputError
from genrec.metrics import FloatArray, IntArray

MAX_WINDOW = 10

SETTINGS, BACKOFF = "settings.json", "backoff.npy"
"""Files of an ItemKNN beside those of its matrix."""

KEPT_PAIRS = 1 << 23
"""Pairs of events that are counted in one go, and kept if there are no more: about 100 MB of counts."""


@dataclass(frozen=True)
class KnnSettings:
    """The settings of ItemKNN that are tuned; see the module's formulas."""

    window: int = 5
    distance_decay: float = 1.0  # of pairs d events apart: d ** -distance_decay
    backward: float = 0.5  # weight of "j before i", where "j after i" has 1
    source_power: float = 0.25  # both powers 0.5 and shrink 0: the cosine
    target_power: float = 0.25
    shrink: float = 10.0
    self_weight: float = 1.0
    recency_decay: float = 1.0  # weight of history item h (0: newest): (h + 1) ** -recency_decay
    neighbours: int = 500  # kept per item
    popularity: float = 1e-3  # weight of popularity, small: it orders items without a score

    def __post_init__(self) -> None:
        if not 1 <= self.window <= MAX_WINDOW or self.neighbours < 1 or self.popularity <= 0:
            raise InputError(
                f"got {self}; wanted window in 1..{MAX_WINDOW}, neighbours of at least 1 and popularity above 0"
            )


class Pairs:
    """Ordered co-occurrence counts of a train log: a sparse (N, N) matrix per distance 1 … ``window``.

    Together they have about ``window`` entries for each event. Where that is few enough, all are counted once for all
    settings; otherwise they are counted for some rows at a time, whenever these are needed, and never kept.
    """

    def __init__(self, log: TrainLog, window: int = MAX_WINDOW) -> None:
        self.counts_N = log.counts_N.astype(np.float64)
        self._log, self._kept = log, list[Sparse]()
        self._ends_N = np.append(0, np.cumsum(log.counts_N))
        self._places_E = np.zeros(0, np.int32)
        if len(log.items_E) * window <= KEPT_PAIRS:
            self._kept = [following(log, distance) for distance in range(1, window + 1)]
        else:  # the places of each item's events
            self._places_E = np.argsort(log.items_E, kind="stable").astype(np.int32)

    @property
    def is_kept(self) -> bool:
        """Whether all pairs are in memory, so that all rows are one block."""
        return bool(self._kept)

    def blocks(self) -> Iterator[range]:
        """The rows, in ranges whose pairs fit in memory together: about ``KEPT_PAIRS``, but at least one row."""
        start, items = 0, len(self.counts_N)
        if self._kept:
            yield range(items)
            return
        while start < items:
            most = self._ends_N[start] + KEPT_PAIRS // MAX_WINDOW
            end = max(start + 1, int(np.searchsorted(self._ends_N, most, side="right")) - 1)
            yield range(start, end)
            start = end

    def weighted(self, settings: KnnSettings, rows: range) -> Sparse:
        """C of the module's formulas: the ``rows`` of a block, (R, N)."""
        forward = self._sum(settings, rows, 1)
        if not settings.backward:
            return forward.tocsr()
        backward = forward.T if self._kept else self._sum(settings, rows, -1)
        return (forward + backward * settings.backward).tocsr()

    def _sum(self, settings: KnnSettings, rows: range, direction: int) -> Sparse:
        """The weighted sum over all distances of how often the column's item is after (1) or before (-1) the row's."""
        total: Sparse = None
        for distance in range(1, settings.window + 1):
            weighted = self._counts(rows, direction * distance) * distance**-settings.distance_decay
            total = weighted if total is None else total + weighted
        return total

    def _counts(self, rows: range, distance: int) -> Sparse:
        if self._kept:
            return self._kept[distance - 1]
        places_E = self._places_E[self._ends_N[rows.start] : self._ends_N[rows.stop]]
        return following_rows(self._log, distance, rows, places_E)


@dataclass(frozen=True, eq=False)
class ItemKNN:
    """Neighbour scores for histories; see the module's formulas. Scores stay sparse until they are ranked.

    ``similarity_NN`` is S; ``backoff_N`` the term of popularity.
    """

    settings: KnnSettings
    similarity_NN: Sparse
    backoff_N: FloatArray

    def write(self, folder: Path) -> None:
        """Put it into files of a new ``folder``, for ``map_itemknn``."""
        write_matrix(self.similarity_NN, folder)
        np.save(folder / BACKOFF, self.backoff_N)
        write_json(asdict(self.settings), folder / SETTINGS)

    def grown(self, items: int, near_MX: IntArray | None) -> ItemKNN:
        """The same for a catalogue of ``items`` items, of which the last M are new, or for its first ``items`` items.

        A new item is scored, and counts in a history, as the mean of the X known items that are most like it
        (similarity of texts times co-occurrence, as in STAR, Lee et al. 2024, 2410.16458): ``near_MX``. Without these
        it neither gets a score nor gives any.
        """
        known = len(self.backoff_N)
        if items == known:
            return self
        if items < known:
            return ItemKNN(self.settings, self.similarity_NN[:items, :items].tocsr(), self.backoff_N[:items])
        near_MX = np.zeros((items - known, 0), dtype=np.int64) if near_MX is None else near_MX
        new_MX = np.broadcast_to(np.arange(known, items)[:, None], near_MX.shape)
        rows_E, columns_E = (np.concatenate([np.arange(known), new.ravel()]) for new in (new_MX, near_MX))
        values_E = np.concatenate([np.ones(known), np.full(near_MX.size, 1 / max(1, near_MX.shape[1]))])
        like_NK = csr(values_E, rows_E, columns_E, (items, known))
        similarity_NN = (like_NK @ self.similarity_NN @ like_NK.T).tocsr()
        return ItemKNN(self.settings, similarity_NN, like_NK @ self.backoff_N)

    def scores(self, recent_QH: IntArray) -> Sparse:
        """Scores (Q, N), sparse, without the popularity term: what a prior for a policy is made from.

        ``recent_QH``: item rows, newest first, padded with -1.
        """
        weight_H = (np.arange(recent_QH.shape[1]) + 1.0) ** -self.settings.recency_decay
        inside_QH = recent_QH >= 0
        query_QH = np.broadcast_to(np.arange(len(recent_QH))[:, None], recent_QH.shape)
        value_QH = np.broadcast_to(weight_H, recent_QH.shape)
        shape = (len(recent_QH), self.similarity_NN.shape[0])
        history_QN = csr(value_QH[inside_QH], query_QH[inside_QH], recent_QH[inside_QH], shape)
        return (history_QN @ self.similarity_NN).tocsr()

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N) with the popularity term."""
        return self.scores(recent_QH).toarray() + self.backoff_N


def fit_itemknn(pairs: Pairs, settings: KnnSettings) -> ItemKNN:
    """The ItemKNN of a log's pairs.

    Of a log whose pairs are counted for some rows at a time, S lies in temporary files: a few kilobytes per item.
    """
    blocks = (keep_largest(_similarity(pairs, settings, rows), settings.neighbours) for rows in pairs.blocks())
    similarity_NN = next(blocks) if pairs.is_kept else stacked_on_disk(blocks, len(pairs.counts_N))
    popularity_N = np.log1p(pairs.counts_N)
    return ItemKNN(settings, similarity_NN, settings.popularity * popularity_N / max(1.0, float(popularity_N.max())))


def map_itemknn(folder: Path) -> ItemKNN:
    """The one that ``ItemKNN.write`` put there; S stays on the disk, of which a score reads some rows."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    backoff_N = np.load(folder / BACKOFF)
    return ItemKNN(KnnSettings(**settings), map_matrix(folder, len(backoff_N)), backoff_N)


def cross_fitted(log: TrainLog, fold_U: IntArray, folds: int, settings: KnnSettings | None = None) -> list[ItemKNN]:
    """For each fold, the ItemKNN (with default settings, or these) that has seen the users of the other folds alone.

    A user who is scored by the one of its own fold is scored by what others did: an ItemKNN that had counted the step
    from the user's own history to its next item would give that item away.

    Args:
        fold_U: the fold of each user, 0 … ``folds`` - 1.
    """
    fold_E = fold_U[log.users_E]
    kept = (fold_E != fold for fold in range(folds))
    others = (TrainLog(log.items_E[E], log.users_E[E], log.times_E[E], log.n_items) for E in kept)
    return [fit_itemknn(Pairs(other), settings or KnnSettings()) for other in others]


def _similarity(pairs: Pairs, settings: KnnSettings, rows: range) -> Sparse:
    """The ``rows`` (R, N) of S, with all neighbours."""
    similar_RN = pairs.weighted(settings, rows)
    size_N = np.maximum(pairs.counts_N, 1.0)
    row_E, column_E = row_of_entry(similar_RN) + rows.start, similar_RN.indices
    scale_E = (size_N**settings.source_power)[row_E] * (size_N**settings.target_power)[column_E]
    value_E = similar_RN.data / (scale_E + settings.shrink)
    similar_RN.data = np.where(row_E == column_E, value_E * settings.self_weight, value_E)
    similar_RN.eliminate_zeros()
    return similar_RN
