"""The terms. Each gives a value per candidate, (G,), in rank order, best first; the config's weight multiplies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genrec.learning.rewards.context import RewardContext, Term, require
from genrec.types import Group


def hit(group: Group, context: RewardContext) -> Tensor:
    """1 for the candidate that is the target."""
    return (group.items_G == group.query.target).float()


def rank_log(group: Group, context: RewardContext) -> Tensor:
    """ln(rank) of the hit; a negative weight makes a late hit worth less."""
    return hit(group, context) * _ranks(group).log()


def rank_linear(group: Group, context: RewardContext) -> Tensor:
    """The rank of the hit; with weight -0.1 and ``hit`` 1, a hit at rank 10 is worth as much as a miss."""
    return hit(group, context) * _ranks(group)


def ndcg_rank(group: Group, context: RewardContext) -> Tensor:
    """-w_r / Σ_j w_j with w_r = 1 / log2(r + 1) for a miss at rank r of a group with a hit, else 0.

    The better a wrong item was ranked, the more it costs (MiniOneRec, Kong et al. 2025, "Rank reward").
    """
    hit_G = hit(group, context)
    gains_G = 1 / (_ranks(group) + 1).log2()
    return -(gains_G / gains_G.sum()) * (1 - hit_G) * hit_G.max()


def prefix(group: Group, context: RewardContext) -> Tensor:
    """Share of leading levels that agree with the target's SID: dense credit for getting near."""
    target_L = context.codes_NL[group.query.target]
    return (group.codes_GL == target_L).long().cumprod(-1).float().mean(-1)


def future(group: Group, context: RewardContext) -> Tensor:
    """γ^d for an item that the user takes d training items after the target (the target: d = 0), the nearest counts."""
    settings, ahead = context.settings, require(context.ahead, "the users' next training items")
    items = ahead.items(group.query.id, settings.horizon)
    return _credit(group, items, [settings.discount**d for d in range(len(items))])


def event(group: Group, context: RewardContext) -> Tensor:
    """max over d of γ^d · value(event type) where the item is the user's d-th training item from the target on.

    Delayed credit: the purchase of an item that was clicked as the target pays too, discounted by its distance.
    """
    settings, ahead = context.settings, require(context.ahead, "the users' next training events")
    items = ahead.items(group.query.id, settings.horizon)
    kinds = ahead.events(group.query.id, settings.horizon)
    worth = [settings.discount**d * settings.events.get(kind, 0.0) for d, kind in enumerate(kinds)]
    return _credit(group, items, worth)


def semantic(group: Group, context: RewardContext) -> Tensor:
    """Cosine of the candidate's vector and the target's, in [-1, 1]."""
    vectors_ND = require(context.vectors_ND, "item vectors")
    return vectors_ND[group.items_G.clamp(min=0)] @ vectors_ND[group.query.target]


def collaborative(group: Group, context: RewardContext) -> Tensor:
    """The candidate's score after the history by an ItemKNN of other users' train events, over its best item's."""
    neighbours = require(context.neighbours, "item neighbours")
    return neighbours(group.query.user, group.query.history, group.items_G)


def diversity(group: Group, context: RewardContext) -> Tensor:
    """1 for the first candidate of its category in rank order (marginal contribution), 0 for the others."""
    seen: set[str] = set()
    paid: list[float] = []
    for category in _categories(group, context):
        paid.append(float(bool(category) and category not in seen))
        seen.add(category)
    return torch.tensor(paid)


def category_count(group: Group, context: RewardContext) -> Tensor:
    """Distinct categories in the list / G, the same for every candidate: cancels wherever groups are centred."""
    count = len(set(_categories(group, context)) - {""})
    return torch.full((len(group.items_G),), count / len(group.items_G))


def repeat(group: Group, context: RewardContext) -> Tensor:
    """1 for an item that stands in the history."""
    return torch.isin(group.items_G, torch.tensor(group.query.history)).float()


def novelty(group: Group, context: RewardContext) -> Tensor:
    """max(0, 1 - n / (rare + 1)) of an item's n train events: 1 for a new item, falling to 0 past ``rare``."""
    counts_G = require(context.counts_N, "train counts")[group.items_G.clamp(min=0)]
    return (1 - counts_G / (context.settings.rare + 1)).clamp(min=0)


def popularity_penalty(group: Group, context: RewardContext) -> Tensor:
    """-ln(1 + n) / ln(1 + max n) of an item's n train events (log popularity: Steck, "Item popularity", 2011)."""
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


def _credit(group: Group, items: Sequence[int], worth: Sequence[float]) -> Tensor:
    best: dict[int, float] = {}
    for item, value in zip(items, worth, strict=False):
        best[item] = max(value, best.get(item, 0.0))
    return torch.tensor([best.get(item, 0.0) for item in group.items_G.tolist()])
