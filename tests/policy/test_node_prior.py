"""Beam search under a prior on the trie's nodes: the product of experts over the whole catalogue, by hand."""

from __future__ import annotations

import pytest
import torch
from support.synthetic import random_catalog, small_policy

from genrec.errors import InputError
from genrec.policy.decoding.beam import Beams, beam
from genrec.policy.decoding.node_prior import NodePrior
from genrec.policy.decoding.trie_masks import TrieMaskCache

HISTORIES = [[1, 2, 3], [5], [9, 8, 7, 6]]
ITEMS, SIZES = 50, (4, 5, 6)


def scored(seed: int, batch: int = 3) -> torch.Tensor:
    """Scores of a few items per request, (B, N); the last request has none."""
    generator = torch.Generator().manual_seed(seed)
    score_BN = torch.rand(batch, ITEMS, generator=generator) * (torch.rand(batch, ITEMS, generator=generator) < 0.15)
    score_BN[-1] = 0
    return score_BN


def searched(seed: int, weight: float, width: int, score_BN: torch.Tensor, smooth: float = 0.2) -> tuple[Beams, Beams]:
    """Beams under the prior, and the plain policy's ranking of everything."""
    catalog = random_catalog(ITEMS, SIZES, seed)
    policy, prompts = small_policy(catalog, "qwen3", seed)
    query_E, item_E = score_BN.nonzero(as_tuple=True)
    made = NodePrior(
        catalog.trie,
        catalog.codes_NL[item_E],
        query_E,
        score_BN[query_E, item_E],
        batch=len(score_BN),
        weight=weight,
        smooth=smooth,
    )
    inputs = prompts.encode(HISTORIES)
    return beam(policy, *inputs, catalog.trie, width, prior=made), beam(policy, *inputs, catalog.trie, ITEMS)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_wide_beams_are_ranked_by_the_product_over_the_whole_catalogue(seed: int, weight: float) -> None:
    score_BN = scored(seed)
    found, plain = searched(seed, weight, ITEMS, score_BN)
    for row, score_N in enumerate(score_BN.double()):
        own_N = score_N / score_N.sum() if score_N.any() else torch.full((ITEMS,), 1 / ITEMS)
        logp_N = torch.empty(ITEMS, dtype=torch.float64)
        logp_N[plain.items_BW[row]] = plain.logp_BW[row].double()
        product_N = logp_N + weight * (0.8 * own_N + 0.2 / ITEMS).log()
        ranked = product_N[found.items_BW[row]]
        torch.testing.assert_close(ranked, product_N.sort(descending=True).values, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.logp_BW[row].double(), logp_N[found.items_BW[row]], atol=1e-5, rtol=0)
    assert (found.items_BW[-1] == plain.items_BW[-1]).all()


def test_without_weight_nothing_changes_and_with_much_of_it_the_prior_decides() -> None:
    score_BN = scored(3)
    same, plain = searched(3, 0.0, ITEMS, score_BN)
    assert (same.items_BW == plain.items_BW).all()
    ruled, _ = searched(3, 50.0, 5, score_BN)
    best_BW = score_BN[:2].topk(5).indices
    assert (ruled.items_BW[:2].sort().values == best_BW.sort().values).all()


def test_narrow_beams_find_what_the_policy_alone_would_have_pruned() -> None:
    score_BN = torch.zeros(3, ITEMS)
    _, plain = searched(1, 0.0, 3, score_BN)
    last_B = plain.items_BW[:, -1]
    score_BN[torch.arange(3), last_B] = 1.0
    found, _ = searched(1, 5.0, 3, score_BN, smooth=0.01)
    assert (found.items_BW[:, 0] == last_B).all()


def test_it_stays_within_constraints() -> None:
    catalog = random_catalog(ITEMS, SIZES, 2)
    policy, prompts = small_policy(catalog, "gpt2", 2)
    mask_N = torch.arange(ITEMS) % 3 == 0
    made = NodePrior(
        catalog.trie, catalog.codes_NL[[1]], torch.tensor([0]), torch.ones(1), batch=1, weight=9.0, smooth=0.1
    )
    masks = TrieMaskCache(catalog.trie).masks([mask_N])
    found = beam(policy, *prompts.encode([[3, 4]]), catalog.trie, ITEMS, masks=masks, prior=made)
    assert found.items_BW[found.items_BW >= 0].sort().values.tolist() == mask_N.nonzero().flatten().tolist()


@pytest.mark.parametrize(("code", "score", "smooth"), [(99, 1.0, 0.1), (0, -1.0, 0.1), (0, 1.0, 0.0)])
def test_what_no_prior_can_be_is_refused(code: int, score: float, smooth: float) -> None:
    catalog = random_catalog(ITEMS, SIZES)
    codes_1L = catalog.codes_NL[[0]].clone()
    codes_1L[0, 2] = codes_1L[0, 2] if code == 0 else absent(catalog.codes_NL, codes_1L[0])
    with pytest.raises(InputError, match="prior"):
        NodePrior(catalog.trie, codes_1L, torch.tensor([0]), torch.tensor([score]), batch=1, weight=1.0, smooth=smooth)


def absent(codes_NL: torch.Tensor, codes_L: torch.Tensor) -> int:
    """A last code under the same prefix that no item has."""
    used = codes_NL[(codes_NL[:, :2] == codes_L[:2]).all(-1), 2].tolist()
    return next(code for code in range(SIZES[2]) if code not in used)
