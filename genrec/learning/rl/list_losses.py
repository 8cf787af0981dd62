"""Ranking losses on groups: the scores s of the candidates, here log π(item), against their rewards r.

The gain of a candidate is y_i = r_i - min_j r_j over the group's real candidates, so that a loss does not change when a
constant is added to all rewards. A group without two different rewards has no order and adds 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.learning.rl.advantages import EPSILON, has_advantage, shares


def listwise(score_BG: Tensor, rewards_BG: Tensor, valid_BG: Tensor) -> Tensor:
    """-Σ_queries Σ_i t_i log softmax(s)_i with t_i = y_i / Σ_j y_j, a scalar.

    ListNet's top-one loss (Cao et al. 2007, eq. 4) with a target proportional to the gains: several candidates may be
    right, and those with the lowest reward are not.
    """
    has_B = has_advantage(rewards_BG, valid_BG)
    score_bG, valid_bG = score_BG[has_B], valid_BG[has_B]
    target_bG = shares(gains(rewards_BG[has_B], valid_bG))
    logp_bG = score_bG.masked_fill(~valid_bG, -torch.inf).log_softmax(-1)
    return -(target_bG * logp_bG.masked_fill(~valid_bG, 0)).sum()


def lambdarank(score_BG: Tensor, rewards_BG: Tensor, valid_BG: Tensor) -> Tensor:
    """Σ_queries Σ_{i, j: r_i > r_j} |ΔNDCG_ij| · -log σ(s_i - s_j), a scalar (LambdaRank, Burges 2010, §4).

    |ΔNDCG_ij| = (y_i - y_j) |1 / log₂(1 + R_i) - 1 / log₂(1 + R_j)| / IDCG is what the NDCG of the group changes by if
    i and j change places; R are the ranks by the current scores, from 1, and IDCG is the DCG of the best order.
    """
    gain_BG = gains(rewards_BG, valid_BG)
    places_G = torch.arange(score_BG.shape[1], device=score_BG.device, dtype=score_BG.dtype)
    discount_G = 1 / torch.log2(places_G + 2)
    order_BG = score_BG.detach().masked_fill(~valid_BG, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    discount_BG = discount_G[order_BG.argsort(dim=-1)]
    ideal_B11 = (gain_BG.sort(dim=-1, descending=True).values * discount_G).sum(-1)[:, None, None].clamp(min=EPSILON)
    gap_BGG = gain_BG[:, :, None] - gain_BG[:, None]
    swap_BGG = gap_BGG * (discount_BG[:, :, None] - discount_BG[:, None]).abs() / ideal_B11
    better_BGG = (gap_BGG > EPSILON) & valid_BG[:, :, None] & valid_BG[:, None]
    margin_BGG = score_BG[:, :, None] - score_BG[:, None]
    return (F.softplus(-margin_BGG) * swap_BGG.masked_fill(~better_BGG, 0)).sum()


def gains(rewards_BG: Tensor, valid_BG: Tensor) -> Tensor:
    """y_i = r_i - min_j r_j over the real candidates, (B, G); 0 for empty ones."""
    lowest_B1 = rewards_BG.masked_fill(~valid_BG, torch.inf).amin(-1, keepdim=True)
    return (rewards_BG - lowest_B1).masked_fill(~valid_BG, 0)
