"""A mixture of the policy's probabilities with a prior from item scores, such as those of ItemKNN.

    p(item) = (1 - weight) · p_policy(item) + weight · p_prior(item)
    p_prior(item) = score(item)^power / Σ_j score(j)^power

The candidates of a query are the policy's beams, further items that the policy has scored (``extra``), and all items
with a score. p_policy is 0 for an item that the policy did not score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from genrec.baselines.itemknn import ItemKNN
from genrec.baselines.sparse import Sparse, csr, row_of_entry, top_columns, values_at
from genrec.errors import InputError
from genrec.metrics import FloatArray, IntArray, means, per_query
from genrec.sid.catalog import Catalog

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
POWERS = (0.5, 1.0, 1.5, 2.0)

LEAST_SHARE = 1e-12
"""Of the policy, so that a list is full where a prior of weight 1 scores too few items."""


@dataclass(frozen=True)
class RankedItems:
    """K candidates per query: item rows (Q, K), padded with -1, and the log-probabilities (Q, K) of their SIDs.

    ``head_QK``: those of the items by the policy's item head, where it took part in the search; ``value_QK``: what a
    value network adds, likewise.
    """

    items_QK: IntArray
    logp_QK: FloatArray
    head_QK: FloatArray | None = None
    value_QK: FloatArray | None = None

    def valued(self, weight: float) -> RankedItems:
        """The same candidates in the same order with log p_sid + ``weight`` · log σ(V) in place of log p_sid."""
        if self.value_QK is None or not weight:
            return self
        return replace(self, logp_QK=self.logp_QK + weight * self.value_QK)

    def weighed(self, head_weight: float) -> FloatArray:
        """log p_sid + ``head_weight`` · log p_head of each candidate, (Q, K); -inf at empty ones."""
        if self.head_QK is None:
            return self.logp_QK
        return self.logp_QK + head_weight * np.where(self.items_QK >= 0, self.head_QK, 0.0)

    def fused(self, head_weight: float, value_weight: float = 0.0) -> RankedItems:
        """The same candidates, best first by log p_sid + ``head_weight`` · log p_head + ``value_weight`` · log σ(V).

        Their log-probabilities are then those of shares of their total.
        """
        valued = self.valued(value_weight)
        if valued is self and (self.head_QK is None or not head_weight):
            return self
        score_QK = valued.weighed(head_weight)
        largest_Q1 = score_QK.max(axis=1, keepdims=True, initial=-np.inf)
        score_QK = score_QK - np.where(np.isfinite(largest_Q1), largest_Q1, 0.0)
        score_QK = score_QK - np.log(np.exp(score_QK).sum(axis=1, keepdims=True).clip(min=1e-300))
        order_QK = np.argsort(-score_QK, axis=1, kind="stable")
        return RankedItems(np.take_along_axis(self.items_QK, order_QK, 1), np.take_along_axis(score_QK, order_QK, 1))

    def probabilities(self, n_items: int) -> Sparse:
        """Sparse probabilities (Q, N); of an item that is twice in a row the larger one counts.

        Raises:
            InputError: items and log-probabilities of different shapes.
        """
        if self.items_QK.shape != self.logp_QK.shape:
            raise InputError(
                f"got candidates {self.items_QK.shape} and log-probabilities {self.logp_QK.shape}; wanted equal shapes"
            )
        query_QK = np.broadcast_to(np.arange(len(self.items_QK))[:, None], self.items_QK.shape)
        valid_QK = self.items_QK >= 0
        query_E, item_E, logp_E = query_QK[valid_QK], self.items_QK[valid_QK], self.logp_QK[valid_QK]
        order_E = np.lexsort((-logp_E, item_E, query_E))
        query_E, item_E, logp_E = query_E[order_E], item_E[order_E], logp_E[order_E]
        first_E = np.ones(len(query_E), dtype=bool)
        first_E[1:] = (query_E[1:] != query_E[:-1]) | (item_E[1:] != item_E[:-1])
        values_E = np.exp(logp_E[first_E].astype(np.float64))
        return csr(values_E, query_E[first_E], item_E[first_E], (len(self.items_QK), n_items))

    def __add__(self, other: RankedItems) -> RankedItems:
        """The candidates of both, for the same queries."""
        return RankedItems(
            np.concatenate([self.items_QK, other.items_QK], axis=1),
            np.concatenate([self.logp_QK, other.logp_QK], axis=1),
        )


def grown_knn(knn: ItemKNN, catalog: Catalog) -> ItemKNN:
    """``knn`` of the first items of ``catalog`` (those that were assigned, at least) for all of them.

    Inserted items that it has counted keep their own counts.
    """
    near_MX, known = catalog.nearest_assigned, len(knn.backoff_N)
    uncounted = max(0, known - catalog.assigned)
    return knn.grown(len(catalog), None if near_MX is None else near_MX.numpy()[uncounted:])


@dataclass(frozen=True)
class PriorFit:
    """A tuned prior: its weight, its power, and the validation NDCG@10 of (weight, power) for each pair tried."""

    weight: float
    power: float
    ndcg: float
    tried: dict[tuple[float, float], float]


def normalise(scores: Sparse, power: float = 1.0) -> Sparse:
    """p_prior (Q, N) of non-negative scores (Q, N). A query without any score keeps an empty row.

    Raises:
        InputError: a negative score.
    """
    if scores.nnz and float(scores.data.min()) < 0.0:
        raise InputError(f"got a prior score of {float(scores.data.min()):.3g}; scores must not be negative")
    prior = scores.copy().astype(np.float64)
    prior.eliminate_zeros()
    row_E = row_of_entry(prior)
    largest_Q = np.zeros(prior.shape[0])
    np.maximum.at(largest_Q, row_E, prior.data)
    prior.data = (prior.data / largest_Q[row_E]) ** power  # scaled first, so that no power underflows a whole row
    prior.data /= np.bincount(row_E, prior.data, minlength=prior.shape[0])[row_E]
    return prior


def mix(
    model_items_QK: IntArray,
    model_logp_QK: FloatArray,
    prior_scores: Sparse,
    weight: float,
    *,
    power: float = 1.0,
    extra: RankedItems | None = None,
    k: int = 50,
) -> NDArray[np.int64]:
    """The k best items (Q, k) of the mixture, best first, padded with -1.

    Args:
        model_items_QK: item rows of the policy's beams, padded with -1.
        model_logp_QK: log-probabilities of their SIDs under the trie-renormalised policy.
        prior_scores: (Q, N), not negative.
        weight: of the prior, in [0, 1].
        extra: candidates outside the beams that the policy has scored, too.

    Raises:
        InputError: a weight outside [0, 1], a negative score, or arrays that do not fit.
    """
    beams = RankedItems(model_items_QK, model_logp_QK)
    policy = (beams + extra if extra else beams).probabilities(prior_scores.shape[1])
    prior = normalise(prior_scores, power)
    _check(policy, prior, (weight,))
    mixed = (policy * policy_share(weight) + prior * weight).tocsr()
    mixed.eliminate_zeros()
    return top_columns(mixed, k)


def tune_weight(
    model_items_QK: IntArray,
    model_logp_QK: FloatArray,
    prior_scores: Sparse,
    targets_Q: IntArray,
    *,
    extra: RankedItems | None = None,
    weights: Sequence[float] = WEIGHTS,
    powers: Sequence[float] = POWERS,
) -> PriorFit:
    """The weight and power of a grid with the best NDCG@10 on validation queries with ``targets_Q``.

    Ties go to the smaller weight. The other arguments and the errors are those of ``mix``.
    """
    beams = RankedItems(model_items_QK, model_logp_QK)
    policy = (beams + extra if extra else beams).probabilities(prior_scores.shape[1])
    tried: dict[tuple[float, float], float] = {}
    for power in powers:
        prior = normalise(prior_scores, power)
        _check(policy, prior, weights)
        for weight, ranks_Q in _ranks(policy, prior, weights, targets_Q):
            tried[weight, power] = means(per_query(ranks_Q, (10,)))["ndcg@10"]
    best = max(tried, key=lambda pair: (tried[pair], -pair[0]))
    return PriorFit(weight=best[0], power=best[1], ndcg=tried[best], tried=tried)


def _ranks(
    policy: Sparse, prior: Sparse, weights: Sequence[float], targets_Q: IntArray
) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """For each weight the ranks (Q,) of the targets in the mixture, 0 for no candidate; counted without sorting."""
    union = (policy + prior).tocsr()
    row_E, column_E = row_of_entry(union), union.indices
    policy_E, prior_E = values_at(policy, row_E, column_E), values_at(prior, row_E, column_E)
    query_Q = np.arange(len(targets_Q))
    policy_Q, prior_Q = values_at(policy, query_Q, targets_Q), values_at(prior, query_Q, targets_Q)
    lower_E = column_E < targets_Q[row_E]
    for weight in weights:
        score_E = policy_share(weight) * policy_E + weight * prior_E
        score_Q = policy_share(weight) * policy_Q + weight * prior_Q
        level_E = score_Q[row_E]
        above_E = (score_E > level_E) | ((score_E == level_E) & lower_E)
        ranks_Q = 1 + np.bincount(row_E[above_E], minlength=len(targets_Q))
        yield weight, np.where(score_Q > 0.0, ranks_Q, 0)


def policy_share(weight: float) -> float:
    """The policy's share beside a prior of this weight: at 1 it only orders what the prior does not tell apart."""
    return max(1.0 - weight, LEAST_SHARE)


def _check(policy: Sparse, prior: Sparse, weights: Sequence[float]) -> None:
    for weight in weights:
        if not 0.0 <= weight <= 1.0:
            raise InputError(f"got {weight} as the weight of the prior; wanted a share in [0, 1]")
    if policy.shape != prior.shape:
        raise InputError(
            f"got {policy.shape[0]} queries of the policy and {prior.shape[0]} of the prior; they must be the same"
        )
