"""GRU4Rec (Hidasi et al. 2016, 1511.06939): a recurrent network over item rows, its state projected to their space."""

from __future__ import annotations

from torch import Tensor, nn

from genrec.baselines.sequential.network import ItemNetwork, dropout
from genrec.config import SequentialSettings


class Gru4Rec(ItemNetwork):
    """See the module."""

    def __init__(self, n_items: int, max_history: int, settings: SequentialSettings) -> None:
        super().__init__(n_items, settings)
        self.gru = nn.GRU(settings.hidden, 2 * settings.hidden, settings.layers, batch_first=True)
        self.out = nn.Linear(2 * settings.hidden, settings.hidden)
        nn.init.normal_(self.items.weight, std=0.02)

    def forward(self, items_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """States (B, T, D); a state depends on its item and those before."""
        share = self.settings.dropout
        states_BTE, _ = self.gru(dropout(self.items(items_BT), share, self.training))
        return self.out(dropout(states_BTE, share, self.training))
