"""Matrix factorization by the library ``implicit``: ALS (Hu et al. 2008) and BPR (Rendle et al. 2009).

A history is a new user to both. ALS solves for its factors; BPR has no such step, so a history has the mean of its
items' factors. Who interacted with what counts, not in which order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from genrec.baselines.coordinate_ascent import Grid
from genrec.baselines.sparse import Sparse, csr, distinct_pairs
from genrec.baselines.train_log import TrainLog
from genrec.errors import InputError
from genrec.metrics import FloatArray, IntArray

POPULARITY_WEIGHT = 1e-6
"""Of popularity, which orders the items of an empty history."""


@dataclass(frozen=True)
class AlsSettings:
    """``alpha``: confidence of an interaction; ``regularization``: of the squared factors."""

    factors: int = 64
    regularization: float = 0.1
    alpha: float = 10.0
    iterations: int = 15


@dataclass(frozen=True)
class BprSettings:
    """``learning_rate`` and ``regularization`` of its stochastic steps."""

    factors: int = 64
    regularization: float = 0.01
    learning_rate: float = 0.05
    iterations: int = 100


ALS_GRID: Grid = {
    "regularization": (0.001, 0.01, 0.1, 1.0, 10.0),
    "alpha": (1.0, 3.0, 10.0, 30.0, 100.0),
    "factors": (32, 64, 128, 256),
}
BPR_GRID: Grid = {
    "regularization": (0.0, 0.001, 0.01, 0.05, 0.1),
    "learning_rate": (0.01, 0.02, 0.05, 0.1, 0.2),
    "factors": (32, 64, 128, 256),
    "iterations": (50, 100, 200),
}


def require_implicit() -> None:
    """Raise InputError unless ``implicit`` is installed."""
    if find_spec("implicit") is None:
        raise InputError(
            "the baselines als and bpr need the package implicit, which is not installed; "
            "run `pip install genrec[baselines]`, or take them out of evaluation.baselines"
        )


class AlsFactors:
    """ALS; the factors of a history solve the same least squares as those of a user."""

    def __init__(self, log: TrainLog, settings: AlsSettings, seed: int) -> None:
        require_implicit()
        from implicit.cpu.als import AlternatingLeastSquares

        self._model = _fitted(AlternatingLeastSquares, log, settings, seed)
        self.settings, self._backoff_N = settings, popularity_backoff(log)

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N): products of the history's factors with the items'."""
        history_QN = sets_of(recent_QH, len(self._backoff_N))
        with threadpool_limits(1, "blas"):
            factors_QF = self._model.recalculate_user(np.arange(len(recent_QH)), history_QN)
        return (factors_QF @ self._model.item_factors.T).astype(np.float64) + self._backoff_N


class BprFactors:
    """BPR; a history has the mean of its items' factors."""

    def __init__(self, log: TrainLog, settings: BprSettings, seed: int) -> None:
        require_implicit()
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        self._model = _fitted(BayesianPersonalizedRanking, log, settings, seed)
        self.settings, self._backoff_N = settings, popularity_backoff(log)

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N): products of the history's mean factors with the items', plus the items' biases."""
        history_QN = sets_of(recent_QH, len(self._backoff_N))
        size_Q1 = np.maximum(np.diff(history_QN.indptr), 1)[:, None]
        # The last column of the items' factors is their bias; a user has 1 there.
        items_NF = np.asarray(self._model.item_factors, dtype=np.float64)
        factors_QF = (history_QN @ items_NF) / size_Q1
        factors_QF[:, -1] = 1.0
        return factors_QF @ items_NF.T + self._backoff_N


def _fitted(kind: Callable[..., Any], log: TrainLog, settings: AlsSettings | BprSettings, seed: int) -> Any:
    """A model of ``implicit``, whose arguments are named as the settings are, fitted to the train log.

    The threads of a BLAS slow its small systems of equations down, so they are off in here.
    """
    with threadpool_limits(1, "blas"):
        model = kind(**asdict(settings), num_threads=1, random_state=seed)
        model.fit(interactions(log), show_progress=False)
    return model


def interactions(log: TrainLog) -> Sparse:
    """Who had what in the train log, (users, N), ones."""
    pairs = np.unique(log.users_E * np.int64(log.n_items) + log.items_E)
    users_E, items_E = pairs // log.n_items, pairs % log.n_items
    ones_E = np.ones(len(pairs), dtype=np.float32)
    return csr(ones_E, users_E, items_E, (int(users_E.max()) + 1, log.n_items))


def sets_of(recent_QH: IntArray, n_items: int) -> Sparse:
    """The items of each history (Q, H), once each, as ones in (Q, N)."""
    query_P, item_P = distinct_pairs(recent_QH, n_items)
    return csr(np.ones(len(query_P), dtype=np.float32), query_P, item_P, (len(recent_QH), n_items))


def popularity_backoff(log: TrainLog) -> FloatArray:
    """Popularity (N,), scaled below ``POPULARITY_WEIGHT``."""
    return POPULARITY_WEIGHT * log.counts_N / max(1, log.counts_N.max())
