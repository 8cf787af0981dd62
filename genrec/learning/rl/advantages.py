"""From the rewards of groups to advantages: A (B, G) of r (B, G), with means over the G candidates of a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

EPSILON = 1e-6
"""Groups whose rewards have a smaller standard deviation get advantage 0 (zero-advantage groups)."""

LIMIT = 5.0
"""Advantages are clamped to ± this."""


def group_std(rewards_BG: Tensor) -> Tensor:
    """A_i = (r_i - mean(r)) / std(r) (GRPO, Shao et al. 2024, §4.1.2)."""
    std_B1 = rewards_BG.std(-1, keepdim=True, correction=0)
    return group_mean(rewards_BG) / std_B1.clamp(min=EPSILON)


def group_mean(rewards_BG: Tensor) -> Tensor:
    """A_i = r_i - mean(r) (Dr. GRPO, Liu et al. 2025); 0 in groups with std(r) < EPSILON."""
    centred_BG = rewards_BG - rewards_BG.mean(-1, keepdim=True)
    return centred_BG.masked_fill(rewards_BG.std(-1, keepdim=True, correction=0) < EPSILON, 0)


def batch_std(rewards_BG: Tensor) -> Tensor:
    """A_i = (r_i - mean(r)) / std of all r_i - mean(r) of the batch (REINFORCE++, Hu 2025)."""
    centred_BG = group_mean(rewards_BG)
    std = centred_BG.std(correction=0)
    return centred_BG / std if std > EPSILON else centred_BG * 0


def leave_one_out(rewards_BG: Tensor) -> Tensor:
    """A_i = r_i - mean_{j ≠ i} r_j = G / (G - 1) · (r_i - mean(r)) (RLOO, Ahmadian et al. 2024, eq. 8)."""
    group = rewards_BG.shape[-1]
    return group_mean(rewards_BG) * (group / max(1, group - 1))


def rank(rewards_BG: Tensor) -> Tensor:
    """A_i = (#{j: r_j < r_i} - #{j: r_j > r_i}) / (G - 1), in [-1, 1]: depends on the order of the rewards alone."""
    gap_BGG = rewards_BG[..., :, None] - rewards_BG[..., None, :]
    order_BGG = gap_BGG.masked_fill(gap_BGG.abs() < EPSILON, 0).sign()
    return order_BGG.sum(-1) / max(1, rewards_BG.shape[-1] - 1)


ADVANTAGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "group_std": group_std,
    "group_mean": group_mean,
    "batch_std": batch_std,
    "leave_one_out": leave_one_out,
    "rank": rank,
}


def advantages(kind: str, rewards_BG: Tensor) -> Tensor:
    """Advantages (B, G) of ``kind``, clamped to ± LIMIT."""
    return ADVANTAGES[kind](rewards_BG).clamp(-LIMIT, LIMIT)
