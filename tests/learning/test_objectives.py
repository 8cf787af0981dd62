"""Advantages, objectives, regularisers and the critic on numbers computed by hand, gradients by autograd."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrec.config import Rl
from genrec.config.learning import OFF_POLICY
from genrec.learning.rl.advantages import ADVANTAGES, LIMIT, advantages, has_advantage
from genrec.learning.rl.critic import Critic, gae, normalised
from genrec.learning.rl.objectives import LOG_RATIO_LIMIT, OBJECTIVES, PolicyBatch
from genrec.learning.rl.regularisers import exact_entropy, exact_kl
from genrec.learning.rl.slate_advantages import slate_advantages

REWARDS = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0.3, 0], [0, 1.0, 0, 0.5]])


def test_advantages_are_those_computed_by_hand() -> None:
    found = {kind: advantages(kind, REWARDS) for kind in ADVANTAGES}
    assert all((a[0] == 0).all() for a in found.values())
    assert found["group_std"][1].tolist() == pytest.approx([-1 / math.sqrt(3)] * 2 + [math.sqrt(3), -1 / math.sqrt(3)])
    assert found["group_mean"][2].tolist() == pytest.approx([-0.375, 0.625, -0.375, 0.125])
    assert found["leave_one_out"][2].tolist() == pytest.approx([-0.5, 5 / 6, -0.5, 1 / 6])
    assert found["rank"][2].tolist() == pytest.approx([-2 / 3, 1, -2 / 3, 1 / 3])
    spread = found["group_mean"].std(correction=0)
    assert torch.allclose(found["batch_std"], found["group_mean"] / spread)


def test_a_lone_hit_gets_the_same_advantage_whatever_its_size_but_not_undivided() -> None:
    small, large = torch.tensor([[0, 0.1, 0, 0]]), torch.tensor([[0, 1.0, 0, 0]])
    for kind, same in (("group_std", True), ("rank", True), ("group_mean", False), ("leave_one_out", False)):
        assert torch.allclose(advantages(kind, small), advantages(kind, large), atol=1e-5) == same


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_nearly_equal_rewards_give_nothing_and_large_ones_are_clamped(kind: str) -> None:
    assert (advantages(kind, torch.tensor([[1.0, 1.0 + 1e-7, 1.0]])) == 0).all()
    lone = torch.zeros(1, 64)
    lone[0, 0] = 100.0
    assert float(advantages(kind, lone).abs().max()) <= LIMIT


def batch(seed: int = 0) -> tuple[PolicyBatch, Tensor]:
    """B = 2, G = 3, L = 2, the last candidate of query 1 empty; ratios on both sides of the clip range."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(2, 3, 2, generator=generator) - 0.5
    new = (old + torch.tensor([[[0.5, -0.1], [-0.5, 0.1], [0.05, 0.3]], [[0.4, 0.0], [-0.4, 0.2], [0, 0]]])).clone()
    new[1, 2], old[1, 2] = -math.inf, -math.inf
    new.requires_grad_()
    reference = (old - 0.2 * torch.rand(2, 3, 2, generator=generator)).masked_fill(old == -math.inf, -math.inf)
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.7, 0.0]])
    advantage = advantages("group_std", rewards)[..., None].expand(-1, -1, 2)
    weight = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    return PolicyBatch(new, old, reference, advantage, rewards, weight), new


def tokens(b: PolicyBatch, low: float, high: float) -> list[tuple[int, Tensor]]:
    """(query, clipped gain) of every real token, one by one."""
    found = []
    for q in range(2):
        for g in range(3 - q):
            for level in range(2):
                ratio = (b.logp_BGL[q, g, level] - b.old_BGL[q, g, level]).exp()
                a = b.advantage_BGL[q, g, level]
                found.append((q, torch.min(ratio * a, ratio.clamp(1 - low, 1 + high) * a)))
    return found


def plain_grpo(b: PolicyBatch) -> Tensor:
    return -sum((gain for _, gain in tokens(b, 0.2, 0.2)), torch.zeros(())) / 6


