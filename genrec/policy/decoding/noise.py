"""Uniform random numbers for the searches that draw, from one generator or from one per query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Source = torch.Generator | Sequence[np.random.Generator] | None
"""One generator for a whole batch (None: torch's own), or one per query: then its draws are the same in any batch."""


def uniform(shape: Sequence[int], source: Source, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) of ``shape`` (B, …), float32; with a generator per query, row b is from the b-th."""
    if source is None or isinstance(source, torch.Generator):
        return torch.rand(tuple(shape), generator=source, device=device)
    rows = [generator.random(tuple(shape[1:]), np.float32) for generator in source]
    return torch.from_numpy(np.stack(rows)).to(device)
