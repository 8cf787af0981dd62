"""From terms and weights to the rewards of groups."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrec.config import Rewards
from genrec.errors import InputError
from genrec.learning.rewards.context import RewardContext, Term
from genrec.learning.rewards.list_terms import LIST_TERMS
from genrec.learning.rewards.terms import TERMS
from genrec.types import Group


def active_terms(rewards: Rewards, terms: Mapping[str, Term] = TERMS, *, centred: bool = True) -> dict[str, Term]:
    """The terms with a weight other than 0, by name; warns of one that cancels where groups are ``centred``.

    Raises:
        InputError: a weight for a term that does not exist, or none of a term that teaches anything.
    """
    active = [name for name, weight in rewards.weights().items() if weight]
    if missing := [name for name in active if name not in terms]:
        raise InputError(
            f"rewards.custom names {missing}, wanted some of {sorted(terms)}; install the package that has them in its "
            "entry point group genrec.rewards, or pass their file with --rewards FILE.py"
        )
    if centred and active == ["category_count"]:
        raise InputError(
            "rewards.category_count is equal for a whole group, so alone it teaches nothing; wanted the weight of a "
            "term that differs within a group, such as rewards.diversity"
        )
    if centred and "category_count" in active:
        warnings.warn("rewards.category_count is equal for a whole group and cancels; use diversity", stacklevel=2)
    return {name: terms[name] for name in active}


def compute_rewards(
    groups: Sequence[Group], context: RewardContext, rewards: Rewards, terms: Mapping[str, Term] = TERMS
) -> None:
    """r_i = Σ_t w_t · t_i for each candidate i: fills ``rewards_G`` and ``terms`` (w_t · t) of each group.

    Empty candidates (item -1) have reward 0. A candidate that is a list has the sum over its positions, of the terms of
    items with the list in the place of the group and of the terms of ``rewards.lists``; ``gains_GJ`` has the positions.

    Raises:
        InputError: a term raised, or returned something else than G finite values; the message names it.
    """
    item_weights = {name: weight for name, weight in rewards.weights().items() if weight and name in terms}
    for group in groups:
        if group.slate:
            _reward_lists(group, context, item_weights | rewards.lists.active, {**terms, **LIST_TERMS})
            continue
        group.terms |= _weighted(group, context, item_weights, terms)
        group.rewards_G = sum(group.terms.values(), torch.zeros(len(group.items_G)))


def _weighted(
    group: Group, context: RewardContext, weights: Mapping[str, float], terms: Mapping[str, Term]
) -> dict[str, Tensor]:
    """w_t · t_i of each term, (G,); 0 for empty candidates."""
    values = {name: _checked(name, terms[name], group, context) for name in weights}
    return {name: weights[name] * values_G.masked_fill(group.items_G < 0, 0) for name, values_G in values.items()}


def _reward_lists(
    group: Group, context: RewardContext, weights: Mapping[str, float], terms: Mapping[str, Term]
) -> None:
    """Fill a group of lists: ``gains_GJ``, and their sums as ``terms`` and ``rewards_G``."""
    lists = zip(
        group.items_G.split(group.slate),
        group.codes_GL.split(group.slate),
        group.logp_GL.split(group.slate),
        strict=True,
    )
    paid = [
        _weighted(Group(group.query, group.version, *parts, torch.empty(0), {}), context, weights, terms)
        for parts in lists
    ]
    by_term = {name: torch.stack([values[name] for values in paid]) for name in weights}
    group.gains_GJ = sum(by_term.values(), torch.zeros(len(paid), group.slate))
    group.terms |= {name: values_GJ.sum(-1) for name, values_GJ in by_term.items()}
    group.rewards_G = group.gains_GJ.sum(-1)


@dataclass(frozen=True)
class RewardFunction:
    """The weights of a config, the terms that they weigh (``active_terms``), and what the terms may look up."""

    rewards: Rewards
    context: RewardContext
    terms: Mapping[str, Term]

    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill the rewards of ``groups``; see ``compute_rewards``."""
        compute_rewards(groups, self.context, self.rewards, self.terms)


def _checked(name: str, term: Term, group: Group, context: RewardContext) -> Tensor:
    try:
        values_G: Any = term(group, context)
    except Exception as error:
        raise InputError(f"reward term {name!r} failed on query {group.query.id}: {error!r}") from error
    wanted = tuple(group.items_G.shape)
    if not isinstance(values_G, Tensor):
        raise InputError(
            f"reward term {name!r}: got a {type(values_G).__name__}, wanted a tensor of shape {wanted}; "
            "return torch.tensor(values)"
        )
    wrong = int((~values_G.isfinite()).sum())
    if tuple(values_G.shape) != wanted or wrong:
        raise InputError(
            f"reward term {name!r} on query {group.query.id}: got shape {tuple(values_G.shape)} with {wrong} values "
            f"that are not finite, wanted shape {wanted} and finite values; return one value per candidate"
        )
    return values_G.float()
