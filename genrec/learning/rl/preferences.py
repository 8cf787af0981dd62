"""Preference losses on groups: the best-paid candidate against those that were paid less.

``gap_BG`` is log π/π_ref of each candidate. A group without two different rewards has no preference and adds 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.learning.rl.advantages import EPSILON


def dpo(gap_BG: Tensor, rewards_BG: Tensor, valid_BG: Tensor, beta: float) -> Tensor:
    """Mean over the rejected l of -log σ(β (gap_w - gap_l)), summed over queries (Rafailov et al. 2023, eq. 7)."""
    margin_BG, rejected_BG = _margins(gap_BG, rewards_BG, valid_BG, beta)
    return ((F.softplus(-margin_BG) * rejected_BG).sum(1) / rejected_BG.sum(1).clamp(min=1)).sum()


def s_dpo(gap_BG: Tensor, rewards_BG: Tensor, valid_BG: Tensor, beta: float) -> Tensor:
    """-log σ(-log Σ_l exp(β (gap_l - gap_w))), summed over queries (S-DPO, Chen et al. 2024, eq. 9): one preference
    over all rejected items at once, a softmax instead of pairs."""
    margin_BG, rejected_BG = _margins(gap_BG, rewards_BG, valid_BG, beta)
    has_B = rejected_BG.any(1)
    against_BG = (-margin_BG).masked_fill(~rejected_BG, -torch.inf)[has_B]
    return F.softplus(against_BG.logsumexp(1)).sum()


def _margins(gap_BG: Tensor, rewards_BG: Tensor, valid_BG: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """β (gap_w - gap_l) for each candidate l, and which of them are rejected; the first of equally paid ones is w."""
    paid_BG = rewards_BG.masked_fill(~valid_BG, -torch.inf)
    best_B1 = paid_BG.argmax(1, keepdim=True)
    rejected_BG = valid_BG & (paid_BG.gather(1, best_B1) - paid_BG > EPSILON)
    return beta * (gap_BG.gather(1, best_B1) - gap_BG), rejected_BG
