"""Objectives, KL and weights in a world where every item can be enumerated: against the exact quantities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from support.gradients import gradient
from support.synthetic import random_catalog, small_policy
from torch import Tensor

from genrec.config import Rl
from genrec.learning.rl.advantages import advantages, has_advantage, level_advantages
from genrec.learning.rl.candidates import candidate_weights
from genrec.learning.rl.critic import normalised
from genrec.learning.rl.diagnostics import audited, ratio_statistics, zero_advantage_share
from genrec.learning.rl.objectives import PolicyBatch, ranked
from genrec.learning.rl.regularisers import exact_entropy, exact_kl, prefix_weights
from genrec.learning.rl.rollout import generate
from genrec.learning.rl.scorer import GroupScorer
from genrec.learning.rl.update_loss import MicroBatch, Targets, UpdateLoss
from genrec.policy.decoding.sampling import sample, stochastic_beam
from genrec.policy.decoding.score import score
from genrec.types import Group, Query

ITEMS = 14
CATALOG = random_catalog(ITEMS, (3, 3, 3), seed=2)
QUERY = Query(0, 0, (1, 5, 3), 6)
REWARD_N = torch.rand(ITEMS, generator=torch.Generator().manual_seed(4))
POLICY, PROMPTS = small_policy(CATALOG)
REFERENCE = {name: p.detach().clone() for name, p in small_policy(CATALOG, seed=3)[0].trainable().items()}
SCORER = GroupScorer(POLICY, PROMPTS, CATALOG.trie, reference=REFERENCE, codes_NL=CATALOG.codes_NL)


def chances_N() -> Tensor:
    """π of every item after the query's history, with its gradient."""
    tokens_BP, mask_BP = PROMPTS.encode([QUERY.history])
    return score(POLICY, tokens_BP, mask_BP, CATALOG.codes_NL[None], CATALOG.trie).logp_BGL[0].sum(-1).exp()


def rewarded_group(size: int, **settings: object) -> tuple[Group, Rl]:
    """The ``size`` best beams of the query with their rewards."""
    chosen = Rl(group=size, kl=0.0, sft=0.0, **settings)  # type: ignore[arg-type]
    group = generate(POLICY, PROMPTS, CATALOG.trie, [QUERY], chosen, version=0, seed=0)[0]
    group.rewards_G = REWARD_N[group.items_G]
    return group, chosen


def learner_gradient(group: Group, settings: Rl) -> Tensor:
    """What one update descends, with advantages r - mean(r)."""
    weight_BG = candidate_weights([group], settings.candidate_weight)
    advantage_BGL = level_advantages("group_mean", group.rewards_G[None], weight_BG, group.codes_GL[None])
    targets = Targets(group.rewards_G[None], weight_BG, advantage_BGL)
    batch = MicroBatch([group], targets, SCORER.scores([group]))
    return gradient(POLICY, UpdateLoss(settings, {})(batch, torch.tensor(1.0), 1)[0])


@pytest.mark.parametrize(
    ("objective", "scale"), [("reinforce", 1.0), ("dr_grpo", 1.0), ("grpo", 1 / 3), ("dapo", 14.0)]
)
def test_candidates_weighted_by_probability_give_the_gradient_of_the_expected_reward(
    objective: str, scale: float
) -> None:
    group, settings = rewarded_group(ITEMS, objective=objective, candidate_weight="probability")
    wanted = -scale * gradient(POLICY, (chances_N() * REWARD_N).sum())
    found = learner_gradient(group, settings)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * scale)
    uniform = learner_gradient(group, settings.replace(candidate_weight="uniform"))
    assert float((uniform - wanted).norm()) > 0.2 * float(wanted.norm())


def test_over_some_beams_it_is_the_gradient_of_their_risk() -> None:
    group, settings = rewarded_group(5, objective="reinforce", candidate_weight="probability")
    chance_G = chances_N()[group.items_G]
    risk = -(chance_G / chance_G.sum() * group.rewards_G).sum()
    torch.testing.assert_close(learner_gradient(group, settings), gradient(POLICY, risk), rtol=1e-3, atol=1e-5)


