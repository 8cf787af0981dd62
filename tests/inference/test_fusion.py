"""Weights of the item head and ItemKNN: those of a search for each pair, found by ranking candidates again."""

import numpy as np
import pytest
import torch
from scipy import sparse
from support.synthetic import random_catalog

from genrec.inference.batch import SMOOTH, make_node_prior
from genrec.inference.fusion import leaf_log_prior, tune_fusion
from genrec.inference.prior import RankedItems
from genrec.metrics import means, per_query, target_ranks

QUERIES, ITEMS = 40, 25


def candidates(seed: int, k: int) -> RankedItems:
    """k distinct items per query with random log-probabilities of SIDs and head; the last one is empty."""
    rng = np.random.default_rng(seed)
    items_QK = np.stack([rng.permutation(ITEMS)[:k] for _ in range(QUERIES)])
    logp_QK = rng.normal(size=(QUERIES, k))
    items_QK[:, -1], logp_QK[:, -1] = -1, -np.inf
    return RankedItems(items_QK, logp_QK, rng.normal(size=(QUERIES, k)))


def test_the_weights_are_those_whose_ranking_is_best() -> None:
    found, targets_Q = candidates(0, 20), np.random.default_rng(1).integers(ITEMS, size=QUERIES)
    prior_QK = np.random.default_rng(2).normal(size=found.items_QK.shape)
    fusion = tune_fusion([found], targets_Q, [prior_QK], head_weights=(0.0, 1.0, 3.0), prior_weights=(0.0, 2.0))
    assert found.head_QK is not None
    for (a, b), ndcg in fusion.tried.items():
        score_QK = np.where(found.items_QK >= 0, found.logp_QK + a * found.head_QK + b * prior_QK, -np.inf)
        ranked_QK = np.take_along_axis(found.items_QK, np.argsort(-score_QK, axis=1), 1)
        assert ndcg == pytest.approx(means(per_query(target_ranks(ranked_QK, targets_Q), (10,)))["ndcg@10"])
    assert fusion.ndcg == max(fusion.tried.values()) == fusion.tried[fusion.head_weight, fusion.prior_weight]


def test_an_item_that_two_searches_found_counts_once() -> None:
    found, targets_Q = candidates(0, 20), np.random.default_rng(1).integers(ITEMS, size=QUERIES)
    assert tune_fusion([found, found], targets_Q).tried == tune_fusion([found], targets_Q).tried


def test_without_a_head_and_without_a_prior_nothing_is_tuned() -> None:
    found = candidates(0, 20)
    plain = RankedItems(found.items_QK, found.logp_QK)
    fusion = tune_fusion([plain], np.zeros(QUERIES, dtype=np.int64))
    assert (fusion.head_weight, fusion.prior_weight, len(fusion.tried)) == (0.0, 0.0, 1)
    assert plain.fused(2.0) is plain


def test_the_prior_of_a_candidate_is_that_of_the_search() -> None:
    catalog, rng = random_catalog(ITEMS, (3, 4, 5)), np.random.default_rng(3)
    scores_QN = rng.random((4, ITEMS)) * (rng.random((4, ITEMS)) < 0.3)
    scores_QN[2] = 0
    scores = sparse.csr_matrix(scores_QN)
    items_QK = np.tile(np.arange(ITEMS), (4, 1))
    prior = make_node_prior(catalog.trie, catalog.codes_NL, scores, 1.0)
    leaves_BWK = catalog.trie.path(catalog.codes_NL)[:, -1].expand(4, 1, -1)
    expected = prior.log_prior(catalog.trie.depth - 1, leaves_BWK)[:, 0]
    torch.testing.assert_close(torch.from_numpy(leaf_log_prior(scores, items_QK, SMOOTH)).float(), expected)


def test_fused_answers_are_shares_of_their_total_in_order() -> None:
    found = candidates(5, 6)
    fused = found.fused(1.5)
    assert (np.diff(fused.logp_QK[:, :-1], axis=1) <= 0).all() and (fused.items_QK[:, -1] == -1).all()
    shares_Q = np.where(fused.items_QK >= 0, np.exp(fused.logp_QK), 0.0).sum(axis=1)
    np.testing.assert_allclose(shares_Q, 1, rtol=1e-6)


def test_values_count_in_the_order_and_in_the_shares() -> None:
    found = candidates(4, 10)
    values_QK = np.random.default_rng(5).normal(size=found.items_QK.shape)
    valued = RankedItems(found.items_QK, found.logp_QK, found.head_QK, values_QK)
    assert found.head_QK is not None
    assert valued.valued(0.0) is valued and found.valued(2.0) is found and valued.fused(0.0) is valued
    for head_weight in (0.0, 0.5):
        score_QK = found.logp_QK + head_weight * found.head_QK + 2.0 * values_QK
        score_QK[:, -1] = found.logp_QK[:, -1] + 2.0 * values_QK[:, -1]
        fused = valued.fused(head_weight, 2.0)
        order_QK = np.argsort(-score_QK, axis=1)
        assert np.array_equal(fused.items_QK, np.take_along_axis(found.items_QK, order_QK, 1))
        np.testing.assert_allclose(np.exp(fused.logp_QK).sum(1), 1.0)
