"""From terms and weights to the rewards of groups."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genrec.config import Rewards
from genrec.errors import InputError
from genrec.learning.rewards.context import RewardContext, Term
from genrec.learning.rewards.terms import TERMS
from genrec.types import Group


def active_terms(rewards: Rewards, terms: Mapping[str, Term] = TERMS, *, centred: bool = True) -> dict[str, Term]:
    """The terms that have a weight; warns of one that cancels where groups are ``centred``.

    Raises:
        InputError: a weight for a term that does not exist.
    """
    active = [name for name, weight in rewards.weights().items() if weight]
    if missing := [name for name in active if name not in terms]:
        raise InputError(
            f"rewards.custom names {missing}, the known terms are {sorted(terms)}; install the package whose entry "
            "point group genrec.rewards has them, or pass their file with --rewards FILE.py"
        )
    if centred and "category_count" in active:
        warnings.warn("rewards.category_count is equal for a whole group and cancels; use diversity", stacklevel=2)
    return {name: terms[name] for name in active}


def compute_rewards(
    groups: Sequence[Group], context: RewardContext, rewards: Rewards, terms: Mapping[str, Term] = TERMS
) -> None:
    """Fill ``rewards_G`` and ``terms`` of each group with the weighted ``terms``; empty candidates earn nothing.

    Raises:
        InputError: a term raised, or gave something else than G finite values; the message names it.
    """
    weights = rewards.weights()
    for group in groups:
        for name, term in terms.items():
            if weights[name]:
                paid_G = _checked(name, term, group, context)
                group.terms[name] = weights[name] * paid_G.masked_fill(group.items_G < 0, 0)
        group.rewards_G = sum(group.terms.values(), torch.zeros(len(group.items_G)))


def _checked(name: str, term: Term, group: Group, context: RewardContext) -> Tensor:
    try:
        paid_G: Any = term(group, context)
    except Exception as error:
        raise InputError(f"reward term {name!r} failed on query {group.query.id}: {error!r}") from error
    wanted = tuple(group.items_G.shape)
    if not isinstance(paid_G, Tensor):
        raise InputError(
            f"reward term {name!r} gave a {type(paid_G).__name__}; a tensor of shape {wanted} was expected"
        )
    wrong = int((~paid_G.isfinite()).sum())
    if tuple(paid_G.shape) != wanted or wrong:
        raise InputError(
            f"reward term {name!r} gave {tuple(paid_G.shape)} values, {wrong} of them not finite, on query "
            f"{group.query.id}; expected {wanted} finite ones"
        )
    return paid_G.float()
