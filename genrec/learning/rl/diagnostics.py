"""The reward audit: what an update's advantages are made of, where they act, and whom they move mass to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genrec.learning.rl.advantages import EPSILON
from genrec.types import Group


def zero_advantage_share(rewards_BG: Tensor) -> Tensor:
    """Share of groups whose rewards spread less than EPSILON: they teach nothing."""
    return (rewards_BG.std(-1, correction=0) < EPSILON).float().mean()


def term_shares(groups: Sequence[Group], advantage_BG: Tensor) -> dict[str, float]:
    """Each term's share of the variance of the advantages, Σ_g s_g cov(term, A) / Σ_g s_g cov(r, A).

    s_g is the scale that maps the group's centred rewards to its advantages (1 / std for ``group_std``; the
    least-squares scale where advantages are ranks or clamped). Shares add up to 1, a covariance of two terms being
    split evenly; one may be negative. NaN where no group has an advantage.
    """
    totals: dict[str, float] = {}
    for group, advantage_G in zip(groups, advantage_BG, strict=True):
        centred_G = group.rewards_G - group.rewards_G.mean()
        scale = float((centred_G * advantage_G).sum() / centred_G.square().sum().clamp(min=EPSILON**2))
        for name, term_G in group.terms.items():
            share = scale * float(((term_G - term_G.mean()) * advantage_G).mean())
            totals[name] = totals.get(name, 0.0) + share
    whole = sum(totals.values())
    return {name: value / whole if abs(whole) > 1e-12 else math.nan for name, value in totals.items()}


def level_credit(logp_BGL: Tensor, advantage_BGL: Tensor, valid_BG: Tensor) -> Tensor:
    """(L,) Σ |A| (1 - π(code)): how hard the advantages pull at the logit of each level's chosen code.

    The gradient of A log π at that logit is A (1 - π), so a forced step has no credit.
    """
    pull_BGL = advantage_BGL.abs() * -torch.expm1(logp_BGL.masked_fill(~valid_BG[..., None], 0))
    return pull_BGL.sum((0, 1)).detach()


def probability_shift(
    logp_BGL: Tensor, reference_BGL: Tensor, items_BG: Tensor, buckets: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Per popularity bucket Σ (π - π_ref) over the distinct candidates in it, summed over the queries."""
    same_BGG = items_BG[:, :, None] == items_BG[:, None, :]
    first_BG = ~same_BGG.tril(-1).any(-1) & (items_BG >= 0)
    moved_BG = (logp_BGL.sum(-1).exp() - reference_BGL.sum(-1).exp()).masked_fill(~first_BG, 0).detach()
    at_BG = items_BG.clamp(min=0)
    return {name: (moved_BG * mask_N.to(at_BG.device)[at_BG]).sum() for name, mask_N in buckets.items()}
