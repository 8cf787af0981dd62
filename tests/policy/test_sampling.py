"""Searches with request constraints, without replacement, in groups, and without the catalogue."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.synthetic import random_catalog, small_policy

from genrec.errors import InputError
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.sampling import diverse_beam, greedy, stochastic_beam, unconstrained, validity_by_rank
from genrec.policy.decoding.score import score
from genrec.policy.decoding.trie_masks import TrieMaskCache

HISTORIES = [[1, 2, 3], [5], [9, 8, 7, 6, 5, 4, 3, 2], [0, 0]]


def world(items: int = 60, sizes: tuple[int, ...] = (5, 6, 7), seed: int = 0):
    catalog = random_catalog(items, sizes, seed)
    policy, prompts = small_policy(catalog, "qwen3", seed)
    return catalog, policy, prompts.encode([[item % items for item in history] for history in HISTORIES])


@pytest.mark.parametrize("seed", range(5))
def test_a_constrained_beam_is_the_whole_ranking_without_the_forbidden_items(seed: int) -> None:
    catalog, policy, prompts = world(seed=seed)
    everything = beam(policy, *prompts, catalog.trie, 64)
    generator = torch.Generator().manual_seed(seed)
    allowed = [torch.rand(60, generator=generator) < share for share in (0.5, 0.1, 0.02)]
    allowed[2][7] = True
    masks = TrieMaskCache(catalog.trie).masks([*allowed, None])
    found = beam(policy, *prompts, catalog.trie, 64, masks=masks)
    for row, mask_N in enumerate([*allowed, torch.ones(60, dtype=torch.bool)]):
        ranking = [item for item in everything.items_BW[row].tolist() if item >= 0 and mask_N[item]]
        real = found.items_BW[row] >= 0
        assert found.items_BW[row][real].tolist() == ranking
        kept = torch.isin(everything.items_BW[row], torch.tensor(ranking))
        torch.testing.assert_close(found.logp_BW[row][real], everything.logp_BW[row][kept])


def test_narrow_constrained_beams_hold_only_allowed_items_and_none_twice() -> None:
    for seed, width in itertools.product(range(4), (1, 4, 20)):
        catalog, policy, prompts = world(seed=seed)
        mask_N = torch.arange(60) % 7 == seed
        found = beam(policy, *prompts, catalog.trie, width, masks=TrieMaskCache(catalog.trie).masks([mask_N] * 4))
        for items_W in found.items_BW:
            real = items_W[items_W >= 0].tolist()
            assert real
            assert len(set(real)) == len(real) <= width
            assert mask_N[real].all()


def test_a_request_that_allows_nothing_gets_nothing() -> None:
    catalog, policy, prompts = world()
    none_N = torch.zeros(60, dtype=torch.bool)
    found = beam(policy, *prompts, catalog.trie, 5, masks=TrieMaskCache(catalog.trie).masks([none_N, None, None, None]))
    assert (found.items_BW[0] == -1).all() and torch.isneginf(found.logp_BW[0]).all()
    assert (found.items_BW[1:] >= 0).all()


def test_constraints_of_one_content_are_made_once_and_another_catalogues_is_refused() -> None:
    catalog, _, _ = world()
    made = TrieMaskCache(catalog.trie)
    first, second = torch.arange(60) < 30, torch.arange(60) < 30
    assert made._nodes("a", first) is made._nodes("a", second)
    assert made.masks([None, None]) is None
    with pytest.raises(InputError, match="another catalogue"):
        made.masks([torch.ones(10, dtype=torch.bool)])


@torch.no_grad()
def test_vocabulary_scores_are_those_of_generate_without_renormalisation() -> None:
    catalog, policy, (tokens_BP, mask_BP) = world()
    found = beam(policy, tokens_BP, mask_BP, catalog.trie, 4, scale="vocabulary")
    for row, history_length in enumerate(mask_BP.sum(-1).tolist()):
        for codes_L, logp_L in zip(found.codes_BWL[row], found.logp_BWL[row], strict=True):
            sequence = torch.cat([tokens_BP[row, -history_length:], policy.sids.tokens(codes_L)])[None]
            logp = policy.model(input_ids=sequence).logits[0].log_softmax(-1)
            picked = [logp[history_length - 1 + d, token] for d, token in enumerate(policy.sids.tokens(codes_L))]
            torch.testing.assert_close(logp_L, torch.stack(picked), atol=1e-4, rtol=1e-4)


def test_stochastic_beams_are_distinct_and_follow_the_plackett_luce_order() -> None:
    catalog, policy, (tokens_BP, mask_BP) = world(items=6, sizes=(3, 3))
    many = 3000
    exact = beam(policy, tokens_BP[:1], mask_BP[:1], catalog.trie, 6)
    probability = torch.zeros(6).scatter_(0, exact.items_BW[0], exact.logp_BW[0].exp())
    drawn = stochastic_beam(
        policy,
        tokens_BP[:1].repeat(many, 1),
        mask_BP[:1].repeat(many, 1),
        catalog.trie,
        2,
        generator=torch.Generator().manual_seed(1),
    )
    items = drawn.beams.items_BW
    assert (items[:, 0] != items[:, 1]).all()
    assert (drawn.perturbed_BW.diff(dim=1) <= 0).all() and (drawn.perturbed_BW[:, 1] >= drawn.threshold_B).all()
    for a, b in itertools.permutations(range(6), 2):
        expected = float(probability[a] * probability[b] / (1 - probability[a]))
        share = float(((items[:, 0] == a) & (items[:, 1] == b)).float().mean())
        assert share == pytest.approx(expected, abs=0.03)


def test_importance_weights_of_stochastic_beams_estimate_a_mean() -> None:
    catalog, policy, (tokens_BP, mask_BP) = world(items=20, sizes=(4, 6))
    value_N = torch.linspace(0, 1, 20)
    exact = beam(policy, tokens_BP[:1], mask_BP[:1], catalog.trie, 20)
    expected = float((exact.logp_BW[0].exp() * value_N[exact.items_BW[0]]).sum())
    many = 2000
    generator = torch.Generator().manual_seed(2)
    prompts = tokens_BP[:1].repeat(many, 1), mask_BP[:1].repeat(many, 1)
    drawn = stochastic_beam(policy, *prompts, catalog.trie, 5, generator=generator)
    weights = drawn.beams.logp_BW.exp() / drawn.inclusion_BW
    estimate = float((weights * value_N[drawn.beams.items_BW]).sum(1).mean())
    assert estimate == pytest.approx(expected, abs=0.02)


def test_more_draws_than_items_return_every_item_once() -> None:
    catalog, policy, prompts = world(items=9, sizes=(3, 4))
    drawn = stochastic_beam(policy, *prompts, catalog.trie, 30, generator=torch.Generator().manual_seed(0))
    for items_W in drawn.beams.items_BW:
        assert sorted(items_W[items_W >= 0].tolist()) == list(range(9))


def diverse_by_hand(logp_NL: torch.Tensor, codes_NL: list[tuple[int, ...]], width: int, groups: int, penalty: float):
    """Diverse beam search over a table of every item's steps, in plain Python."""
    steps = {codes[: d + 1]: float(logp[d]) for codes, logp in zip(codes_NL, logp_NL, strict=True) for d in range(3)}
    beams: list[list[tuple[tuple[int, ...], float]]] = [[((), 0.0)] for _ in range(groups)]
    for depth in range(3):
        used: dict[int, int] = {}
        taken: set[tuple[int, ...]] = set()
        for group in range(groups):
            options = [
                ((*prefix, longer[-1]), total + steps[longer])
                for prefix, total in beams[group]
                for longer in steps
                if len(longer) == depth + 1 and longer[:-1] == prefix and not (depth == 2 and longer in taken)
            ]
            options.sort(key=lambda option: option[1] - penalty * used.get(option[0][-1], 0), reverse=True)
            beams[group] = options[: width // groups]
            for prefix, _ in beams[group]:
                used[prefix[-1]] = used.get(prefix[-1], 0) + 1
                taken.add(prefix)
    return {codes_NL.index(prefix) for group in beams for prefix, _ in group}


@pytest.mark.parametrize(("groups", "penalty"), [(1, 5.0), (2, 0.7), (4, 3.0), (12, 1.5)])
@torch.no_grad()
def test_diverse_beams_are_those_of_a_search_by_hand(groups: int, penalty: float) -> None:
    catalog, policy, (tokens_BP, mask_BP) = world()
    found = diverse_beam(policy, tokens_BP, mask_BP, catalog.trie, 12, groups=groups, penalty=penalty)
    logp_BNL = score(policy, tokens_BP, mask_BP, catalog.codes_NL.expand(4, -1, -1), catalog.trie).logp_BGL
    codes_NL = [tuple(codes) for codes in catalog.codes_NL.tolist()]
    for items_W, logp_NL in zip(found.items_BW, logp_BNL, strict=True):
        real = items_W[items_W >= 0].tolist()
        assert len(set(real)) == len(real)
        assert set(real) == diverse_by_hand(logp_NL, codes_NL, 12, groups, penalty)


def test_groups_of_unequal_size_are_refused() -> None:
    catalog, policy, prompts = world()
    with pytest.raises(InputError, match="equal groups"):
        diverse_beam(policy, *prompts, catalog.trie, 10, groups=4, penalty=1.0)


def test_diverse_beams_of_a_tiny_catalogue_repeat_nothing() -> None:
    catalog, policy, prompts = world(items=5, sizes=(2, 2, 3))
    found = diverse_beam(policy, *prompts, catalog.trie, 8, groups=4, penalty=0.5)
    for items_W in found.items_BW:
        real = items_W[items_W >= 0]
        assert len(real.unique()) == len(real) >= 1


def test_greedy_is_a_beam_of_one() -> None:
    catalog, policy, prompts = world()
    assert torch.equal(
        greedy(policy, *prompts, catalog.trie).items_BW, beam(policy, *prompts, catalog.trie, 1).items_BW
    )


@pytest.mark.parametrize("scale", ["trie", "vocabulary"])
def test_unconstrained_search_ranks_all_sids_and_says_which_exist(scale) -> None:
    catalog, policy, prompts = world(items=20, sizes=(3, 4, 3))
    found = unconstrained(policy, *prompts, catalog.trie, 36, scale=scale)
    total = found.logp_BW.exp().sum(-1)
    assert (total <= 1 + 1e-4).all()
    if scale == "trie":
        torch.testing.assert_close(total, torch.ones(4), atol=1e-4, rtol=0)
    for items_W in found.items_BW:
        assert sorted(items_W[items_W >= 0].tolist()) == list(range(20))
    assert validity_by_rank(found).shape == (36,)
    assert float(validity_by_rank(found).sum()) == pytest.approx(20)
