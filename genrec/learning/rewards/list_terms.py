"""Rewards of whole lists: what each position j of a list of J items adds, (J,), best first; the reward is their sum.

They have the form of the terms of items, with the list in the place of the group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genrec.learning.rewards.context import RewardContext, Term, require
from genrec.learning.rewards.terms import diversity, event, semantic_vectors
from genrec.types import Group


def dcg(slate: Group, context: RewardContext) -> Tensor:
    """Σ_j v_j / log2(j + 1), v_j the value of item_j's event among the user's next ones, as in ``event``.

    Discounted cumulative gain (Järvelin & Kekäläinen 2002), not normalised: values of events are worth what they say.
    """
    rank_J = torch.arange(1, len(slate.items_G) + 1).float()
    return event(slate, context) / (rank_J + 1).log2()


def categories(slate: Group, context: RewardContext) -> Tensor:
    """Number of distinct categories: each position adds 1 if its item's category is new in the list."""
    return diversity(slate, context)


def distance(slate: Group, context: RewardContext) -> Tensor:
    """2 / (J (J - 1)) · Σ_{i<j} (1 - cos(i, j)) of item vectors: intra-list distance (Zhang & Hurley 2008).

    Position j adds its distances to the positions before it; the sum lies in [0, 2], and is 0 for a lone item.
    """
    vectors_JD = semantic_vectors(context)[slate.items_G.clamp(min=0)]
    count = len(vectors_JD)
    distance_JJ = (1 - vectors_JD @ vectors_JD.T).tril(-1)
    return distance_JJ.sum(1) * (2 / max(1, count * (count - 1)))


def new_items(slate: Group, context: RewardContext) -> Tensor:
    """Share of items with at most ``rare`` train events: each of them adds 1 / J."""
    counts_J = require(context.counts_N, "train counts")[slate.items_G.clamp(min=0)]
    return (counts_J <= context.settings.rare).float() / len(counts_J)


LIST_TERMS: Mapping[str, Term] = {term.__name__: term for term in (dcg, categories, distance, new_items)}
"""Every reward of lists by its config name; ``rewards.lists`` holds the weights."""
