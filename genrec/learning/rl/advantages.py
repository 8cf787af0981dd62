"""From the rewards of groups to advantages: A (B, G) of r (B, G).

Means and deviations of a group weigh its candidates by p_i = w_i / Σ_j w_j, where w is the weight that the objective
gives to a candidate: equal, its probability, or an importance weight. So Σ_i p_i A_i = 0. Empty candidates have w = 0:
they take no part, and their advantage is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6
"""Groups whose rewards have a smaller standard deviation get advantage 0 (zero-advantage groups)."""

LIMIT = 5.0
"""Advantages are clamped to ± this."""

Total = Callable[[Tensor], Tensor]
"""The sum of a tensor over all workers."""

Advantage = Callable[[Tensor, Tensor, Total], Tensor]
"""(rewards (B, G), shares p (B, G), total) → advantages (B, G)."""


def of_one_worker(values: Tensor) -> Tensor:
    """The sum of a tensor over one worker: ``values`` itself, of any shape."""
    return values


def group_std(rewards_BG: Tensor, share_BG: Tensor, total: Total = of_one_worker) -> Tensor:
    """A_i = (r_i - mean(r)) / std(r) (GRPO, Shao et al. 2024, §4.1.2)."""
    centred_BG = group_mean(rewards_BG, share_BG)
    return centred_BG / _spread(centred_BG, share_BG).clamp(min=EPSILON)


def group_mean(rewards_BG: Tensor, share_BG: Tensor, total: Total = of_one_worker) -> Tensor:
    """A_i = r_i - mean(r) (Dr. GRPO, Liu et al. 2025); 0 in groups without two different rewards."""
    return centred(rewards_BG, share_BG).masked_fill(
        (share_BG == 0) | ~has_advantage(rewards_BG, share_BG > 0)[:, None], 0
    )


def batch_std(rewards_BG: Tensor, share_BG: Tensor, total: Total = of_one_worker) -> Tensor:
    """A_i = (r_i - mean(r)) / std of all r_i - mean(r) of the batch, over all workers (REINFORCE++, Hu 2025)."""
    centred_BG = group_mean(rewards_BG, share_BG)
    squares, count = total(torch.stack([(share_BG * centred_BG.square()).sum(), share_BG.sum()]))
    std = (squares / count.clamp(min=EPSILON)).sqrt()
    return centred_BG / std if std > EPSILON else centred_BG * 0


def leave_one_out(rewards_BG: Tensor, share_BG: Tensor, total: Total = of_one_worker) -> Tensor:
    """A_i = n / (n - 1) · (r_i - mean(r)) for n candidates (RLOO, Ahmadian et al. 2024, eq. 8).

    With equal weights that is r_i - mean_{j ≠ i} r_j.
    """
    return group_mean(rewards_BG, share_BG) * _without_one(share_BG)


def rank(rewards_BG: Tensor, share_BG: Tensor, total: Total = of_one_worker) -> Tensor:
    """A_i = n / (n - 1) · Σ_j p_j sign(r_i - r_j): depends on the order of the rewards alone; in [-1, 1] if p is equal.

    With equal weights that is (#{j: r_j < r_i} - #{j: r_j > r_i}) / (n - 1).
    """
    gap_BGG = rewards_BG[..., :, None] - rewards_BG[..., None, :]
    order_BGG = gap_BGG.masked_fill(gap_BGG.abs() < EPSILON, 0).sign()
    beaten_BG = (order_BGG * share_BG[..., None, :]).sum(-1)
    return beaten_BG.masked_fill(share_BG == 0, 0) * _without_one(share_BG)


ADVANTAGES: Mapping[str, Advantage] = {
    "group_std": group_std,
    "group_mean": group_mean,
    "batch_std": batch_std,
    "leave_one_out": leave_one_out,
    "rank": rank,
}


def advantages(kind: str, rewards_BG: Tensor, weight_BG: Tensor | None = None, total: Total = of_one_worker) -> Tensor:
    """Advantages (B, G) of ``kind``, clamped to ± LIMIT.

    Args:
        weight_BG: weights of the candidates, 0 for empty ones; None: all are real and equal.
    """
    weight_BG = torch.ones_like(rewards_BG) if weight_BG is None else weight_BG
    return ADVANTAGES[kind](rewards_BG, shares(weight_BG), total).clamp(-LIMIT, LIMIT)


def level_advantages(
    kind: str, rewards_BG: Tensor, weight_BG: Tensor, codes_BGL: Tensor, total: Total = of_one_worker
) -> Tensor:
    """Advantages (B, G, L) of every code: those of the candidates at each level, or ``sibling`` ones."""
    if kind == "sibling":
        return sibling(rewards_BG, shares(weight_BG), codes_BGL).clamp(-LIMIT, LIMIT)
    advantage_BG = advantages(kind, rewards_BG, weight_BG, total)
    return advantage_BG[..., None].expand(-1, -1, codes_BGL.shape[-1])


def sibling(rewards_BG: Tensor, share_BG: Tensor, codes_BGL: Tensor) -> Tensor:
    """A_l = ½ ``group_std`` + ½ (r - mean) / std over the candidates with the same codes before level l, (B, G, L).

    Within one parent node only the code of level l and what follows it can differ, so the second half does not pay a
    code for its parent (sibling advantages of V-STAR). It is 0 where the rewards under a node are equal.
    """
    same_BGGL = same_prefix(codes_BGL) * share_BG[:, None, :, None]
    within_BGGL = same_BGGL / same_BGGL.sum(2, keepdim=True).clamp(min=1e-30)
    above_BGG1 = (rewards_BG[:, None] - rewards_BG[:, :, None])[..., None]  # Exactly 0 where rewards are equal.
    gap_BGGL = above_BGG1 - (within_BGGL * above_BGG1).sum(2, keepdim=True)
    std_BGL = (within_BGGL * gap_BGGL.square()).sum(2).sqrt()
    centred_BGL = gap_BGGL.diagonal(dim1=1, dim2=2).movedim(-1, 1)
    own_BGL = (centred_BGL / std_BGL.clamp(min=EPSILON)).masked_fill(std_BGL < EPSILON, 0)
    half_BGL = (group_std(rewards_BG, share_BG)[..., None] + own_BGL) / 2
    return half_BGL.masked_fill(share_BG[..., None] == 0, 0)


def same_prefix(codes_BGL: Tensor) -> Tensor:
    """Whether candidates i and j have the same codes before each level, (B, G, G, L)."""
    equal_BGGL = codes_BGL[:, :, None, :-1] == codes_BGL[:, None, :, :-1]
    return F.pad(equal_BGGL, (1, 0), value=True).long().cumprod(-1).bool()


def shares(weight_BG: Tensor) -> Tensor:
    """p_i = w_i / Σ_j w_j, (B, G); 0 in a group without a weight."""
    return weight_BG / weight_BG.sum(-1, keepdim=True).clamp(min=1e-30)


def has_advantage(rewards_BG: Tensor, real_BG: Tensor) -> Tensor:
    """Whether the rewards of a group's real candidates have a standard deviation of EPSILON or more, (B,)."""
    share_BG = shares(real_BG.to(rewards_BG.dtype))
    return _spread(centred(rewards_BG, share_BG), share_BG)[:, 0] >= EPSILON


def centred(rewards_BG: Tensor, share_BG: Tensor) -> Tensor:
    """r - mean(r) of the candidates with a share, (…, G): exactly 0 where these have one reward, however large."""
    first_B1 = rewards_BG.gather(-1, (share_BG > 0).int().argmax(-1, keepdim=True))
    above_BG = (rewards_BG - first_B1).masked_fill(share_BG == 0, 0)
    return above_BG - (share_BG * above_BG).sum(-1, keepdim=True)


def _spread(centred_BG: Tensor, share_BG: Tensor) -> Tensor:
    """The standard deviation of each group, (B, 1)."""
    return (share_BG * centred_BG.square()).sum(-1, keepdim=True).sqrt()


def _without_one(share_BG: Tensor) -> Tensor:
    """n / (n - 1) for the n candidates that count in each group, (B, 1); 0 for a lone one."""
    count_B1 = (share_BG > 0).sum(-1, keepdim=True)
    return count_B1 / (count_B1 - 1).clamp(min=1) * (count_B1 > 1)
