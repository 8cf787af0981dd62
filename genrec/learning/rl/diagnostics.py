"""Measurements of an update: what its advantages are made of, where they act, and which items gain probability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genrec.config import Rl
from genrec.errors import InputError
from genrec.learning.rl.advantages import EPSILON, has_advantage, shares
from genrec.learning.rl.objectives import PolicyBatch, clip_range
from genrec.types import Group

AGREEMENT, COARSE_AGREEMENT = 1e-3, 0.2
"""How far the learner's log-probabilities of a fresh rollout may be from the rollout's: in fp32, and in bf16."""


CHOSEN_CODES = "chosen_codes"
"""Codes of real candidates that were not the only child: what ``ratio_statistics`` are means over."""


def zero_advantage_share(rewards_BG: Tensor, valid_BG: Tensor) -> Tensor:
    """Share of groups whose real candidates' rewards have a standard deviation below EPSILON: no advantages."""
    return (~has_advantage(rewards_BG, valid_BG)).float().mean()


@torch.no_grad()
def ratio_statistics(batch: PolicyBatch, valid_BG: Tensor, ratio: str, settings: Rl) -> dict[str, Tensor]:
    """Sums over the codes that were chosen of ρ = π / π_old, of ρ², and of the codes whose gradient the clip removes.

    A code's gradient is gone where A > 0 and ρ lies above the clip range, or A < 0 and ρ below it. ``chosen_codes`` is
    their number; ``audited`` turns the sums into means.

    Args:
        ratio: ``code``, ``item`` for one per item (``gspo``), or ``none`` for objectives that have no ratio.
    """
    if ratio == "none":
        return {}
    log_ratio_BGL, advantage_BGL = batch.log_ratio_BGL, batch.advantage_BGL
    chosen_BGL = valid_BG[..., None] & (batch.old_BGL != 0)
    if ratio == "item":
        log_ratio_BGL, advantage_BGL = log_ratio_BGL.mean(-1, keepdim=True), advantage_BGL[..., :1]
        chosen_BGL = chosen_BGL.any(-1, keepdim=True)
    ratio_BGL, (low, high) = log_ratio_BGL.exp(), clip_range(settings)
    is_clipped_BGL = torch.where(advantage_BGL > 0, ratio_BGL > high, (advantage_BGL < 0) & (ratio_BGL < low))
    sums = {"clip_fraction": is_clipped_BGL, "ratio/mean": ratio_BGL, "ratio/std": ratio_BGL.square()}
    found = {name: (value * chosen_BGL).float().sum() for name, value in sums.items()}
    return {CHOSEN_CODES: chosen_BGL.float().sum(), **found}


def term_shares(groups: Sequence[Group], advantage_BG: Tensor) -> dict[str, float]:
    """Each term's share of the variance of the advantages, Σ_g s_g cov(term, A) / Σ_g s_g cov(r, A).

    s_g is the scale that maps the group's centred rewards to its advantages (1 / std for ``group_std``; the
    least-squares scale where advantages are ranks or clamped). Shares add up to 1, a covariance of two terms being
    split evenly; one may be negative. NaN where no group has an advantage.
    """
    totals: dict[str, float] = {}
    for group, advantage_G in zip(groups, advantage_BG, strict=True):
        share_G = shares(group.real_G.float())
        centred_G = (group.rewards_G - (share_G * group.rewards_G).sum()).masked_fill(share_G == 0, 0)
        scale = float((centred_G * advantage_G).sum() / centred_G.square().sum().clamp(min=EPSILON**2))
        for name, term_G in group.terms.items():
            share = scale * float((share_G * (term_G - (share_G * term_G).sum()) * advantage_G).sum())
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

    In float32 no candidate may differ; in a coarser precision single ones do, by half a nat in a policy that is hardly
    trained, and the mean decides.

    Args:
        new_BGL: the learner's log-probabilities of the candidates, ``old_BGL`` the rollout's.
        valid_BG: False for empty candidates.
        precision: of the policy's weights.

    Raises:
        InputError: they differ by more than rounding explains.
    """
    if not bool(valid_BG.any()):
        return
    exact = precision == torch.float32
    gaps = (new_BGL - old_BGL).detach()[valid_BG].abs()
    gap, limit = (float(gaps.max()), AGREEMENT) if exact else (float(gaps.mean()), COARSE_AGREEMENT)
    if not gap <= limit:
        raise InputError(
            f"the rollouts' log-probabilities differ from the learner's by {gap:.2g} (limit {limit:g}) on the "
            "first update: the rollout actors do not run the learner's policy; both must load the same SFT output"
        )


def audited(measured: Mapping[str, float]) -> dict[str, float]:
    """``measured`` with shares and means for sums.

    Each ``level_credit/<level>`` is divided by their sum over levels; the sums of ``ratio_statistics`` become the
    clip's share and the ratio's mean and standard deviation.
    """
    found, levels = dict(measured), [name for name in measured if name.startswith("level_credit/")]
    total = max(sum(measured[name] for name in levels), EPSILON)
    found |= {name: measured[name] / total for name in levels}
    if CHOSEN_CODES in found:
        count = max(found.pop(CHOSEN_CODES), EPSILON)
        found |= {name: found[name] / count for name in ("clip_fraction", "ratio/mean", "ratio/std")}
        found["ratio/std"] = math.sqrt(max(0.0, found["ratio/std"] - found["ratio/mean"] ** 2))
    return found
