"""Baselines tuned on validation NDCG@10, as a model's own settings are: an untuned baseline is no baseline.

ItemKNN is tuned by coordinate ascent on a grid: one setting at a time, in each direction as long as NDCG@10 rises,
until no step helps or ``budget`` settings have been tried. The ranks are exact and counted on sparse scores: the
cost of a setting does not grow with the size of the catalogue.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.baselines.coordinate_ascent import coordinate_ascent
from genrec.baselines.itemknn import ItemKNN, KnnSettings, Pairs, fit_itemknn
from genrec.baselines.popularity import Popularity
from genrec.baselines.ranking import Baseline, rank
from genrec.baselines.sparse import Sparse, distinct_pairs, mask_seen_items, row_of_entry, values_at
from genrec.baselines.train_log import TrainLog, recent_history, train_log
from genrec.baselines.transitions import Transition
from genrec.metrics import IntArray, measure, per_query

BUDGET = 40
"""ItemKNN settings that are tried at most."""

MAX_QUERIES = 5000
"""Validation queries that tuning uses at most."""

RECENT_SHARES = (1.0, 0.5, 0.2, 0.1, 0.05)

GRID: Mapping[str, Sequence[float]] = {
    "target_power": (0.0, 0.25, 0.5, 0.75, 1.0),
    "backward": (0.0, 0.25, 0.5, 0.75, 1.0),
    "recency_decay": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
    "source_power": (0.0, 0.25, 0.5, 0.75, 1.0),
    "window": (1, 2, 3, 5, 8, 10),
    "shrink": (0.0, 2.0, 5.0, 10.0, 30.0, 100.0),
    "self_weight": (0.0, 0.5, 1.0, 2.0, 4.0),
    "distance_decay": (0.0, 0.5, 1.0, 2.0),
    "popularity": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    "neighbours": (20, 100, 500, 2000),
}


@dataclass(frozen=True)
class BaselineSuite:
    """The fitted baselines by name, the settings of each, and whether items of a query's history are excluded.

    ``mask_seen`` is explained in ``genrec.baselines.ranking``.
    """

    log: TrainLog
    models: Mapping[str, Baseline]
    settings: Mapping[str, Mapping[str, float]]
    mask_seen: bool

    def rank(self, recent_QH: IntArray, k: int) -> dict[str, NDArray[np.int64]]:
        """Per baseline the k best items (Q, k) of each history, best first."""
        return {name: rank(model, recent_QH, k, mask_seen=self.mask_seen) for name, model in self.models.items()}

    @property
    def itemknn(self) -> ItemKNN:
        """The tuned ItemKNN, whose scores are the prior that a policy is served with."""
        knn = self.models["itemknn"]
        assert isinstance(knn, ItemKNN)
        return knn

    def refitted(self, sequences: pa.Table | Iterable[pa.Table]) -> BaselineSuite:
        """ItemKNN alone, with the same settings, trained on other ``sequences`` of the same items."""
        log = train_log(sequences, self.log.n_items)
        return replace(self, log=log, models={"itemknn": fit_itemknn(Pairs(log), self.itemknn.settings)})

    def scores(self, recent_QH: IntArray) -> Sparse:
        """ItemKNN's scores (Q, N), without those of the history's items under ``mask_seen``."""
        scores = self.itemknn.scores(recent_QH)
        return mask_seen_items(scores, recent_QH) if self.mask_seen else scores


def fit_baselines(
    sequences: pa.Table | Iterable[pa.Table],
    valid: pa.Table,
    n_items: int,
    max_history: int,
    *,
    seed: int = 0,
    budget: int = BUDGET,
) -> BaselineSuite:
    """Popularity, transition counts and ItemKNN: trained on train positions, tuned on the ``valid`` queries.

    Args:
        sequences: see ``train_log``.
        valid: columns ``history`` and ``target``.
        n_items: N; items are rows 0 … N - 1.
        max_history: items of a history that are used, its last ones.
        seed: of the sample of queries that ItemKNN is tuned on.
        budget: ItemKNN settings that are tried at most.
    """
    log = train_log(sequences, n_items)
    mask_seen = log.mask_seen
    recent_QH = recent_history(valid, max_history)
    targets_Q = valid.column("target").to_numpy().astype(np.int64)
    popularity = tune_popularity(log, recent_QH, targets_Q, mask_seen=mask_seen)
    tuned = tune_itemknn(log, recent_QH, targets_Q, mask_seen=mask_seen, seed=seed, budget=budget)
    models = {"popularity": popularity, "transition": Transition(log), "itemknn": tuned.knn}
    settings = {"popularity": {"recent": popularity.recent}, "transition": {}, "itemknn": tuned.as_dict()}
    return BaselineSuite(log, models, settings, mask_seen)


@dataclass(frozen=True)
class TunedKnn:
    """An ItemKNN with the best settings found, their validation NDCG@10, how many were tried, and the seconds."""

    knn: ItemKNN
    ndcg: float
    tried: int
    seconds: float

    def as_dict(self) -> dict[str, float]:
        """The settings and the figures of the tuning, for a report."""
        figures = {"valid_ndcg@10": self.ndcg, "tried": self.tried, "seconds": round(self.seconds, 2)}
        return {**asdict(self.knn.settings), **figures}


def tune_itemknn(
    log: TrainLog, recent_QH: IntArray, targets_Q: IntArray, *, mask_seen: bool, seed: int = 0, budget: int = BUDGET
) -> TunedKnn:
    """ItemKNN trained on ``log`` with the settings that are best on validation queries.

    Of more than ``MAX_QUERIES`` queries a sample by ``seed`` is used.
    """
    start = time.perf_counter()
    if len(targets_Q) > MAX_QUERIES:
        rows = np.sort(np.random.default_rng(seed).choice(len(targets_Q), MAX_QUERIES, replace=False))
        recent_QH, targets_Q = recent_QH[rows], targets_Q[rows]
    pairs = Pairs(log)

    def ndcg(settings: KnnSettings) -> float:
        ranks_Q = exact_ranks(fit_itemknn(pairs, settings), recent_QH, targets_Q, mask_seen=mask_seen)
        return float(per_query(ranks_Q, (10,))["ndcg@10"].mean()) if len(ranks_Q) else 0.0

    best, tried = coordinate_ascent(ndcg, KnnSettings(), GRID, budget)
    return TunedKnn(fit_itemknn(pairs, best), tried[best], len(tried), time.perf_counter() - start)


def exact_ranks(knn: ItemKNN, recent_QH: IntArray, targets_Q: IntArray, *, mask_seen: bool) -> NDArray[np.int64]:
    """Rank (Q,), from 1, of each target among all N items, without a dense (Q, N) array; 0 for a masked target.

    Equals the rank by ``ranking.rank``, except for ties among items without a neighbour score.
    """
    scores = knn.scores(recent_QH)
    backoff_N = knn.backoff_N
    query_Q = np.arange(len(targets_Q))
    score_Q = values_at(scores, query_Q, targets_Q) + backoff_N[targets_Q]
    row_E = row_of_entry(scores)
    value_E, level_E = scores.data + backoff_N[scores.indices], score_Q[row_E]
    above_E = (value_E > level_E) | ((value_E == level_E) & (scores.indices < targets_Q[row_E]))
    rest_E = backoff_N[scores.indices] > level_E  # counted below by popularity, although their score decides
    ranks_Q = 1 + len(backoff_N) - np.searchsorted(np.sort(backoff_N), score_Q, side="right")
    ranks_Q += np.bincount(row_E, above_E.astype(np.int64) - rest_E, minlength=len(targets_Q)).astype(np.int64)
    if not mask_seen:
        return ranks_Q
    seen_query_S, seen_item_S = distinct_pairs(recent_QH, len(backoff_N))
    seen_value_S = values_at(scores, seen_query_S, seen_item_S) + backoff_N[seen_item_S]
    ranks_Q -= np.bincount(seen_query_S, seen_value_S > score_Q[seen_query_S], minlength=len(targets_Q)).astype(
        np.int64
    )
    return np.where((recent_QH == targets_Q[:, None]).any(axis=1), 0, ranks_Q)


def tune_popularity(log: TrainLog, recent_QH: IntArray, targets_Q: IntArray, *, mask_seen: bool) -> Popularity:
    """Popularity over the share of the newest train events that has the best validation NDCG@10."""
    rows = slice(None, None, max(1, len(targets_Q) // MAX_QUERIES))

    def ndcg(model: Popularity) -> float:
        return measure(rank(model, recent_QH[rows], 10, mask_seen=mask_seen), targets_Q[rows], (10,))["ndcg@10"]

    return max((Popularity(log, recent) for recent in RECENT_SHARES), key=ndcg)