def plain_dr_grpo(b: PolicyBatch) -> Tensor:
    return plain_grpo(b) * 2


def plain_dapo(b: PolicyBatch) -> Tensor:
    return -sum((gain for _, gain in tokens(b, 0.2, 0.28)), torch.zeros(()))


def plain_gspo(b: PolicyBatch) -> Tensor:
    total = torch.zeros(())
    for q, g in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        s, a = (b.logp_BGL[q, g] - b.old_BGL[q, g]).mean().exp(), b.advantage_BGL[q, g, 0]
        total = total - torch.min(s * a, s.clamp(0.8, 1.2) * a) / 3
    return total


def plain_reinforce(b: PolicyBatch) -> Tensor:
    pairs = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    return -sum((b.advantage_BGL[q, g, 0] * b.logp_BGL[q, g].sum() for q, g in pairs), torch.zeros(())) / 3


def margins(b: PolicyBatch) -> list[list[Tensor]]:
    assert b.reference_BGL is not None
    gap = (b.logp_BGL - b.reference_BGL).sum(-1)
    return [[0.1 * (gap[0, 0] - gap[0, 1]), 0.1 * (gap[0, 0] - gap[0, 2])], [0.1 * (gap[1, 1] - gap[1, 0])]]


def plain_dpo(b: PolicyBatch) -> Tensor:
    return sum((torch.stack([-m.sigmoid().log() for m in row]).mean() for row in margins(b)), torch.zeros(()))


def plain_listwise(b: PolicyBatch) -> Tensor:
    """Gains 1, 0, ½ of query 0 and 0, ½ of query 1, whose last candidate is empty."""
    total = torch.zeros(())
    for q, target in ((0, [2 / 3, 0.0, 1 / 3]), (1, [0.0, 1.0])):
        chance = b.logp_BGL[q, : len(target)].sum(-1).exp()
        total = total - sum(
            (t * (c / chance.sum()).log() for t, c in zip(target, chance, strict=True)), torch.zeros(())
        )
    return total


def plain_lambdarank(b: PolicyBatch) -> Tensor:
    total = torch.zeros(())
    for q, gain in ((0, [1.0, 0.0, 0.5]), (1, [0.0, 0.5])):
        score = b.logp_BGL[q, : len(gain)].sum(-1)
        place = [1 + sum(bool(other > s) for other in score) for s in score]
        ideal = sum(g / math.log2(1 + n) for n, g in enumerate(sorted(gain, reverse=True), start=1))
        for i, better in enumerate(gain):
            for j, worse in enumerate(gain):
                if better > worse:
                    swap = abs(1 / math.log2(1 + place[i]) - 1 / math.log2(1 + place[j]))
                    total = total - (better - worse) * swap / ideal * (score[i] - score[j]).sigmoid().log()
    return total


def plain_recast(b: PolicyBatch) -> Tensor:
    """Gains 1, 0, ½ of query 0: ½ is no negative. Of query 1, whose last candidate is empty, 0 and ½."""
    score = b.logp_BGL.sum(-1)
    return -sum(((score[q, best] - score[q, worst]).sigmoid().log() for q, best, worst in ((0, 0, 1), (1, 1, 0))), 0)


def plain_s_dpo(b: PolicyBatch) -> Tensor:
    rows = [torch.stack([(-m).exp() for m in row]).sum() for row in margins(b)]
    return sum((-(-total.log()).sigmoid().log() for total in rows), torch.zeros(()))


PLAIN: dict[str, Callable[[PolicyBatch], Tensor]] = {
    "grpo": plain_grpo,
    "ppo": plain_grpo,
    "dr_grpo": plain_dr_grpo,
    "dapo": plain_dapo,
    "gspo": plain_gspo,
    "reinforce": plain_reinforce,
    "dpo": plain_dpo,
    "s_dpo": plain_s_dpo,
    "listwise": plain_listwise,
    "lambdarank": plain_lambdarank,
    "recast": plain_recast,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_has_the_value_and_gradient_of_its_plain_form(name: str) -> None:
    found = []
    for loss in (lambda b: OBJECTIVES[name].loss(b, Rl(objective=name)), PLAIN[name]):
        given, logp = batch()
        value = loss(given)
        value.backward()
        assert logp.grad is not None
        found.append((value.detach(), logp.grad.nan_to_num(0)))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)
    assert (found[0][1][1, 2] == 0).all()
    assert found[0][1].abs().max() > 0


