"""Measurements of an update: what its advantages are made of, where they act, and which items gain probability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.learning.rl.advantages import EPSILON
from genrec.types import Group

AGREEMENT, COARSE_AGREEMENT = 1e-3, 0.2
"""How far the learner's log-probabilities of a fresh rollout may be from the rollout's: in fp32, and in bf16."""


def zero_advantage_share(rewards_BG: Tensor) -> Tensor:
    """Share of groups whose rewards have a standard deviation below EPSILON: their advantages are 0."""
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
    total = sum(totals.values())
    return {name: value / total if abs(total) > 1e-12 else math.nan for name, value in totals.items()}


def level_credit(logp_BGL: Tensor, advantage_BGL: Tensor, valid_BG: Tensor) -> Tensor:
    """Σ_{B, G} |A| (1 - π(code)) of each level, (L,): how strongly the advantages pull at the chosen codes' logits.

    The gradient of A log π at that logit is A (1 - π), so a forced step has no credit.
    """
    pull_BGL = advantage_BGL.abs() * -torch.expm1(logp_BGL.masked_fill(~valid_BG[..., None], 0))
    return pull_BGL.sum((0, 1)).detach()


def probability_shift(
    logp_BGL: Tensor, reference_BGL: Tensor, items_BG: Tensor, buckets: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Σ (π - π_ref) over the distinct candidates in each popularity bucket, summed over the queries.

    Args:
        buckets: masks (N,) of items.
    """
    same_BGG = items_BG[:, :, None] == items_BG[:, None, :]
    first_BG = ~same_BGG.tril(-1).any(-1) & (items_BG >= 0)
    shift_BG = (logp_BGL.sum(-1).exp() - reference_BGL.sum(-1).exp()).masked_fill(~first_BG, 0).detach()
    at_BG = items_BG.clamp(min=0)
    return {name: (shift_BG * mask_N.to(at_BG.device)[at_BG]).sum() for name, mask_N in buckets.items()}


def check_agreement(new_BGL: Tensor, old_BGL: Tensor, valid_BG: Tensor, precision: torch.dtype) -> None:
    """Refuse rollouts that claim to be of the learner's very weights and have other log-probabilities.

    Args:
        new_BGL: the learner's log-probabilities of the candidates, ``old_BGL`` the rollout's.
        valid_BG: False for empty candidates.
        precision: of the policy's weights.

    Raises:
        InputError: they differ by more than rounding explains.
    """
    if not bool(valid_BG.any()):
        return
    gap = float((new_BGL - old_BGL).detach()[valid_BG].abs().max())
    limit = AGREEMENT if precision == torch.float32 else COARSE_AGREEMENT
    if not gap <= limit:
        raise InputError(
            f"the rollouts' log-probabilities differ from the learner's by {gap:.2g} (limit {limit:g}) on the "
            "first update: the rollout actors do not run the learner's policy; both must load the same SFT output"
        )


def credit_as_shares(measured: Mapping[str, float]) -> dict[str, float]:
    """``measured`` with each ``level_credit/<level>`` divided by their sum over levels."""
    total = sum(value for name, value in measured.items() if name.startswith("level_credit/"))
    return {n: v / max(total, EPSILON) if n.startswith("level_credit/") else v for n, v in measured.items()}
