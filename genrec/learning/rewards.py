"""Reward terms: pure functions of a group, weighted by the config and added up.

A term that is constant over its group vanishes in the advantage (A = (r - mean) / std), so diversity is paid as each
candidate's marginal contribution, and the rank penalty counts only beside terms that pay the other candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from genrec.config import Rewards
from genrec.errors import InputError
from genrec.types import Group


class Knowledge:
    """What the terms may look up about items: SIDs, (N, L), and the leaf category of each item ('' if none)."""

    def __init__(self, codes_NL: Tensor, categories: list[str]) -> None:
        self.codes_NL = codes_NL
        self.categories = categories


Term = Callable[[Group, Knowledge], Tensor]
"""(group, knowledge) → reward per candidate, (G,), in rank order."""


def hit(group: Group, knowledge: Knowledge) -> Tensor:
    """1 for the candidate that is the target."""
    return (group.items_G == group.query.target).float()


def rank_log(group: Group, knowledge: Knowledge) -> Tensor:
    """ln(rank) of the hit, ranks from 1; a negative weight makes a late hit worth less."""
    ranks_G = torch.arange(1, len(group.items_G) + 1)
    return hit(group, knowledge) * ranks_G.log()


def prefix(group: Group, knowledge: Knowledge) -> Tensor:
    """Share of leading levels that agree with the target's SID: dense credit for getting near."""
    target_L = knowledge.codes_NL[group.query.target]
    return (group.codes_GL == target_L).long().cumprod(-1).float().mean(-1)


def diversity(group: Group, knowledge: Knowledge) -> Tensor:
    """1 for the first candidate of its category in rank order (marginal contribution), 0 for the others."""
    seen: set[str] = set()
    paid: list[float] = []
    items: list[int] = group.items_G.tolist()
    for item in items:
        category = knowledge.categories[item] if item >= 0 else ""
        paid.append(float(bool(category) and category not in seen))
        seen.add(category)
    return torch.tensor(paid)


TERMS: Mapping[str, Term] = {"hit": hit, "rank_log": rank_log, "prefix": prefix, "diversity": diversity}
"""Every term by its config name; the config's ``rewards`` section holds the weights."""


def pay(groups: Sequence[Group], knowledge: Knowledge, weights: Rewards) -> None:
    """Fill ``rewards_G`` and ``terms`` of each group with the weighted terms; empty candidates earn nothing.

    Raises:
        InputError: a term gave the wrong shape or a value that is not finite; the message names it.
    """
    active = {name: weight for name, weight in weights.model_dump().items() if weight}
    for group in groups:
        for name, weight in active.items():
            paid_G = TERMS[name](group, knowledge)
            if paid_G.shape != group.items_G.shape or not bool(paid_G.isfinite().all()):
                wrong = int((~paid_G.isfinite()).sum())
                raise InputError(
                    f"reward term {name!r} gave {tuple(paid_G.shape)} values, {wrong} of them not finite; "
                    f"expected {tuple(group.items_G.shape)} finite ones"
                )
            group.terms[name] = weight * paid_G * (group.items_G >= 0)
        group.rewards_G = sum(group.terms.values(), torch.zeros(len(group.items_G)))


def term_shares(groups: Sequence[Group]) -> dict[str, float]:
    """Each term's share of the within-group reward variance (the reward audit); covariances are split evenly."""
    totals: dict[str, float] = {}
    for group in groups:
        centred_G = group.rewards_G - group.rewards_G.mean()
        for name, term_G in group.terms.items():
            totals[name] = totals.get(name, 0.0) + float(((term_G - term_G.mean()) * centred_G).mean())
    whole = sum(totals.values())
    return {name: value / whole if abs(whole) > 1e-12 else math.nan for name, value in totals.items()}
