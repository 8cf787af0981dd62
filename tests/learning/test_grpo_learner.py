"""Updates of the learner: towards reward, resumed, refused, audited."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from support.synthetic import random_catalog, small_policy

import genrec.policy.item_rows
from genrec.config import Items, Rewards, Rl
from genrec.config.learning import OFF_POLICY
from genrec.errors import InputError
from genrec.learning.checkpoints import TrainingState
from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
from genrec.learning.rl.advantages import advantages
from genrec.learning.rl.diagnostics import (
    check_agreement,
    level_credit,
    probability_shift,
    term_shares,
    zero_advantage_share,
)
from genrec.learning.rl.learner import GrpoLearner, informative_first
from genrec.learning.rl.objectives import OBJECTIVES
from genrec.learning.rl.rollout import LocalRollouts
from genrec.learning.rl.scorer import GroupScorer
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.types import Group, Query

CATALOG = random_catalog(40, (5, 5, 5))
QUERIES = [Query(i, i, (i, i + 1, i + 2), i + 3) for i in range(8)]


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


def test_a_resumed_run_draws_the_negatives_that_it_would_have_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genrec.policy.item_rows, "FULL_SOFTMAX", 0)  # As for a large catalogue: negatives are drawn.

    def started() -> tuple[GrpoLearner, LocalRollouts]:
        torch.manual_seed(5)  # Every process begins with the same state of torch's generator.
        policy, prompts = small_policy(CATALOG, items=Items(dims=16, negatives=8))
        own, rewards = Rl(steps=4, group=6, lr=1e-3, warmup=0.0), Rewards(rank_log=0.0, prefix=0.5)
        reward = RewardFunction(rewards, RewardContext(CATALOG.codes_NL, [""] * 40), active_terms(rewards))
        learner = GrpoLearner(policy, prompts, CATALOG.trie, reward, own, Accelerator(cpu=True))
        return learner, LocalRollouts(policy, prompts, CATALOG.trie, own, seed=0)

    def run(learner: GrpoLearner, rollouts: LocalRollouts, steps: int) -> None:
        for _ in range(steps):
            learner.update(rollouts.collect(rollouts.submit(QUERIES, learner.snapshot())))

    whole, killed = started(), started()
    run(*whole, 4)
    run(*killed, 2)
    killed[0].write(tmp_path, TrainingState(step=2))
    again = started()
    again[0].read(tmp_path, TrainingState())
    run(*again, 2)
    ends = [learner.policy.snapshot(4).digest for learner, _ in (whole, again)]
    assert ends[0] == ends[1]