def listed(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """π and π_ref of the items, and KL and entropy as an update computes them from ``size`` beams and the target."""
    group, _ = rewarded_group(size)
    scores, reference = SCORER.scores([group]), SCORER.reference_scores([group])
    valid_BG = torch.ones(1, size + 1, dtype=torch.bool)
    weight_BGL = prefix_weights(scores.scores.logp_BGL, scores.codes_BGL, valid_BG, "probability")
    with POLICY.using(REFERENCE):
        other_N = chances_N().detach()
    kl_L, entropy_L = exact_kl(scores.steps, reference.steps, weight_BGL), exact_entropy(scores.steps, weight_BGL)
    return chances_N(), other_N, kl_L.sum(), entropy_L.sum()


def left_at(item: int, visited: set[tuple[int, ...]]) -> tuple[int, ...]:
    """The node where the path to ``item`` leaves the tree of visited prefixes."""
    codes = tuple(CATALOG.codes_NL[item].tolist())
    return next((codes[:depth] for depth in range(1, 3) if codes[:depth] not in visited), codes)


@pytest.mark.parametrize("size", [ITEMS, 4, 2])
def test_kl_and_entropy_are_those_over_the_nodes_where_one_leaves_the_visited_prefixes(size: int) -> None:
    group, _ = rewarded_group(size)
    items = [*group.items_G.tolist(), QUERY.target]
    visited = {tuple(CATALOG.codes_NL[item].tolist()[:depth]) for item in items for depth in (1, 2)}
    nodes = [left_at(item, visited) for item in range(ITEMS)]
    here_N, other_N, kl, entropy = listed(size)
    member = torch.tensor([[node == other for other in nodes] for node in sorted(set(nodes))]).float()
    assert len(member) == ITEMS or size < ITEMS
    p, q = member @ here_N, member @ other_N
    wanted = (p * (p / q).log()).sum()
    assert float(kl.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    torch.testing.assert_close(gradient(POLICY, kl), gradient(POLICY, wanted), rtol=1e-3, atol=1e-5)
    assert float(entropy.detach()) == pytest.approx(float(-(p * p.log()).sum().detach()), rel=1e-4)


def test_uniform_prefixes_count_as_often_as_they_are_visited() -> None:
    codes_BGL, logp_BGL = torch.tensor([[[0, 1], [0, 2], [1, 0], [1, 0]]]), torch.full((1, 4, 2), math.log(0.3))
    valid_BG = torch.tensor([[True, True, True, False]])
    plain, uniform = (prefix_weights(logp_BGL, codes_BGL, valid_BG, kind) for kind in ("probability", "uniform"))
    torch.testing.assert_close(plain, torch.tensor([[[1, 0.3], [0, 0], [0, 0.3], [0, 0]]]))
    torch.testing.assert_close(uniform[0].T, torch.tensor([[1.0, 1, 1, 0]] * 2) / 3)


def steps_of_every_item() -> Tensor:
    """Per item and level the log-distribution over the codes, (N, L, K)."""
    tokens_BP, mask_BP = PROMPTS.encode([QUERY.history])
    with torch.no_grad():
        steps = score(POLICY, tokens_BP, mask_BP, CATALOG.codes_NL[None], CATALOG.trie).steps
    return torch.stack([step[0].expand(ITEMS, -1) for step in steps], dim=1)


def test_samples_at_a_temperature_know_the_probability_of_the_policy_that_drew_them() -> None:
    many, prompts = 6000, PROMPTS.encode([QUERY.history])
    noise = torch.Generator().manual_seed(0)
    drawn = sample(POLICY, *prompts, CATALOG.trie, many, temperature=3.0, generator=noise)
    tempered_NLK = (steps_of_every_item() / 3.0).log_softmax(-1)
    wanted_N = tempered_NLK.gather(2, CATALOG.codes_NL[..., None])[..., 0].sum(-1)
    items_W = drawn.beams.items_BW[0]
    torch.testing.assert_close(drawn.behaviour_BW[0], wanted_N[items_W], rtol=1e-4, atol=1e-4)
    share_N = items_W.bincount(minlength=ITEMS) / many
    torch.testing.assert_close(share_N, wanted_N.exp(), rtol=0, atol=0.02)


def test_samples_at_a_temperature_estimate_the_policys_own_expected_reward() -> None:
    settings = Rl(group=6000, generation="sample", temperature=3.0)
    group = generate(POLICY, PROMPTS, CATALOG.trie, [QUERY], settings, version=0, seed=0)[0]
    weight_BG = candidate_weights([group], settings.candidate_weight)
    assert float(weight_BG.mean()) == pytest.approx(1.0, abs=1e-4)
    chance_N = chances_N().detach()
    reward_G, wanted = chance_N[group.items_G], float(chance_N.square().sum())
    assert float((weight_BG * reward_G).mean()) == pytest.approx(wanted, rel=0.03)
    assert float(reward_G.mean()) < 0.95 * wanted
    plain = generate(POLICY, PROMPTS, CATALOG.trie, [QUERY], settings.replace(temperature=1.0), version=0, seed=0)[0]
    assert plain.weights_G is None


def test_items_are_drawn_without_replacement_as_often_as_their_inclusion_probabilities_say() -> None:
    many, (tokens_BP, mask_BP) = 8000, PROMPTS.encode([QUERY.history])
    prompts = tokens_BP.expand(many, -1), mask_BP.expand(many, -1)
    drawn = stochastic_beam(POLICY, *prompts, CATALOG.trie, 3, generator=torch.Generator().manual_seed(5))
    weights_BW = drawn.beams.logp_BW.exp() / drawn.inclusion_BW
    assert float(weights_BW.sum(1).mean()) == pytest.approx(1.0, abs=0.02)
    inclusion_N = torch.zeros(ITEMS).index_add_(0, drawn.beams.items_BW.flatten(), 1 / drawn.inclusion_BW.flatten())
    likely_N = chances_N().detach() > 0.08
    assert int(likely_N.sum()) > 3
    torch.testing.assert_close(inclusion_N[likely_N] / many, torch.ones(int(likely_N.sum())), rtol=0, atol=0.06)


def test_empty_candidates_take_no_part_in_the_baseline() -> None:
    real = torch.tensor([[1.0, 0.0, 0.5]])
    padded, weight = torch.tensor([[1.0, 0.0, 0.5, 0.0, 0.0]]), torch.tensor([[1.0, 1, 1, 0, 0]])
    for kind in ("group_std", "group_mean", "batch_std", "leave_one_out", "rank"):
        found = advantages(kind, padded, weight)
        torch.testing.assert_close(found[:, :3], advantages(kind, real))
        assert found[0, 3:].tolist() == [0, 0]
    equal, empty = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[True, True, False]])
    assert not has_advantage(equal, empty).any() and float(zero_advantage_share(equal, empty)) == 1.0
    values = torch.tensor([[[1.0, 3.0], [99.0, 99.0]]])
    assert normalised(values, torch.tensor([[True, False]])).flatten().tolist() == pytest.approx([-1, 1, 0, 0])


