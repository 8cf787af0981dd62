"""The built-in reward terms: a value r_i per candidate i, (G,), in rank order, best first.

The config's weight multiplies r. y is the target, item_i the candidate's item, G the size of the group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genrec.learning.rewards.context import RewardContext, Term, require
from genrec.types import Group


def hit(group: Group, context: RewardContext) -> Tensor:
    """r_i = [item_i ∈ Y]: 1 for the ground truth Y, 0 for other items.

    Y is the target y, or with ``ground_truth=future`` the user's train targets from y on, ``horizon`` of them.
    """
    if context.settings.ground_truth == "target":
        return (group.items_G == group.query.target).float()
    future_items = require(context.future_items, "the users' next training items")
    items = future_items.items(group.query.id, context.settings.horizon)
    return torch.isin(group.items_G, torch.tensor(items)).float()


def rank_log(group: Group, context: RewardContext) -> Tensor:
    """r_i = ln(i) · hit_i; with a negative weight a hit at a lower rank has a lower reward."""
    return hit(group, context) * _ranks(group).log()


def rank_linear(group: Group, context: RewardContext) -> Tensor:
    """r_i = i · hit_i; with weight -0.1 and ``hit`` 1, a hit at rank 10 has the reward of a miss."""
    return hit(group, context) * _ranks(group)


def ndcg_rank(group: Group, context: RewardContext) -> Tensor:
    """r_i = -w_i / Σ_j w_j · (1 - hit_i) in a group with a hit, else 0, where w_i = 1 / log2(i + 1).

    The better the rank of a wrong item, the lower its reward (MiniOneRec, Kong et al. 2025, "Rank reward").
    """
    hit_G = hit(group, context)
    gains_G = 1 / (_ranks(group) + 1).log2()
    return -(gains_G / gains_G.sum()) * (1 - hit_G) * hit_G.max()


def prefix(group: Group, context: RewardContext) -> Tensor:
    """r_i = (leading levels on which the SIDs of item_i and y agree) / L."""
    target_L = context.codes_NL[group.query.target]
    return (group.codes_GL == target_L).long().cumprod(-1).float().mean(-1)


def future(group: Group, context: RewardContext) -> Tensor:
    """r_i = max_d γ^d · [item_i = y_d], where y_d is the user's d-th train target after y (y_0 = y), d < horizon."""
    settings, future_items = context.settings, require(context.future_items, "the users' next training items")
    items = future_items.items(group.query.id, settings.horizon)
    return _credit(group, items, [settings.discount**d for d in range(len(items))])


def event(group: Group, context: RewardContext) -> Tensor:
    """r_i = max_d γ^d · value(event type of y_d) · worth(y_d) · [item_i = y_d], y_d as in ``future``.

    An item's worth is 1, or what ``value_column`` says, such as its price.

    Delayed credit: if the target was a click and its item is purchased later, that purchase counts, discounted. After
    y itself only types in ``delayed`` count, where it names some.
    """
    settings, future_items = context.settings, require(context.future_items, "the users' next training events")
    items = future_items.items(group.query.id, settings.horizon)
    types = future_items.events(group.query.id, settings.horizon)
    counts = [d for d, name in enumerate(types) if d == 0 or settings.delayed is None or name in settings.delayed]
    values = [settings.discount**d * settings.events.get(types[d], settings.other_events) for d in counts]
    items = [items[d] for d in counts]
    if context.value_N is not None:
        worth = context.value_N[items].tolist()
        values = [value * times for value, times in zip(values, worth, strict=True)]
    return _credit(group, items, values)


def semantic(group: Group, context: RewardContext) -> Tensor:
    """r_i = cos(vector of item_i, vector of y), in [-1, 1]."""
    vectors_ND = semantic_vectors(context)
    return vectors_ND[group.items_G.clamp(min=0)] @ vectors_ND[group.query.target]


