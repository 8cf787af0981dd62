"""The terms. Each gives a value per candidate, (G,), in rank order, best first; the config's weight multiplies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genrec.learning.rewards.context import Knowledge, Term, known
from genrec.types import Group


def hit(group: Group, knowledge: Knowledge) -> Tensor:
    """1 for the candidate that is the target."""
    return (group.items_G == group.query.target).float()


def rank_log(group: Group, knowledge: Knowledge) -> Tensor:
    """ln(rank) of the hit; a negative weight makes a late hit worth less."""
    return hit(group, knowledge) * _ranks(group).log()


def rank_linear(group: Group, knowledge: Knowledge) -> Tensor:
    """The rank of the hit; with weight -0.1 and ``hit`` 1, a hit at rank 10 is worth as much as a miss."""
    return hit(group, knowledge) * _ranks(group)


def ndcg_rank(group: Group, knowledge: Knowledge) -> Tensor:
    """-w_r / Σ_j w_j with w_r = 1 / log2(r + 1) for a miss at rank r of a group with a hit, else 0.

    The better a wrong item was ranked, the more it costs (MiniOneRec, Kong et al. 2025, "Rank reward").
    """
    hit_G = hit(group, knowledge)
    gains_G = 1 / (_ranks(group) + 1).log2()
    return -(gains_G / gains_G.sum()) * (1 - hit_G) * hit_G.max()


def prefix(group: Group, knowledge: Knowledge) -> Tensor:
    """Share of leading levels that agree with the target's SID: dense credit for getting near."""
    target_L = knowledge.codes_NL[group.query.target]
    return (group.codes_GL == target_L).long().cumprod(-1).float().mean(-1)


def future(group: Group, knowledge: Knowledge) -> Tensor:
    """γ^d for an item that the user takes d training items after the target (the target: d = 0), the nearest counts."""
    settings, ahead = knowledge.settings, known(knowledge.ahead, "the users' next training items")
    items = ahead.items(group.query.id, settings.horizon)
    return _credit(group, items, [settings.discount**d for d in range(len(items))])


def event(group: Group, knowledge: Knowledge) -> Tensor:
    """max over d of γ^d · value(event type) where the item is the user's d-th training item from the target on.

    Delayed credit: the purchase of an item that was clicked as the target pays too, discounted by its distance.
    """
    settings, ahead = knowledge.settings, known(knowledge.ahead, "the users' next training events")
    items = ahead.items(group.query.id, settings.horizon)
    kinds = ahead.events(group.query.id, settings.horizon)
    worth = [settings.discount**d * settings.events.get(kind, 0.0) for d, kind in enumerate(kinds)]
    return _credit(group, items, worth)


def semantic(group: Group, knowledge: Knowledge) -> Tensor:
    """Cosine of the candidate's vector and the target's, in [-1, 1]."""
    vectors_ND = known(knowledge.vectors_ND, "item vectors")
    return vectors_ND[group.items_G.clamp(min=0)] @ vectors_ND[group.query.target]


def collaborative(group: Group, knowledge: Knowledge) -> Tensor:
    """The candidate's score after the history by an ItemKNN of other users' train events, over its best item's."""
    neighbours = known(knowledge.neighbours, "item neighbours")
    return neighbours(group.query.user, group.query.history, group.items_G)


def diversity(group: Group, knowledge: Knowledge) -> Tensor:
    """1 for the first candidate of its category in rank order (marginal contribution), 0 for the others."""
    seen: set[str] = set()
    paid: list[float] = []
    for category in _categories(group, knowledge):
        paid.append(float(bool(category) and category not in seen))
        seen.add(category)
    return torch.tensor(paid)


def category_count(group: Group, knowledge: Knowledge) -> Tensor:
    """Distinct categories in the list / G, the same for every candidate: cancels wherever groups are centred."""
    count = len(set(_categories(group, knowledge)) - {""})
    return torch.full((len(group.items_G),), count / len(group.items_G))


def repeat(group: Group, knowledge: Knowledge) -> Tensor:
    """1 for an item that stands in the history."""
    return torch.isin(group.items_G, torch.tensor(group.query.history)).float()


def novelty(group: Group, knowledge: Knowledge) -> Tensor:
    """max(0, 1 - n / (rare + 1)) of an item's n train events: 1 for a new item, falling to 0 past ``rare``."""
    counts_G = known(knowledge.counts_N, "train counts")[group.items_G.clamp(min=0)]
    return (1 - counts_G / (knowledge.settings.rare + 1)).clamp(min=0)


def popularity_penalty(group: Group, knowledge: Knowledge) -> Tensor:
    """-ln(1 + n) / ln(1 + max n) of an item's n train events (log popularity: Steck, "Item popularity", 2011)."""
    counts_N = known(knowledge.counts_N, "train counts")
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


def _categories(group: Group, knowledge: Knowledge) -> list[str]:
    items: list[int] = group.items_G.tolist()
    return [knowledge.categories[item] if item >= 0 else "" for item in items]


def _credit(group: Group, items: Sequence[int], worth: Sequence[float]) -> Tensor:
    best: dict[int, float] = {}
    for item, value in zip(items, worth, strict=False):
        best[item] = max(value, best.get(item, 0.0))
    return torch.tensor([best.get(item, 0.0) for item in group.items_G.tolist()])
