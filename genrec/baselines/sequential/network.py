"""What every sequential network shares, and those with rows of items, whose scores are dot products with them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from genrec.baselines.sequential.item_losses import LossName, item_loss
from genrec.baselines.sequential.training_windows import NOTHING, Form, WindowBatch
from genrec.config import NetworkSettings, SequentialSettings

INIT_STD = 0.02


class TrainedNetwork(nn.Module):
    """What the trainer needs, settings, the ``form`` of its windows and a loss; and what ranking needs, scores.

    ``form``: "dense", the next item at each position; "rows", the next item at the last position of each prefix, for
    networks that look ahead; "cloze", items that are hidden.

    A history is a row of ``items_BT``: item rows, oldest first, from column 0, with anything valid behind its end
    (``lengths_B``).
    """

    form: Form = "dense"
    settings: NetworkSettings
    n_items: int

    def loss(self, batch: WindowBatch) -> Tensor:
        """The loss of the batch's predictions, summed (scalar); random draws are torch's."""
        raise NotImplementedError

    def scores(self, items_BT: Tensor, lengths_B: Tensor, users_B: Tensor) -> Tensor:
        """Scores (B, N) of all items as the next one, minus infinity for an item that cannot be an answer.

        Args:
            users_B: the number of each history's user, -1 where it is not known.
        """
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """Copies of all weights, in main memory, by name."""
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.state_dict().items()}


class ItemNetwork(TrainedNetwork):
    """Encodes histories to vectors; the score of an item is the dot product with its row."""

    extra_rows: ClassVar[int] = 0

    def __init__(self, n_items: int, settings: SequentialSettings) -> None:
        super().__init__()
        self.n_items, self.settings = n_items, settings
        self._loss: LossName = settings.loss
        self._negatives = settings.negatives
        self.items = nn.Embedding(n_items + self.extra_rows, settings.hidden)

    def reset(self) -> None:
        """Draw all weights again, normal with deviation ``INIT_STD``; norms begin as the identity."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def rows_ND(self) -> Tensor:
        """The rows (N, D) that scores are dot products with."""
        return self.items.weight[: self.n_items]

    def forward(self, items_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The states (B, T, D); those behind a history's end mean nothing."""
        raise NotImplementedError

    def prepared(self, batch: WindowBatch) -> WindowBatch:
        """What is trained on in place of ``batch``; random draws are torch's."""
        return batch

    def loss(self, batch: WindowBatch) -> Tensor:
        """The loss over the items, summed over the batch's predictions (scalar)."""
        batch = self.prepared(batch)
        states_BTD, wanted_BT = self(batch.items_BT, batch.lengths_B), batch.targets_BT != NOTHING
        targets_P = batch.targets_BT[wanted_BT]
        return item_loss(self._loss, states_BTD[wanted_BT], self.rows_ND, targets_P, self._negatives)

    def last(self, items_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The states (B, D) that the next item is predicted from."""
        states_BTD = self(items_BT, lengths_B)
        return states_BTD[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B - 1]

    def scores(self, items_BT: Tensor, lengths_B: Tensor, users_B: Tensor) -> Tensor:
        """Dot products (B, N); users make no difference."""
        return self.last(items_BT, lengths_B) @ self.rows_ND.T


def inside(items_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Whether a column belongs to the history, (B, T)."""
    return torch.arange(items_BT.shape[1], device=items_BT.device) < lengths_B[:, None]


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout`` of any shape with ``share`` rounded to 1/256, several times as fast on a CPU.

    One 64-bit draw makes eight decisions, where torch draws for each.
    """
    cut = round(256 * share) if training else 0
    if not cut:
        return x
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= cut
    return x * kept * (256 / (256 - cut))
