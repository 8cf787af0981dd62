"""Advantages, objectives, the critic and the measurements on numbers computed by hand, gradients by autograd."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from support.synthetic import random_catalog, small_policy
from torch import Tensor

from genrec.config import Rewards, Rl
from genrec.config.learning import OFF_POLICY
from genrec.errors import InputError
from genrec.learning.checkpoints import TrainingState
from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
from genrec.learning.rl.advantages import ADVANTAGES, LIMIT, advantages
from genrec.learning.rl.candidates import mixed, with_target
from genrec.learning.rl.critic import Critic, gae, normalised
from genrec.learning.rl.diagnostics import (
    check_agreement,
    level_credit,
    probability_shift,
    term_shares,
    zero_advantage_share,
)
from genrec.learning.rl.learner import GrpoLearner, informative_first
from genrec.learning.rl.objectives import LOG_RATIO_LIMIT, OBJECTIVES, PolicyBatch
from genrec.learning.rl.regularisers import exact_entropy, exact_kl
from genrec.learning.rl.rollout import LocalRollouts, generate
from genrec.learning.rl.scorer import GroupScorer
from genrec.policy.decoding.beam import Beams
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.types import Group, Query

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


def rewarded(rewards: dict[str, list[float]], query: int = 0) -> Group:
    terms = {name: torch.tensor(values) for name, values in rewards.items()}
    total = sum(terms.values(), torch.zeros(len(next(iter(terms.values())))))
    items = torch.arange(len(total))
    return Group(Query(query, 0, (0,), 0), 0, items, items[:, None], torch.zeros(len(total), 1), total, terms)


def test_shares_of_the_advantages_add_up_and_leave_constant_terms_out() -> None:
    groups = [
        rewarded({"a": [1.0, 0, 0, 0], "b": [0, 0.5, 0, 0], "flat": [3.0, 3, 3, 3]}),
        rewarded({"a": [0.0, 0.1, 0, 0]}),
    ]
    rewards_BG = torch.stack([g.rewards_G for g in groups])
    divided = term_shares(groups, advantages("group_std", rewards_BG))
    whole = term_shares(groups, advantages("group_mean", rewards_BG))
    assert sum(divided.values()) == pytest.approx(1.0, abs=1e-5)
    assert divided["flat"] == pytest.approx(0.0, abs=1e-6)
    assert divided["a"] > whole["a"]
    first = term_shares(groups[:1], advantages("group_mean", rewards_BG[:1]))
    assert (first["a"], first["b"]) == pytest.approx((10 / 11, 1 / 11), abs=1e-5)
    assert all(math.isnan(v) for v in term_shares([rewarded({"a": [1.0, 1.0]})], torch.zeros(1, 2)).values())


def test_zero_advantage_groups_are_counted_and_come_last() -> None:
    groups = [
        rewarded({"a": [1.0, 1.0]}, 0),
        rewarded({"a": [1.0, 0.0]}, 1),
        rewarded({"a": [0.0, 0.0]}, 2),
        rewarded({"a": [0.0, 1.0]}, 3),
    ]
    assert float(zero_advantage_share(torch.stack([g.rewards_G for g in groups]), torch.ones(4, 2) > 0)) == 0.5
    assert [g.query.id for g in informative_first(groups)] == [1, 3, 0, 2]


def test_credit_goes_where_the_policy_is_unsure() -> None:
    logp = torch.tensor([[[0.5, 1.0], [0.25, 0.5]]]).log()
    credit = level_credit(logp, torch.tensor([[[1.0, 1.0], [-2.0, -2.0]]]), torch.ones(1, 2, dtype=torch.bool))
    assert credit.tolist() == pytest.approx([0.5 + 2 * 0.75, 0.0 + 2 * 0.5])


def test_mass_moves_between_buckets_and_a_repeated_candidate_counts_once() -> None:
    now, before = torch.tensor([[[0.5], [0.5], [0.2]]]).log(), torch.tensor([[[0.3], [0.3], [0.3]]]).log()
    buckets = {"head": torch.tensor([True, False]), "tail": torch.tensor([False, True])}
    moved = probability_shift(now, before, torch.tensor([[0, 0, 1]]), buckets)
    assert {name: float(v) for name, v in moved.items()} == pytest.approx({"head": 0.2, "tail": -0.1})


CATALOG = random_catalog(40, (5, 5, 5))
QUERIES = [Query(i, i, (i, i + 1, i + 2), i + 3) for i in range(8)]


@pytest.mark.parametrize("mode", ["beam", "sample", "stochastic_beam", "mixed"])
def test_a_rollout_is_a_function_of_policy_queries_and_seed(mode: str) -> None:
    policy, prompts = small_policy(CATALOG)
    settings = Rl(group=6, generation=mode)  # type: ignore[arg-type]
    made = [generate(policy, prompts, CATALOG.trie, QUERIES, settings, version=0, seed=seed) for seed in (3, 3, 4)]
    items = [torch.stack([g.items_G for g in groups]) for groups in made]
    assert torch.equal(items[0], items[1])
    assert torch.equal(items[0], items[2]) == (mode == "beam")
    for group in made[0]:
        assert (group.codes_GL == CATALOG.codes_NL[group.items_G]).all()
        assert group.logp_GL.sum(-1).tolist() == sorted(group.logp_GL.sum(-1).tolist(), reverse=True)
        assert mode == "sample" or len(set(group.items_G.tolist())) == 6
        if mode == "stochastic_beam":
            assert group.weights_G is not None
            assert float(group.weights_G.mean()) == pytest.approx(1.0)


def test_a_mixture_holds_the_best_half_and_distinct_others() -> None:
    def beams(items: list[int]) -> Beams:
        tensor = torch.tensor([items])
        return Beams(tensor, tensor[..., None], -tensor[..., None].float())

    assert mixed(beams([0, 1, 2, 3]), beams([1, 7, 0, 5])).items_BW.tolist() == [[0, 1, 7, 5]]
    assert mixed(beams([0, 1, 2, 3]), beams([1, 0, 6, 1])).items_BW.tolist() == [[0, 1, 6, -1]]


def test_the_target_is_added_where_it_was_missed_with_its_own_probability() -> None:
    policy, prompts = small_policy(CATALOG)
    plain, added = (
        generate(policy, prompts, CATALOG.trie, QUERIES, Rl(group=4, add_target=add), version=0, seed=0)
        for add in (False, True)
    )
    whole = generate(policy, prompts, CATALOG.trie, QUERIES, Rl(group=40), version=0, seed=0)
    missed = 0
    for before, after, every in zip(plain, added, whole, strict=True):
        target = after.query.target
        assert after.items_G.tolist().count(target) == 1
        place = after.items_G.tolist().index(target)
        assert torch.equal(after.codes_GL[place], CATALOG.codes_NL[target])
        known = float(every.logp_GL[every.items_G == target].sum())
        assert float(after.logp_GL[place].sum()) == pytest.approx(known, abs=1e-4)
        missed += target not in before.items_G.tolist()
    assert missed > 0


def test_a_target_without_a_leaf_is_not_added() -> None:
    policy, prompts = small_policy(CATALOG)
    trie = CATALOG.trie.without([QUERIES[0].target])
    tokens_BP, mask_BP = prompts.encode([QUERIES[0].history])
    made = generate(policy, prompts, trie, QUERIES[:1], Rl(group=4), version=0, seed=0)[0]
    beams = Beams(made.items_G[None], made.codes_GL[None], made.logp_GL[None])
    again = with_target(policy, tokens_BP, mask_BP, trie, beams, [QUERIES[0].target])
    assert torch.equal(again.items_BW, beams.items_BW)


@torch.no_grad()
def rewarded_probability(policy: Policy, prompts: Prompts, groups: list[Group], reward: RewardFunction) -> float:
    """Mean over groups of the probability of candidates with an above-average reward, given the group."""
    reward(groups)
    scorer = GroupScorer(policy, prompts, CATALOG.trie, reference={}, codes_NL=CATALOG.codes_NL)
    chance_BG = scorer.scores(groups).logp_BGL.sum(-1).exp()
    rewards_BG = torch.stack([group.rewards_G for group in groups])
    above_BG = rewards_BG > rewards_BG.mean(1, keepdim=True) + 1e-6
    share_B = (chance_BG * above_BG).sum(1) / chance_BG.sum(1)
    return float(share_B[above_BG.any(1)].mean())


@pytest.mark.parametrize(
    "settings",
    [
        *({"objective": name} for name in OBJECTIVES),
        {"generation": "stochastic_beam", "objective": "reinforce"},
        {"generation": "mixed", "entropy": 0.1, "kl": 0.0},
        {"objective": "dapo", "oversample": 2, "add_target": True},
    ],
    ids=str,
)
def test_every_objective_takes_a_step_towards_reward(settings: dict[str, str]) -> None:
    rewards = Rewards(rank_log=0.0, prefix=0.5)
    records, weights = [], []
    for micro in (8, 4):
        policy, prompts = small_policy(CATALOG)
        own = Rl(steps=3, group=6, lr=1e-3, warmup=0.0, micro_queries=micro, **settings)  # type: ignore[arg-type]
        context = RewardContext(CATALOG.codes_NL, [""] * 40, buckets={"head": torch.arange(40) < 20})
        reward = RewardFunction(rewards, context, active_terms(rewards))
        learner = GrpoLearner(policy, prompts, CATALOG.trie, reward, own, Accelerator(cpu=True))
        rollouts = LocalRollouts(policy, prompts, CATALOG.trie, own, seed=0)
        made = rollouts.collect(rollouts.submit(QUERIES, learner.snapshot()))
        before = rewarded_probability(policy, prompts, made, reward)
        records.append([learner.update(made) for _ in range(2)][-1])
        after = rewarded_probability(policy, prompts, made, reward)
        assert after > before + 1e-3
        weights.append(torch.cat([p.detach().flatten() for p in policy.trainable().values()]))
    record = records[0]
    assert sum(record[f"level_credit/{level}"] for level in (1, 2, 3)) == pytest.approx(1.0, abs=1e-4)
    assert record["kl"] == pytest.approx(sum(record[f"kl/{level}"] for level in (1, 2, 3)), abs=1e-6)
    assert ("prob_shift/head" in record) == (settings.get("kl", 0.1) != 0.0)
    assert record["advantage_share/hit"] + record["advantage_share/prefix"] == pytest.approx(1.0, abs=1e-4)
    assert records[1] == pytest.approx(record, rel=2e-2, abs=1e-3)
    assert torch.allclose(weights[0], weights[1], atol=2e-3)


@pytest.mark.parametrize("critic", ["linear", "layers"])
def test_a_resumed_value_head_is_the_one_that_was_saved(tmp_path: Path, critic: str) -> None:
    def learner() -> GrpoLearner:
        policy, prompts = small_policy(CATALOG)
        own = Rl(objective="ppo", group=4, critic=critic)  # type: ignore[arg-type]
        context, rewards = RewardContext(CATALOG.codes_NL, [""] * 40), Rewards()
        reward = RewardFunction(rewards, context, active_terms(rewards))
        return GrpoLearner(policy, prompts, CATALOG.trie, reward, own, Accelerator(cpu=True))

    first, again = learner(), learner()
    rollouts = LocalRollouts(first.policy, small_policy(CATALOG)[1], CATALOG.trie, Rl(group=4), seed=0)
    first.update(rollouts.collect(rollouts.submit(QUERIES, first.snapshot())))
    first.write(tmp_path, TrainingState())
    again.read(tmp_path, TrainingState())
    (tmp_path / "again").mkdir()
    again.write(tmp_path / "again", TrainingState())
    states = [
        torch.load(folder / "critic.pt", weights_only=True)["critic"] for folder in (tmp_path, tmp_path / "again")
    ]
    assert states[0]["head.bias"].abs().max() > 0
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_forced_target_and_importance_weights_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="importance weights undefined"):
        Rl(generation="stochastic_beam", add_target=True)


@pytest.mark.parametrize("mode", ["sample", "stochastic_beam", "mixed"])
def test_what_is_drawn_for_a_query_depends_on_its_place_in_the_run_and_on_no_other_query(mode: str) -> None:
    policy, prompts = small_policy(CATALOG)
    settings = Rl(group=6, generation=mode)  # type: ignore[arg-type]

    def drawn(queries: list[Query], version: int = 0, seed: int = 0) -> list[list[int]]:
        found = generate(policy, prompts, CATALOG.trie, queries, settings, version=version, seed=seed)
        return [group.items_G.tolist() for group in found]

    whole = drawn(QUERIES)
    assert whole == [*drawn(QUERIES[:3]), *drawn(QUERIES[3:])] and whole[::-1] == drawn(QUERIES[::-1])
    later = [replace(query, draw=8 + place) for place, query in enumerate(QUERIES)]
    others = [drawn(later), drawn(QUERIES, version=1), drawn(QUERIES, seed=1), drawn(QUERIES, version=1, seed=1)]
    runs = [whole, *others]
    assert all(first != second for place, first in enumerate(runs) for second in runs[:place])


@pytest.mark.parametrize(("sft", "figure"), [(1e38, "loss"), (1e37, "gradient norm")])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_update_and_leaves_the_weights(sft: float, figure: str) -> None:
    policy, prompts = small_policy(CATALOG)
    settings, rewards = Rl(group=6, lr=1e-3, sft=sft), Rewards()
    reward = RewardFunction(rewards, RewardContext(CATALOG.codes_NL, [""] * 40), active_terms(rewards))
    learner = GrpoLearner(policy, prompts, CATALOG.trie, reward, settings, Accelerator(cpu=True))
    rollouts = LocalRollouts(policy, prompts, CATALOG.trie, settings, seed=0)
    groups, before = rollouts.collect(rollouts.submit(QUERIES, learner.snapshot())), policy.snapshot(0).digest
    message = rf"step 1: got a {figure} of inf.*query 0.*lower learning\.rl\.lr=0\.001 or learning\.rl\.clip=1"
    with pytest.raises(InputError, match=message):
        learner.update(groups)
    assert policy.snapshot(0).digest == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": "fixed"}, "objective=grpo needs groups of the policy as it stands.*take groups=fresh, or one of"),
        ({"groups": "fixed", "objective": "ppo"}, "objective=ppo needs groups of the policy as it stands"),
        ({"groups": "fixed", "objective": "listwise", "oversample": 2}, "set oversample=1"),
        ({"fixed_queries": 5}, "fixed_queries is about groups=fixed"),
        ({"candidate_weight": "probability", "generation": "sample"}, "drawn by their probability already; take"),
        ({"candidate_weight": "probability", "objective": "listwise"}, "changes nothing for objective=listwise"),
        ({"advantage": "sibling", "objective": "gspo"}, "has one advantage per item"),
        ({"add_target": True, "generation": "sample", "temperature": 2.0}, "set temperature=1"),
        ({"objective": "recast", "generation": "stochastic_beam"}, "importance weights undefined"),
        ({"objective": "recast", "gate": "rank"}, "with add_target .or objective=recast. all do; take one of the two"),
        ({"hint": 0.5, "generation": "mixed"}, "generation=mixed draws; take generation=beam"),
        ({"hint": 0.5, "groups": "fixed", "objective": "listwise"}, "groups=fixed are generated once; take groups=f"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Rl(**settings)  # type: ignore[arg-type]


def test_only_objectives_without_a_ratio_to_the_generating_policy_take_old_groups() -> None:
    """Plain REINFORCE has no ratio either, but its expectation is over the policy as it stands."""
    without = {name for name, objective in OBJECTIVES.items() if objective.ratio == "none"}
    assert without - {"reinforce"} == set(OFF_POLICY)


@pytest.mark.parametrize(
    "settings", [{"advantage": "sibling"}, {"candidate_weight": "probability"}, {"prefix_weight": "uniform"}], ids=str
)
def test_an_update_with_each_way_to_weigh_is_finite_and_audited(settings: dict[str, str]) -> None:
    policy, prompts = small_policy(CATALOG)
    own = Rl(steps=3, group=6, lr=1e-3, warmup=0.0, **settings)  # type: ignore[arg-type]
    rewards = Rewards(prefix=0.5)
    reward = RewardFunction(rewards, RewardContext(CATALOG.codes_NL, [""] * 40), active_terms(rewards))
    learner = GrpoLearner(policy, prompts, CATALOG.trie, reward, own, Accelerator(cpu=True))
    rollouts = LocalRollouts(policy, prompts, CATALOG.trie, own, seed=0)
    made = rollouts.collect(rollouts.submit(QUERIES, learner.snapshot()))
    first, second = learner.update(made), learner.update(made)
    assert (first["ratio/mean"], first["ratio/std"], first["clip_fraction"]) == pytest.approx((1, 0, 0), abs=1e-3)
    assert second["ratio/std"] > 0 and second["gradient_norm"] > 0
    assert second["kl"] > first["kl"] == pytest.approx(0, abs=1e-6)


def test_in_bfloat16_single_candidates_may_differ_and_the_mean_may_not() -> None:
    old_BGL, valid_BG = torch.full((4, 8, 3), -1.0), torch.ones(4, 8, dtype=torch.bool)
    one_BGL = old_BGL.clone()
    one_BGL[0, 0, 0] += 0.5
    check_agreement(one_BGL, old_BGL, valid_BG, torch.bfloat16)
    with pytest.raises(InputError, match=r"differ from the learner's by 0\.5 \(limit 0\.001\)"):
        check_agreement(one_BGL, old_BGL, valid_BG, torch.float32)
    with pytest.raises(InputError, match=r"differ from the learner's by 0\.3 \(limit 0\.2\)"):
        check_agreement(old_BGL + 0.3, old_BGL, valid_BG, torch.bfloat16)
