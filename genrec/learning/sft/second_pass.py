"""The second pass of an epoch: the samples with the largest losses of its first pass are trained once more.

Online hard example mining over a whole pass (after Shrivastava et al. 2016, who mine within a batch). A sample is an
example of the training set: a query, a conversation, or a window of a sequence. Its loss is the one that its own
update of the first pass minimised, per target, so mining needs no forward pass of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.policy.model import Policy

FILE = "sample_losses.safetensors"
"""Next to a checkpoint: the loss of each sample when it was last trained in a first pass."""


class SampleLoss(Protocol):
    """A loss that is a sum over the samples of a batch."""

    def __call__(self, policy: Policy, batch: Any) -> Tensor:
        """The sum, a scalar."""
        ...

    def per_sample(self, policy: Policy, batch: Any) -> Tensor:
        """The addends, (B,), in the order in which the batch was asked for."""
        ...


class RecordingLoss:
    """A ``SampleLoss`` that keeps the losses per target of the samples that it is called with, piece by piece."""

    def __init__(self, loss: SampleLoss) -> None:
        self._loss = loss
        self.pieces: list[Tensor] = []

    def __call__(self, policy: Policy, batch: Any) -> Tensor:
        """The loss summed over the batch, a scalar."""
        loss_B = self._loss.per_sample(policy, batch)
        self.pieces.append(loss_B.detach() / batch.targets_B.to(loss_B))
        return loss_B.sum()


class HardSamples:
    """The samples of a training set with the largest losses.

    Args:
        kinds: the training set in parts, as ``range``s of its examples' numbers; losses are compared within a part, so
            that a mixture of tasks keeps its proportions.
        share: of each part, rounded up.
    """

    def __init__(self, kinds: Sequence[range], share: float) -> None:
        self._kinds, self._share = kinds, share
        self._loss_N = torch.full((sum(map(len, kinds)),), torch.nan)

    @property
    def count(self) -> int:
        """Number of samples in a second pass."""
        return sum(self._of(kind) for kind in self._kinds)

    def record(
        self, index_B: np.ndarray, own_b: np.ndarray, pieces: Sequence[Tensor], add: Callable[[Tensor], Tensor]
    ) -> None:
        """Keep the losses of a batch that workers share; every worker calls it.

        Args:
            index_B: numbers of the batch's samples.
            own_b: those of this worker, in the order of its pieces.
            pieces: their losses, as ``RecordingLoss`` kept them; what goes beyond ``own_b`` is left out.
            add: sums a tensor over the workers.
        """
        order_B = np.argsort(index_B)
        place_b = order_B[np.searchsorted(index_B, own_b, sorter=order_B)]
        own = torch.cat([*pieces])[: len(own_b)].float()
        batch_B = torch.zeros(len(index_B), device=own.device)
        batch_B[torch.from_numpy(place_b).to(own.device)] = own
        self._loss_N[torch.from_numpy(index_B % len(self._loss_N))] = add(batch_B).cpu()

    def chosen(self) -> np.ndarray:
        """Numbers of the samples for the second pass, ascending; of equal losses the lower number comes first."""
        if self._loss_N.isnan().any():
            raise RuntimeError("a second pass was asked for before the first one ended")
        parts = [
            kind.start + np.argsort(-self._loss_N[kind.start : kind.stop].numpy(), kind="stable")[: self._of(kind)]
            for kind in self._kinds
        ]
        return np.sort(np.concatenate(parts))

    def write(self, directory: Path) -> None:
        """Save the losses next to a checkpoint."""
        save_file({"losses": self._loss_N}, directory / FILE)

    def read(self, directory: Path) -> None:
        """Restore what ``write`` saved."""
        self._loss_N = load_file(directory / FILE)["losses"]

    def _of(self, kind: range) -> int:
        return math.ceil(self._share * len(kind))
