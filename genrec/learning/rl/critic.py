"""PPO's value head: what a prefix is expected to earn, and the advantages that follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrec.learning.rl.advantages import EPSILON

DISCOUNT = 1.0
"""γ: a semantic ID is L tokens with its reward at the end, so nothing is discounted."""


class Critic(nn.Module):
    """V of the state before each level: a linear map of the policy's hidden state there, 0 at first.

    The hidden states are detached: the value loss trains the head alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Sequence[Tensor], group: int) -> Tensor:
        """Values (B, G, L) of hidden states per level, (B, 1 or G, D)."""
        levels = [self.head(h_BGD.detach().float()).expand(-1, group, -1) for h_BGD in hidden]
        return torch.cat(levels, dim=-1)


def gae(values_BGL: Tensor, rewards_BG: Tensor, lam: float) -> Tensor:
    """Advantages (B, G, L): A_l = Σ_k (γ λ)^k δ_{l+k}, δ_l = r_l + γ V_{l+1} - V_l (GAE, Schulman et al. 2016, eq. 16).

    r is 0 but at the last level, after which the value is 0.
    """
    next_BGL = torch.nn.functional.pad(values_BGL[..., 1:], (0, 1))
    delta_BGL = DISCOUNT * next_BGL - values_BGL
    delta_BGL[..., -1] += rewards_BG
    running_BG = torch.zeros_like(rewards_BG)
    found: list[Tensor] = []
    for delta_BG in reversed(delta_BGL.unbind(-1)):
        running_BG = delta_BG + DISCOUNT * lam * running_BG
        found.append(running_BG)
    return torch.stack(found[::-1], dim=-1)


def normalised(advantage_BGL: Tensor, valid_BG: Tensor) -> Tensor:
    """(A - mean) / std over all tokens of real candidates; 0 at the empty ones, and where A is constant."""
    real_BG1 = valid_BG[..., None]
    real_x = advantage_BGL[valid_BG]
    std = real_x.std(correction=0) if len(real_x) else advantage_BGL.new_zeros(())
    if std < EPSILON:
        return torch.zeros_like(advantage_BGL)
    return ((advantage_BGL - real_x.mean()) / std).masked_fill(~real_BG1, 0)


def value_loss(values_BGL: Tensor, returns_BGL: Tensor, valid_BG: Tensor) -> Tensor:
    """0.5 (V - return)², mean over G and L, summed over queries."""
    return (0.5 * (values_BGL - returns_BGL).square() * valid_BG[..., None]).mean((1, 2)).sum()
