"""Repair and contrast, the gate by the target's rank, and hints that are withdrawn."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.synthetic import random_catalog, small_policy

from genrec.config import Rewards, Rl
from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
from genrec.learning.rl.contrast import recast
from genrec.learning.rl.difficulty import hint_masks, hint_probability, target_ranks
from genrec.learning.rl.fixed_groups import FixedGroups, write_groups
from genrec.learning.rl.learner import GrpoLearner
from genrec.learning.rl.rollout import generate
from genrec.types import Group, Query

CATALOG = random_catalog(40, (5, 5, 5))
QUERIES = [Query(i, i, (i, i + 1, i + 2), i + 3) for i in range(24)]
REWARDS = Rewards(rank_log=0.0)
CODE = CATALOG.codes_NL[:, 0]


def reward() -> RewardFunction:
    return RewardFunction(REWARDS, RewardContext(CATALOG.codes_NL, [""] * 40), active_terms(REWARDS))


def generated(version: int = 0, **settings: object) -> list[Group]:
    policy, prompts = small_policy(CATALOG)
    own = Rl(**{"group": 6, **settings})  # type: ignore[arg-type]
    return generate(policy, prompts, CATALOG.trie, QUERIES, own, version=version, seed=0)


def test_the_best_is_held_against_the_most_probable_of_those_that_are_far_worse() -> None:
    score = torch.tensor([[-1.0, -2.0, -3.0, -0.5, -0.1]], requires_grad=True)
    rewards, real = torch.tensor([[0.9, 1.0, 0.0, 0.4, 0.0]]), torch.tensor([[True, True, True, True, False]])
    loss = recast(score, rewards, real, 0.5)
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp((-0.5 + 2.0) / 0.5)))
    loss.backward()
    assert score.grad is not None
    assert (score.grad != 0).tolist() == [[False, True, False, True, False]]
    assert score.grad[0, 1] == -score.grad[0, 3] < 0
    shifted = recast(score, rewards + 7, real, 0.5)
    assert float(shifted.detach()) == pytest.approx(float(loss.detach()), abs=1e-5)
    two = recast(score, torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), real, 1.0)
    assert float(two.detach()) == pytest.approx(math.log1p(math.exp(-0.5 + 1.0))), "of equal ones the most probable"


def test_recast_repairs_every_group() -> None:
    for group in generated(objective="recast"):
        assert group.items_G.tolist().count(group.query.target) == 1


def test_the_rank_of_a_target_counts_distinct_items_that_are_more_probable() -> None:
    def group(items: list[int], logp: list[float], target: int) -> Group:
        given = torch.tensor(items)
        return Group(
            Query(0, 0, (0,), target), 0, given, given[:, None], torch.tensor(logp)[:, None], torch.empty(0), {}
        )

    groups = [
        group([5, 3, 4, -1], [-1, -2, -3, -math.inf], 5),
        group([5, 5, 3, 4], [-1, -1, -2, -3], 4),
        group([3, 4, 9, 5], [-4, -1, -2, -3], 3),
        group([5, 3, 4, -1], [-1, -2, -3, -math.inf], 7),
    ]
    assert target_ranks(groups).tolist() == [1, 3, 4, 0]


def test_the_gate_gives_easy_queries_no_reward_and_missed_ones_supervision_alone() -> None:
    groups = generated()
    ranks = target_ranks(groups).tolist()
    easy, known, missed = (
        [group for group, rank in zip(groups, ranks, strict=True) if min(rank, 2) == kind] for kind in (1, 2, 0)
    )
    assert easy and known and missed

    def moved(some: list[Group], **settings: object) -> tuple[torch.Tensor, dict[str, float]]:
        policy, prompts = small_policy(CATALOG)
        own = Rl(group=6, kl=0.0, lr=1e-3, warmup=0.0, **settings)  # type: ignore[arg-type]
        learner = GrpoLearner(policy, prompts, CATALOG.trie, reward(), own, Accelerator(cpu=True))
        before = torch.cat([p.detach().flatten().clone() for p in policy.trainable().values()])
        record = learner.update(some)
        return torch.cat([p.detach().flatten() for p in policy.trainable().values()]) - before, record

    still, record = moved(easy + missed, gate="rank", gate_sft=0.0, sft=0.0)
    assert (still == 0).all() and record["gate/easy"] == pytest.approx(len(easy) / len(easy + missed))
    assert moved(known, gate="rank", gate_sft=0.0, sft=0.0)[1]["gradient_norm"] > 0
    supervised, record = moved(missed, gate="rank", gate_sft=0.7, sft=0.0)
    assert record["gate/missed"] == 1 and record["surrogate"] == 0
    assert torch.allclose(supervised, moved(missed, sft=0.7)[0], atol=1e-7), "missed groups have no advantage anyway"
    assert torch.allclose(moved(known, gate="rank")[0], moved(known)[0])


def test_fixed_groups_keep_what_the_gate_teaches(tmp_path: Path) -> None:
    import pyarrow as pa

    groups = generated()
    write_groups(groups, {}, tmp_path / "part-00000.parquet")
    fixed = FixedGroups(tmp_path, CATALOG.codes_NL, {})
    rows = {"id": [q.id for q in QUERIES], "user": [q.user for q in QUERIES], "target": [q.target for q in QUERIES]}
    table = pa.table({**rows, "history": [list(q.history) for q in QUERIES]})

    def kept(**settings: object) -> set[int]:
        return set(fixed.informative(table, reward(), Rl(**settings))["id"].to_pylist())  # type: ignore[arg-type]

    ranks = dict(zip(rows["id"], target_ranks(groups).tolist(), strict=True))
    assert kept() == {id_ for id_, rank in ranks.items() if rank}
    assert kept(gate="rank") == set(ranks)
    assert kept(gate="rank", sft=0.0) == {id_ for id_, rank in ranks.items() if rank != 1}


def test_hints_keep_a_search_to_the_targets_first_code_and_are_withdrawn() -> None:
    settings = Rl(hint=0.8, hint_share=0.5, steps=100)
    shares = [hint_probability(settings, version) for version in (0, 25, 50, 99)]
    assert shares == pytest.approx([0.8, 0.4, 0, 0])
    assert hint_masks(CATALOG.trie, QUERIES, settings, version=50, seed=0) is None
    plain, all_hinted, again = generated(), generated(hint=1.0), generated(hint=1.0)
    for group, same in zip(all_hinted, again, strict=True):
        real = group.items_G >= 0
        assert real.any() and (CODE[group.items_G[real]] == CODE[group.query.target]).all()
        assert torch.equal(group.items_G, same.items_G)
    some = generated(hint=0.5)
    is_hinted = [not torch.equal(one.items_G, other.items_G) for one, other in zip(some, plain, strict=True)]
    assert 0 < sum(is_hinted) < len(QUERIES)
    whole = {group.query.id: group for group in generated(group=40)}
    for group in all_hinted:
        every = whole[group.query.id]
        for item, logp in zip(group.items_G.tolist(), group.logp_GL.sum(-1).tolist(), strict=True):
            if item >= 0:
                assert logp == pytest.approx(float(every.logp_GL[every.items_G == item].sum()), abs=1e-4)


def test_a_target_that_left_the_catalogue_gives_no_hint() -> None:
    gone = CATALOG.trie.without([QUERIES[0].target])
    assert hint_masks(gone, QUERIES[:1], Rl(hint=1.0), version=0, seed=0) is None
