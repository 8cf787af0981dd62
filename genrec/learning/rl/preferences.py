"""Preference losses on groups: the candidate w with the highest reward against the rejected ones, r_l < r_w.

h = log(π / π_ref) of each candidate is ``gap_BG``. A group without two different rewards has no preference and adds 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.learning.rl.advantages import EPSILON


def dpo(gap_BG: Tensor, rewards_BG: Tensor, valid_BG: Tensor, beta: float) -> Tensor:
    """Σ_queries mean_l -log σ(β (h_w - h_l)) over the rejected l, a scalar (DPO, Rafailov et al. 2023, eq. 7)."""
    margin_BG, rejected_BG = _margins(gap_BG, rewards_BG, valid_BG, beta)
    return ((F.softplus(-margin_BG) * rejected_BG).sum(1) / rejected_BG.sum(1).clamp(min=1)).sum()


def s_dpo(gap_BG: Tensor, rewards_BG: Tensor, valid_BG: Tensor, beta: float) -> Tensor:
    """Σ_queries -log σ(-log Σ_l exp(β (h_l - h_w))) over the rejected l, a scalar (S-DPO, Chen et al. 2024, eq. 9).

    One preference over all rejected items at once, a softmax instead of pairs.
    """
    margin_BG, rejected_BG = _margins(gap_BG, rewards_BG, valid_BG, beta)
    has_B = rejected_BG.any(1)
    against_BG = (-margin_BG).masked_fill(~rejected_BG, -torch.inf)[has_B]
    return F.softplus(against_BG.logsumexp(1)).sum()


def _margins(gap_BG: Tensor, rewards_BG: Tensor, valid_BG: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """β (h_w - h_l) for each candidate l, and which are rejected, (B, G); of equal rewards the first is w."""
    real_BG = rewards_BG.masked_fill(~valid_BG, -torch.inf)
    best_B1 = real_BG.argmax(1, keepdim=True)
    rejected_BG = valid_BG & (real_BG.gather(1, best_B1) - real_BG > EPSILON)
    return beta * (gap_BG.gather(1, best_B1) - gap_BG), rejected_BG