def semantic_vectors(context: RewardContext) -> Tensor:
    """Item vectors of length 1, (N, D)."""
    return require(context.vectors_ND, "item vectors")


def collaborative(group: Group, context: RewardContext) -> Tensor:
    """r_i = s_i / max_j s_j, in [0, 1], where s is ItemKNN's score after the history, fitted on other users."""
    neighbours = require(context.neighbours, "item neighbours")
    return neighbours(group.query.user, group.query.history, group.items_G)


def diversity(group: Group, context: RewardContext) -> Tensor:
    """r_i = [no candidate j < i has the category of item_i]: the marginal contribution to the number of categories.

    0 for items without a category.
    """
    seen: set[str] = set()
    values: list[float] = []
    for category in _categories(group, context):
        values.append(float(bool(category) and category not in seen))
        seen.add(category)
    return torch.tensor(values)


def category_count(group: Group, context: RewardContext) -> Tensor:
    """r_i = (distinct categories in the group) / G, equal for all i: cancels wherever groups are centred."""
    count = len(set(_categories(group, context)) - {""})
    return torch.full((len(group.items_G),), count / len(group.items_G))


def repeat(group: Group, context: RewardContext) -> Tensor:
    """r_i = [item_i is in the history]."""
    return torch.isin(group.items_G, torch.tensor(group.query.history)).float()


def unwanted_repeat(group: Group, context: RewardContext) -> Tensor:
    """r_i = [item_i is in the history] · [the user does not buy item_i within the ``horizon``].

    An event of a type in ``purchases`` buys: that an item is bought which was viewed before is what a shop wants.
    """
    settings, future_items = context.settings, require(context.future_items, "the users' next training events")
    items = future_items.items(group.query.id, settings.horizon)
    types = future_items.events(group.query.id, settings.horizon)
    bought = [item for item, type_ in zip(items, types, strict=True) if type_ in settings.purchases]
    return repeat(group, context) * (1 - torch.isin(group.items_G, torch.tensor(bought, dtype=torch.long)).float())


def novelty(group: Group, context: RewardContext) -> Tensor:
    """r_i = max(0, 1 - n_i / (rare + 1)), where n_i is the number of the item's train events."""
    counts_G = require(context.counts_N, "train counts")[group.items_G.clamp(min=0)]
    return (1 - counts_G / (context.settings.rare + 1)).clamp(min=0)


def popularity_penalty(group: Group, context: RewardContext) -> Tensor:
    """r_i = -ln(1 + n_i) / ln(1 + max n), where n_i is the number of the item's train events.

    Log popularity: Steck, "Item popularity", 2011.
    """
    counts_N = require(context.counts_N, "train counts")
    scale = torch.log1p(counts_N.max().clamp(min=1).float())
    return -torch.log1p(counts_N[group.items_G.clamp(min=0)].float()) / scale


TERMS: Mapping[str, Term] = {
    term.__name__: term
    for term in (
        hit,
        rank_log,
        rank_linear,
        ndcg_rank,
        prefix,
        future,
        event,
        semantic,
        collaborative,
        diversity,
        category_count,
        repeat,
        unwanted_repeat,
        novelty,
        popularity_penalty,
    )
}
"""Every built-in term by its config name; the config's ``rewards`` section holds the weights."""


def _ranks(group: Group) -> Tensor:
    return torch.arange(1, len(group.items_G) + 1).float()


def _categories(group: Group, context: RewardContext) -> list[str]:
    items: list[int] = group.items_G.tolist()
    return [context.categories[item] if item >= 0 else "" for item in items]


def _credit(group: Group, items: Sequence[int], values: Sequence[float]) -> Tensor:
    """The highest of ``values`` of each candidate's item, (G,); 0 for a candidate that is not among ``items``."""
    best: dict[int, float] = {}
    for item, value in zip(items, values, strict=False):
        best[item] = max(value, best.get(item, value))
    return torch.tensor([best.get(item, 0.0) for item in group.items_G.tolist()])