def test_the_log_ratio_is_clamped() -> None:
    given, _ = batch()
    far = replace(given, logp_BGL=given.old_BGL + 100.0)
    assert float(far.log_ratio_BGL.max()) == LOG_RATIO_LIMIT
    assert bool(OBJECTIVES["reinforce"].loss(far, Rl()).isfinite())


def test_groups_of_equal_rewards_have_no_preference() -> None:
    given, logp = batch()
    equal = replace(given, rewards_BG=torch.ones(2, 3))
    for name in OFF_POLICY:
        OBJECTIVES[name].loss(equal, Rl(objective=name)).backward()
        assert logp.grad is not None
        assert (logp.grad == 0).all()


def test_importance_weights_scale_a_candidates_gradient() -> None:
    grads = []
    for weight in (1.0, 2.5):
        given, logp = batch()
        scale = torch.tensor([[weight, 1, 1], [1, 1, 0]])
        OBJECTIVES["reinforce"].loss(replace(given, weight_BG=scale), Rl()).backward()
        assert logp.grad is not None
        grads.append(logp.grad)
    assert torch.allclose(grads[1][0, 0], 2.5 * grads[0][0, 0])
    assert torch.equal(grads[1][0, 1:], grads[0][0, 1:])


def test_kl_and_entropy_are_exact_per_level() -> None:
    p, q = torch.tensor([[[0.5, 0.5, 0.0]]]).log(), torch.tensor([[[0.25, 0.75, 0.0]]]).log()
    once = torch.ones(1, 1, 2)
    assert exact_kl([p, p], [p, q], once).tolist() == pytest.approx([0, 0.5 * math.log(2) + 0.5 * math.log(2 / 3)])
    assert exact_entropy([p, q], once).tolist() == pytest.approx(
        [math.log(2), 0.25 * math.log(4) - 0.75 * math.log(0.75)]
    )


def test_the_value_head_begins_at_zero_and_its_advantages_are_those_of_gae() -> None:
    hidden = [torch.randn(1, 1, 4), torch.randn(1, 2, 4)]
    assert Critic(4)(hidden, 2).shape == (1, 2, 2)
    assert (Critic(4)(hidden, 2) == 0).all()
    values, rewards = torch.tensor([[[0.5, 0.2, 0.4]]]), torch.tensor([[1.0]])
    deltas = (0.2 - 0.5, 0.4 - 0.2, 1.0 - 0.4)
    by_hand = [deltas[0] + 0.95 * deltas[1] + 0.95**2 * deltas[2], deltas[1] + 0.95 * deltas[2], deltas[2]]
    assert gae(values, rewards, 0.95)[0, 0].tolist() == pytest.approx(by_hand)
    even = normalised(torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), torch.tensor([[True, False]]))
    assert even.flatten().tolist() == pytest.approx([-1, 1, 0, 0])
    assert (normalised(torch.ones(1, 2, 2), torch.ones(1, 2, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize("kind", ["group_std", "group_mean", "batch_std", "leave_one_out"])
@pytest.mark.parametrize("reward", [4.99, 29.95, 999.9])
@pytest.mark.parametrize("size", [3, 7, 12, 13])
def test_equal_rewards_give_no_advantage_however_large_they_are(kind: str, reward: float, size: int) -> None:
    rewards, weight = torch.full((1, 16), reward), torch.ones(1, 16)
    weight[:, size:] = 0
    assert not has_advantage(rewards, weight > 0).any()
    assert advantages(kind, rewards, weight).abs().max() == 0
    if kind != "batch_std":
        assert slate_advantages(kind, torch.full((1, size, 3), reward), torch.ones(1, size)).abs().max() == 0
