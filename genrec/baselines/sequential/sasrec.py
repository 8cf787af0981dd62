"""SASRec (Kang & McAuley 2018, 1808.09781): a causal transformer over item rows, with learned positions.

Layers normalise after their residuals, with GELU inside, as BERT4Rec and the public reruns do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.baselines.sequential.network import ItemNetwork, dropout
from genrec.config import SequentialSettings


class SelfAttention(nn.Module):
    """Multi-head attention with its residual and norm; ``mask_BTT`` None: causal."""

    def __init__(self, settings: SequentialSettings) -> None:
        super().__init__()
        self._heads, self._dropout = settings.heads, settings.dropout
        self.qkv, self.out = (
            nn.Linear(settings.hidden, 3 * settings.hidden),
            nn.Linear(settings.hidden, settings.hidden),
        )
        self.norm = nn.LayerNorm(settings.hidden, eps=1e-12)

    def forward(self, x_BTD: Tensor, mask_BTT: Tensor | None = None) -> Tensor:
        """LayerNorm(x + dropout(attention(x))), (B, T, D)."""
        batch, width, hidden = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(batch, width, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        share = self._dropout if self.training else 0.0
        mask = None if mask_BTT is None else mask_BTT[:, None]
        mixed = F.scaled_dot_product_attention(q, k, v, mask, share, is_causal=mask is None)
        mixed_BTD = self.out(mixed.transpose(1, 2).reshape(batch, width, hidden))
        return self.norm(x_BTD + dropout(mixed_BTD, self._dropout, self.training))


class FeedForward(nn.Module):
    """Two linear maps with GELU between, of inner width 4 D, with their residual and norm."""

    def __init__(self, settings: SequentialSettings) -> None:
        super().__init__()
        self._dropout = settings.dropout
        self.grow, self.shrink = (
            nn.Linear(settings.hidden, 4 * settings.hidden),
            nn.Linear(4 * settings.hidden, settings.hidden),
        )
        self.norm = nn.LayerNorm(settings.hidden, eps=1e-12)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """LayerNorm(x + dropout(W₂ gelu(W₁ x))), (…, D)."""
        return self.norm(x_BTD + dropout(self.shrink(F.gelu(self.grow(x_BTD))), self._dropout, self.training))


class TransformerLayer(nn.Module):
    """Attention, then the feed-forward part."""

    def __init__(self, settings: SequentialSettings) -> None:
        super().__init__()
        self.attention, self.feed = SelfAttention(settings), FeedForward(settings)

    def forward(self, x_BTD: Tensor, mask_BTT: Tensor | None = None) -> Tensor:
        """States (B, T, D) of the next layer."""
        return self.feed(self.attention(x_BTD, mask_BTT))


class PositionedNetwork(ItemNetwork):
    """Item rows plus position rows, normalised, then ``settings.layers`` layers made by ``layer``."""

    def __init__(
        self, n_items: int, max_history: int, settings: SequentialSettings, layer: Callable[[], nn.Module]
    ) -> None:
        super().__init__(n_items, settings)
        self.positions = nn.Embedding(max_history + 1, settings.hidden)
        self.norm = nn.LayerNorm(settings.hidden, eps=1e-12)
        self.layers = nn.ModuleList(layer() for _ in range(settings.layers))
        self.reset()

    def embedded(self, items_BT: Tensor) -> Tensor:
        """What the first layer gets, (B, T, D)."""
        positions_T = torch.arange(items_BT.shape[1], device=items_BT.device)
        x_BTD = self.norm(self.items(items_BT) + self.positions(positions_T))
        return dropout(x_BTD, self.settings.dropout, self.training)


class SasRec(PositionedNetwork):
    """See the module."""

    def __init__(self, n_items: int, max_history: int, settings: SequentialSettings) -> None:
        super().__init__(n_items, max_history, settings, lambda: TransformerLayer(settings))

    def forward(self, items_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """States (B, T, D); a position sees itself and what is before it."""
        x_BTD = self.embedded(items_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD
