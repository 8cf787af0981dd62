"""HSTU (Zhai et al. 2024, 2402.17152): pointwise attention whose output is gated, without a softmax.

    U, V, Q, K = split(SiLU(W₁ norm(x)))                      eq. 1
    A = SiLU(Q Kᵀ + b) / T                                     eq. 2; b: a learned bias for each distance
    y = x + W₂ (norm(A V) ⊙ U)                                 eq. 3

The paper's bias also knows times; here histories have none, so it knows distances alone. T is the longest history, so
that a short history is not read differently in a batch of long ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.baselines.sequential.network import dropout
from genrec.baselines.sequential.sasrec import PositionedNetwork
from genrec.config import SequentialSettings


def pointwise_attention(q: Tensor, k: Tensor, v: Tensor, bias_TT: Tensor, longest: int) -> Tensor:
    """SiLU(Q Kᵀ + b) V / ``longest`` over the positions up to each one; shapes (B, heads, T, D / heads)."""
    weight = F.silu(q @ k.transpose(-1, -2) + bias_TT) / longest
    return weight.tril() @ v


class HstuLayer(nn.Module):
    """One block; see the module's equations."""

    distance_TT: Tensor

    def __init__(self, max_history: int, settings: SequentialSettings) -> None:
        super().__init__()
        hidden = settings.hidden
        self._heads, self._dropout, self._longest = settings.heads, settings.dropout, max_history
        self.norm, self.mixed_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.uvqk, self.out = nn.Linear(hidden, 4 * hidden), nn.Linear(hidden, hidden)
        self.distance_bias = nn.Parameter(torch.zeros(max_history + 1))
        place_T = torch.arange(max_history + 1)
        distance_TT = (place_T[:, None] - place_T).clamp(min=0)
        self.register_buffer("distance_TT", distance_TT, persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """States (B, T, D) of the next layer."""
        batch, width, hidden = x_BTD.shape
        u_BTD, *vqk = F.silu(self.uvqk(self.norm(x_BTD))).chunk(4, dim=-1)
        v, q, k = (part.view(batch, width, self._heads, -1).transpose(1, 2) for part in vqk)
        bias_TT = self.distance_bias[self.distance_TT[:width, :width]]
        mixed = pointwise_attention(q, k, v, bias_TT, self._longest)
        mixed_BTD = self.mixed_norm(mixed.transpose(1, 2).reshape(batch, width, hidden)) * u_BTD
        return x_BTD + self.out(dropout(mixed_BTD, self._dropout, self.training))


class Hstu(PositionedNetwork):
    """See the module."""

    def __init__(self, n_items: int, max_history: int, settings: SequentialSettings) -> None:
        super().__init__(n_items, max_history, settings, lambda: HstuLayer(max_history, settings))

    def forward(self, items_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """States (B, T, D); a position sees itself and what is before it."""
        x_BTD = self.embedded(items_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD
