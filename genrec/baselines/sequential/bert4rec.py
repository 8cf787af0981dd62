"""BERT4Rec (Sun et al. 2019, 1904.06690): a transformer that sees both ways, trained to fill in hidden items.

The item after a history is asked for by a mask behind its end. So that training knows this form, the newest item of a
window is always among the hidden ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.baselines.sequential.network import inside
from genrec.baselines.sequential.sasrec import PositionedNetwork, TransformerLayer
from genrec.baselines.sequential.training_windows import NOTHING, WindowBatch
from genrec.config import Bert4recSettings


class Bert4Rec(PositionedNetwork):
    """See the module. The mask is row N of the items."""

    form = "cloze"
    extra_rows = 1

    def __init__(self, n_items: int, max_history: int, settings: Bert4recSettings) -> None:
        super().__init__(n_items, max_history, settings, lambda: TransformerLayer(settings))
        self._masked = settings.masked

    def forward(self, items_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """States (B, T, D); each position sees the whole history."""
        x_BTD = self.embedded(items_BT)
        mask_B1T = inside(items_BT, lengths_B)[:, None]
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask_B1T)
        return x_BTD

    def prepared(self, batch: WindowBatch) -> WindowBatch:
        """A share of the items of each window hidden, the newest always; they are the targets."""
        whole_BT, lengths_B = with_newest(batch), batch.lengths_B + 1
        newest_BT = torch.arange(whole_BT.shape[1], device=whole_BT.device) == lengths_B[:, None] - 1
        drawn_BT = torch.rand(whole_BT.shape, device=whole_BT.device) < self._masked
        hidden_BT = (drawn_BT & inside(whole_BT, lengths_B)) | newest_BT
        shown_BT, targets_BT = torch.where(hidden_BT, self.n_items, whole_BT), torch.where(hidden_BT, whole_BT, NOTHING)
        return WindowBatch(shown_BT, lengths_B, targets_BT, batch.users_B)

    def last(self, items_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The states (B, D) of a mask behind each history."""
        asked_BT = torch.cat([items_BT, items_BT[:, :1]], 1).scatter(1, lengths_B[:, None], self.n_items)
        return super().last(asked_BT, lengths_B + 1)


def with_newest(batch: WindowBatch) -> Tensor:
    """The items of a dense batch with the last target behind them, (B, T + 1)."""
    last_B1 = batch.targets_BT.gather(1, batch.lengths_B[:, None] - 1)
    return torch.cat([batch.items_BT, batch.items_BT[:, :1]], 1).scatter(1, batch.lengths_B[:, None], last_B1)