def test_a_baseline_of_weighted_candidates_is_weighted_too() -> None:
    rewards, weight = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[0.6, 1.8, 0.6]])
    mean = (0.6 * 1 + 0.6 * 0.5) / 3
    std = math.sqrt((0.6 * (1 - mean) ** 2 + 1.8 * mean**2 + 0.6 * (0.5 - mean) ** 2) / 3)
    wanted = [1 - mean, -mean, 0.5 - mean]
    assert advantages("group_mean", rewards, weight)[0].tolist() == pytest.approx(wanted)
    assert advantages("group_std", rewards, weight)[0].tolist() == pytest.approx([a / std for a in wanted])
    assert advantages("rank", rewards, weight)[0].tolist() == pytest.approx([1.2, -0.6, 0.6])


def test_siblings_are_compared_under_their_parent() -> None:
    codes_BGL = torch.tensor([[[0, 0], [0, 1], [1, 0], [2, 0]]])
    rewards_BG, weight_BG = torch.tensor([[1.0, 0.0, 0.0, 7.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    group = advantages("group_std", rewards_BG, weight_BG)[0]
    found_GL = level_advantages("sibling", rewards_BG, weight_BG, codes_BGL)[0]
    torch.testing.assert_close(found_GL[:, 0], group)
    torch.testing.assert_close(found_GL[:, 1], (group + torch.tensor([1.0, -1.0, 0.0, 0.0])) / 2)


def ratios(objective: str) -> Mapping[str, float]:
    old = torch.tensor([[[-1.0, 0.0], [-1.0, -2.0], [-torch.inf, -torch.inf]]])
    gap = torch.tensor([[[0.5, 0.0], [0.1, -0.5], [0.0, 0.0]]])
    advantage = torch.tensor([[[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]]])
    weight = torch.tensor([[1.0, 1.0, 0.0]])
    batch = PolicyBatch(old + gap, old, None, advantage, torch.zeros(1, 3), weight)
    kind = "item" if objective == "gspo" else "code"
    sums = ratio_statistics(batch, weight > 0, kind, Rl(objective=objective))  # type: ignore[arg-type]
    return audited({name: float(value) for name, value in sums.items()})


def test_the_audit_holds_the_ratio_and_the_share_of_codes_whose_gradient_the_clip_removes() -> None:
    found, three = ratios("grpo"), torch.tensor([0.5, 0.1, -0.5]).exp()
    assert found["clip_fraction"] == pytest.approx(2 / 3)
    assert found["ratio/mean"] == pytest.approx(float(three.mean()))
    assert found["ratio/std"] == pytest.approx(float(three.std(correction=0)), rel=1e-4)
    assert ratios("gspo")["clip_fraction"] == pytest.approx(0.5 + 0.5 * (math.exp(-0.2) < 0.8))
    assert set(found) == {"clip_fraction", "ratio/mean", "ratio/std"}


def test_a_list_of_rewards_is_learned_to_its_proportions() -> None:
    """At its minimum the list-wise loss gives candidates the shares of their gains, several positives included."""
    logp = torch.zeros(1, 4, 1, requires_grad=True)
    rewards, weight = torch.tensor([[3.0, 1.0, 0.0, 9.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    batch = PolicyBatch(logp, logp.detach(), None, torch.zeros(1, 4, 1), rewards, weight)
    loss = ranked(batch, Rl(objective="listwise"))
    shifted = ranked(replace(batch, rewards_BG=rewards + 5), Rl(objective="listwise"))
    assert float(shifted.detach()) == pytest.approx(float(loss.detach()))
    (slope,) = torch.autograd.grad(loss, logp)
    assert slope.flatten().tolist() == pytest.approx([1 / 3 - 3 / 4, 1 / 3 - 1 / 4, 1 / 3, 0])
