"""The exponential moving average of the policy's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.types import Snapshot

FILE = "average.safetensors"


class WeightAverage:
    """θ̄ ← d · θ̄ + (1 - d) · θ after every update, with θ̄ = θ before the first one.

    An average of the weights does not have the noise of a high learning rate (Polyak & Juditsky 1992; here with
    exponential weights).

    Args:
        start: the weights θ before the first update, by name.
        decay: d, in (0, 1).
    """

    def __init__(self, start: Mapping[str, Tensor], decay: float) -> None:
        self._mean = {name: tensor.clone() for name, tensor in start.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int | None = None) -> None:
        """Move the average towards ``weights``.

        Args:
            step: number of the update, from 0, where the start is random: the decay is then at most
                (1 + step) / (10 + step), so that the start is forgotten.
        """
        decay = self._decay if step is None else min(self._decay, (1 + step) / (10 + step))
        for name, mean in self._mean.items():
            mean.lerp_(weights[name].detach(), 1 - decay)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The average itself, by name."""
        return self._mean

    def snapshot(self, version: int) -> Snapshot:
        """A copy of the average on the CPU, as ``version``."""
        return Snapshot(version, {name: mean.to("cpu", copy=True) for name, mean in self._mean.items()})

    def write(self, directory: Path) -> None:
        """Save the average next to a checkpoint."""
        save_file({name: mean.contiguous() for name, mean in self._mean.items()}, directory / FILE)

    def read(self, directory: Path) -> None:
        """Restore what ``write`` saved."""
        saved = load_file(directory / FILE)
        self._mean = {name: saved[name].to(mean.device) for name, mean in self._mean.items()}
