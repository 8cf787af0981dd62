"""BSARec (Shin et al. 2024, 2312.10325): attention beside a frequency rescaler.

The rescaler splits a history, as a signal over ``PERIOD`` positions, into its lowest ``cutoff // 2 + 1`` frequencies
and the rest, and weighs the rest by a learned β² (eq. 8): low + β² · (x - low). A layer adds both paths, each with its
residual and norm: α · rescaler + (1 - α) · attention (eq. 9).

Keeping the frequencies 0 … m of a signal is a product with a fixed matrix, whose entry for two positions depends on
their distance d alone: (1 + 2 Σ_{f=1}^{m} cos(2 π f d / PERIOD)) / PERIOD. So no FFT is needed, and a short history
costs no padding; positions outside it count as zero. It looks both ways, so the network is trained on prefixes, one
at a time. With ``causal`` the matrix is cut to what is before a position: the last position reads the same signal, and
all positions are trained at once, which takes a fraction of the time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genrec.baselines.sequential.network import dropout, inside
from genrec.baselines.sequential.sasrec import FeedForward, PositionedNetwork, SelfAttention
from genrec.config import BsarecSettings

PERIOD = 50
"""Positions of the signal: the published maximum length of a history."""


def low_pass(width: int, cutoff: int, period: int = PERIOD) -> Tensor:
    """The matrix (T, T), T = ``width``, that keeps the ``cutoff // 2 + 1`` lowest of ``period``'s frequencies."""
    place_T = torch.arange(width, dtype=torch.float64)
    distance_TT = place_T[:, None] - place_T
    kernel_TT = torch.ones_like(distance_TT)
    for frequency in range(1, min(cutoff // 2, period // 2) + 1):
        share = 1 if 2 * frequency == period else 2  # The highest frequency is its own mirror image.
        kernel_TT += share * torch.cos(2 * math.pi * frequency * distance_TT / period)
    return (kernel_TT / period).float()


class FrequencyRescaler(nn.Module):
    """Low frequencies plus β² times the others, with residual and norm."""

    low_TT: Tensor

    def __init__(self, max_history: int, settings: BsarecSettings) -> None:
        super().__init__()
        period = max(PERIOD, max_history)
        low_TT = low_pass(max_history + 1, settings.cutoff, period)
        self.register_buffer("low_TT", low_TT.tril() if settings.causal else low_TT, persistent=False)
        self._dropout = settings.dropout
        self.beta = nn.Parameter(torch.randn(settings.hidden))
        self.norm = nn.LayerNorm(settings.hidden, eps=1e-12)

    def forward(self, x_BTD: Tensor, inside_BT: Tensor) -> Tensor:
        """LayerNorm(x + dropout(low + β² (x - low))), (B, T, D); only columns ``inside_BT`` are part of the signal."""
        width = x_BTD.shape[1]
        low_BTD = self.low_TT[:width, :width] @ (x_BTD * inside_BT[:, :, None])
        mixed_BTD = low_BTD + self.beta**2 * (x_BTD - low_BTD)
        return self.norm(x_BTD + dropout(mixed_BTD, self._dropout, self.training))


class BsarecLayer(nn.Module):
    """α · rescaler + (1 - α) · attention, then the feed-forward part."""

    def __init__(self, max_history: int, settings: BsarecSettings) -> None:
        super().__init__()
        self._alpha = settings.alpha
        self.rescaler = FrequencyRescaler(max_history, settings)
        self.attention, self.feed = SelfAttention(settings), FeedForward(settings)

    def forward(self, x_BTD: Tensor, inside_BT: Tensor) -> Tensor:
        """States (B, T, D) of the next layer."""
        rescaled_BTD = self.rescaler(x_BTD, inside_BT)
        return self.feed(self._alpha * rescaled_BTD + (1 - self._alpha) * self.attention(x_BTD))


class BsaRec(PositionedNetwork):
    """See the module."""

    def __init__(self, n_items: int, max_history: int, settings: BsarecSettings) -> None:
        super().__init__(n_items, max_history, settings, lambda: BsarecLayer(max_history, settings))
        self.form = "dense" if settings.causal else "rows"

    def forward(self, items_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """States (B, T, D)."""
        x_BTD, inside_BT = self.embedded(items_BT), inside(items_BT, lengths_B)
        for layer in self.layers:
            x_BTD = layer(x_BTD, inside_BT)
        return x_BTD
