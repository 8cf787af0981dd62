"""Lists as candidates: their probabilities, the gradient of their expected reward, and their rewards by hand."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from support.gradients import gradient
from support.synthetic import random_catalog, small_policy
from torch import Tensor

from genrec.config import Rewards, RewardSettings, Rl, load_config
from genrec.errors import InputError
from genrec.learning.rewards import RewardContext, compute_rewards
from genrec.learning.rewards.list_terms import LIST_TERMS
from genrec.learning.rl.candidates import candidate_weights
from genrec.learning.rl.rollout import generate
from genrec.learning.rl.scorer import GroupScorer
from genrec.learning.rl.slate_advantages import gains_of, require_room, slate_advantages
from genrec.learning.rl.update_loss import MicroBatch, Targets, UpdateLoss
from genrec.policy.decoding.score import score
from genrec.policy.decoding.slates import draw_slates, list_log_probabilities
from genrec.types import Group, Query

ITEMS, SIZE = 9, 3
CATALOG = random_catalog(ITEMS, (3, 3, 3), seed=2)
QUERY = Query(0, 0, (1, 5, 3), 6)
POLICY, PROMPTS = small_policy(CATALOG)
SCORER = GroupScorer(POLICY, PROMPTS, CATALOG.trie, reference={}, codes_NL=CATALOG.codes_NL)
LISTS = torch.tensor(list(permutations(range(ITEMS), SIZE)))
KINDS = ["a", "b", "a", "c", "b", "a", "c", "", "b"]
CONTEXT = RewardContext(CATALOG.codes_NL, KINDS, counts_N=torch.arange(ITEMS))
SPREAD = Rewards.model_validate(
    {"hit": 1.0, "rank_log": -0.3, "lists": {"categories": 0.5, "new_items": 0.7}, "settings": {"rare": 3}}
)


def logp_N() -> Tensor:
    """log π of every item after the query's history, with its gradient."""
    tokens_BP, mask_BP = PROMPTS.encode([QUERY.history])
    return score(POLICY, tokens_BP, mask_BP, CATALOG.codes_NL[None], CATALOG.trie).logp_BGL[0].sum(-1)


def chance_of_lists() -> Tensor:
    """The probability of every ordered list, item after item: π of each among the items that are left."""
    chance_N = logp_N().exp()
    left = [1 - sum((chance_N[row[m]] for m in range(j)), torch.tensor(0.0)) for row in LISTS for j in range(SIZE)]
    return chance_N[LISTS].prod(1) / torch.stack(left).view(-1, SIZE).prod(1)


def group_of(lists_GJ: Tensor) -> Group:
    """The query's group of these lists, rewarded."""
    items = lists_GJ.flatten()
    logp_GL = SCORER.scores([Group(QUERY, 0, items, CATALOG.codes_NL[items], torch.zeros(len(items), 3), items, {})])
    steps_GL = logp_GL.logp_BGL[0].detach()
    group = Group(QUERY, 0, items, CATALOG.codes_NL[items], steps_GL, torch.empty(0), {}, slate=lists_GJ.shape[1])
    compute_rewards([group], RewardContext(CATALOG.codes_NL, KINDS, SPREAD.settings, CONTEXT.counts_N), SPREAD)
    return group


def update_gradient(group: Group, weight_BG: Tensor, advantage_BGJ: Tensor, objective: str) -> Tensor:
    settings = Rl(objective=objective, generation="slate", slate=SIZE, kl=0.0, sft=0.0)  # type: ignore[arg-type]
    batch = MicroBatch([group], Targets(group.rewards_G[None], weight_BG, advantage_BGJ), SCORER.scores([group]))
    return gradient(POLICY, UpdateLoss(settings, {})(batch, torch.tensor(1.0), 1)[0])


