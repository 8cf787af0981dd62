"""From the rewards of groups to advantages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

EPSILON = 1e-6
"""Groups whose rewards spread less than this carry no signal and get advantage 0."""

LIMIT = 5.0
"""Advantages are clamped to ± this."""


def group_std(rewards_BG: Tensor) -> Tensor:
    """(r - mean) / std within each group (GRPO, Shao et al. 2024, eq. 3)."""
    centred_BG = rewards_BG - rewards_BG.mean(-1, keepdim=True)
    std_B1 = rewards_BG.std(-1, keepdim=True, correction=0)
    return (centred_BG / std_B1.clamp(min=EPSILON)).masked_fill(std_B1 < EPSILON, 0)


def group_mean(rewards_BG: Tensor) -> Tensor:
    """r - mean within each group, not divided (Dr. GRPO, Liu et al. 2025)."""
    return rewards_BG - rewards_BG.mean(-1, keepdim=True)


def batch_std(rewards_BG: Tensor) -> Tensor:
    """r - mean of the group, divided by the spread over the whole batch (REINFORCE++, Hu 2025)."""
    centred_BG = group_mean(rewards_BG)
    std = centred_BG.std(correction=0)
    return centred_BG / std if std > EPSILON else centred_BG * 0


ADVANTAGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "group_std": group_std,
    "group_mean": group_mean,
    "batch_std": batch_std,
}


def advantages(kind: str, rewards_BG: Tensor) -> Tensor:
    """Advantages (B, G) of ``kind``, clamped to ± LIMIT."""
    return ADVANTAGES[kind](rewards_BG).clamp(-LIMIT, LIMIT)