def test_the_probabilities_of_all_ordered_lists_are_those_of_draws_without_replacement() -> None:
    steps_BGJ = list_log_probabilities(logp_N()[LISTS.flatten()][None], SIZE)
    found = steps_BGJ[0].sum(-1).exp()
    assert float(found.sum().detach()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found, chance_of_lists(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradient(POLICY, found[7]), gradient(POLICY, chance_of_lists()[7]), rtol=1e-3, atol=1e-6)


def test_lists_are_drawn_with_their_probabilities() -> None:
    draws = 60_000
    tokens_BP, mask_BP = PROMPTS.encode([QUERY.history])
    drawn = draw_slates(
        POLICY, tokens_BP, mask_BP, CATALOG.trie, draws, SIZE, generator=torch.Generator().manual_seed(0)
    )
    lists = drawn.items_BW.view(draws, SIZE)
    assert bool((lists >= 0).all()) and all(len(set(row)) == SIZE for row in lists[:500].tolist())
    number = {tuple(row): at for at, row in enumerate(LISTS.tolist())}
    share = torch.bincount(torch.tensor([number[tuple(row)] for row in lists.tolist()]), minlength=len(LISTS)) / draws
    chance = chance_of_lists().detach()
    error = (chance * (1 - chance) / draws).sqrt()
    assert bool(((share - chance).abs() <= 5 * error + 2 / draws).all())
    assert float((share - chance).square().div(error.square().clamp(min=1e-12)).mean()) < 1.5
    torch.testing.assert_close(drawn.logp_BW[0, :5], logp_N().detach()[drawn.items_BW[0, :5]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("items", "levels"), [(2, (2,)), (3, (2, 2)), (4, (2, 2)), (8, (2, 2, 2)), (5, (4, 4, 4))])
def test_a_catalogue_of_fewer_items_gives_lists_of_the_same_size_with_empty_places(
    items: int, levels: tuple[int, ...]
) -> None:
    catalog = random_catalog(items, levels, seed=2)
    policy, prompts = small_policy(catalog)
    inputs = prompts.encode([(0, 1), (1,)])
    for size in range(1, items + 3):
        drawn = draw_slates(policy, *inputs, catalog.trie, 7, size, generator=torch.Generator().manual_seed(0))
        lists = drawn.items_BW.view(2 * 7, size)
        assert ((lists >= 0).sum(1) == min(size, items)).all()
        assert all(len({item for item in row if item >= 0}) == min(size, items) for row in lists.tolist())


@pytest.mark.parametrize("objective", ["reinforce", "dr_grpo", "grpo"])
def test_weighted_by_their_probability_all_lists_give_the_gradient_of_the_expected_reward(objective: str) -> None:
    group, chance = group_of(LISTS), chance_of_lists()
    wanted = -gradient(POLICY, (chance * group.rewards_G).sum())
    weight_BG = (chance.detach() * len(LISTS))[None]
    advantage_BGJ = slate_advantages("group_mean", gains_of([group]), weight_BG)
    scale = {"grpo": SIZE}.get(objective, 1)
    found = scale * update_gradient(group, weight_BG, advantage_BGJ, objective)
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-4 * float(wanted.norm()))
    halves = update_gradient(group, weight_BG, advantage_BGJ * torch.tensor([1.0, 1.0, 0.0]), objective)
    assert float((scale * halves - wanted).norm()) > 0.05 * float(wanted.norm()), "the last position counts"


def test_groups_of_drawn_lists_estimate_that_gradient_without_bias() -> None:
    wanted = -gradient(POLICY, (chance_of_lists() * group_of(LISTS).rewards_G).sum())
    settings = Rl(generation="slate", slate=SIZE, group=40)
    queries = [Query(0, 0, QUERY.history, QUERY.target, draw=draw) for draw in range(24)]
    direction, along = wanted / wanted.norm(), list[float]()
    for group in generate(POLICY, PROMPTS, CATALOG.trie, queries, settings, version=0, seed=5):
        assert group.slate == SIZE and len(group.items_G) == 40 * SIZE
        rewarded = group_of(group.items_G.view(40, SIZE))
        weight_BG = candidate_weights([rewarded], "uniform")
        advantage_BGJ = slate_advantages("leave_one_out", gains_of([rewarded]), weight_BG)
        along.append(float(update_gradient(rewarded, weight_BG, advantage_BGJ, "reinforce") @ direction))
    values = torch.tensor(along)
    error = float(values.std()) / len(along) ** 0.5
    assert abs(float(values.mean()) - float(wanted.norm())) < 4 * error < float(wanted.norm())


def slate(items: list[int]) -> Group:
    rows = torch.tensor(items)
    return Group(
        QUERY, 0, rows, CATALOG.codes_NL[rows], torch.zeros(len(items), 3), torch.empty(0), {}, slate=len(rows)
    )


def test_rewards_of_lists_are_what_their_formulas_say() -> None:
    class Future:
        """The user's next items and their events."""

        def items(self, query: int, count: int) -> list[int]:
            return [4, 2]

        def events(self, query: int, count: int) -> list[str]:
            return ["view", "purchase"]

    settings = RewardSettings(events={"view": 1.0, "purchase": 3.0}, discount=1.0, rare=3)
    vectors = torch.nn.functional.normalize(torch.eye(ITEMS)[:, :3] + 1e-9, dim=1)
    vectors[3:] = torch.tensor([1.0, 0, 0])
    context = RewardContext(
        CATALOG.codes_NL,
        KINDS,
        settings,
        counts_N=torch.arange(ITEMS),
        future_items=Future(),  # type: ignore[arg-type]
        vectors_ND=vectors,
        value_N=torch.tensor([1.0, 1, 10, 1, 5, 1, 1, 1, 1]),
    )
    one = slate([4, 0, 2, 7])
    by_name = {name: term(one, context).tolist() for name, term in LIST_TERMS.items()}
    assert by_name["dcg"] == pytest.approx([5, 0, 30 / math.log2(4), 0])
    assert by_name["categories"] == [1, 1, 0, 0]
    assert by_name["new_items"] == [0, 0.25, 0.25, 0]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    rows = vectors[one.items_G]
    wanted = sum(1 - float(rows[i] @ rows[j]) for i, j in pairs) / len(pairs)
    assert sum(by_name["distance"]) == pytest.approx(wanted, abs=1e-5)


def test_terms_of_items_see_their_list_and_a_list_is_paid_the_sum_of_its_positions() -> None:
    group = group_of(torch.tensor([[6, 1, 0], [1, 6, 3], [2, 0, 5]]))
    assert group.gains_GJ is not None
    torch.testing.assert_close(
        group.terms["rank_log"], torch.tensor([0.0, -0.3 * math.log(2), 0.0]), msg="the rank in the list"
    )
    assert group.terms["categories"].tolist() == [1.5, 1.0, 0.5]
    torch.testing.assert_close(group.rewards_G, group.gains_GJ.sum(-1))
    torch.testing.assert_close(group.rewards_G, sum(group.terms.values(), torch.zeros(3)))


def test_an_item_is_not_paid_for_what_the_items_before_it_earned() -> None:
    gains = torch.tensor([[[5.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    advantage = slate_advantages("group_mean", gains, torch.ones(1, 3))[0]
    torch.testing.assert_close(advantage[:, 1], torch.tensor([-1 / 3, 2 / 3, -1 / 3]))
    torch.testing.assert_close(advantage[:, 0], torch.tensor([3.0, -1.0, -2.0]))
    assert slate_advantages("group_std", torch.full((1, 3, 2), 0.3), torch.ones(1, 3)).abs().max() == 0
    empty = slate_advantages("leave_one_out", gains, torch.tensor([[1.0, 1.0, 0.0]]))[0]
    assert empty[2].abs().max() == 0 and float(empty[0, 1]) == -1


def test_what_lists_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="lists of 50 distinct items, and the catalogue has 24"):
        require_room(50, 24)
    wrong = {
        "learning.rl.groups=fixed": "groups=fresh",
        "learning.rl.add_target=true": "add_target",
        "learning.rl.objective=ppo": "ppo",
        "learning.rl.advantage=sibling": "not defined for lists",
        "learning.rl.candidate_weight=probability": "drawn by their probability",
    }
    for override, message in wrong.items():
        with pytest.raises(InputError, match=message):
            load_config([], ["learning.rl.generation=slate", override])
    with pytest.raises(InputError, match=r"set learning\.rl\.generation=slate"):
        load_config([], ["rewards.lists.categories=0.1"])
    load_config([], ["learning.rl.generation=slate", "rewards.hit=0", "rewards.rank_log=0", "rewards.lists.dcg=1"])


@pytest.mark.parametrize(
    "more",
    [
        ["learning.rl.groups=crossfit", "learning.rl.objective=listwise"],
        ["learning.rl.objective=recast"],
        ["learning.rl.gate=rank"],
    ],
)
def test_lists_are_refused_where_a_candidate_must_be_an_item(more: list[str]) -> None:
    with pytest.raises(InputError, match="generation=slate"):
        load_config([], ["learning.rl.generation=slate", *more])
