"""Collective operations of a fit that several processes share: sum, broadcast, checkpoints, and errors on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.sid.distributed.vector_stream import BLOCK, Stream
from genrec.sid.vectors import Floats, check_vectors

SAMPLE_SIZE = 262_144
"""Most vectors in the sample that codebooks are initialised from (400 MB at 384 dimensions, held by every rank)."""
SAMPLE_PER_CODE = 256
"""Sampled vectors per code (as many as faiss trains on)."""
SAVE_S = 60.0
"""Seconds between checkpoints."""
MESSAGE_BYTES = 2000
"""Bytes of an error message that are sent to the other ranks."""


class ProcessGroup(Protocol):
    """The processes of one fit, seen from one of them. All ranks must call the same methods in the same order.

    ``rank`` is 0 … ``size`` - 1; ``device`` is the torch device on which this rank computes.
    """

    rank: int
    size: int
    device: str

    def sum(self, values: Tensor) -> Tensor:
        """All-reduce: the sum of all ranks' tensors (of one shape), the same bits on each, on the tensor's device."""
        ...

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest complete checkpoint as a local directory, or None."""
        ...

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Save a checkpoint: ``write`` fills an empty directory, which becomes the newest checkpoint."""
        ...


class SingleProcess:
    """A ``ProcessGroup`` of one process, without checkpoints."""

    rank, size = 0, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def sum(self, values: Tensor) -> Tensor:
        """Return ``values``, of any shape: there is no other rank."""
        return values

    def latest(self) -> AbstractContextManager[Path | None]:
        """Return None: there are no checkpoints."""
        return nullcontext(None)

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Do nothing."""


class CheckpointTimer:
    """Tells all ranks at once when a checkpoint is due, by the clock of rank 0."""

    def __init__(self, group: ProcessGroup, every_s: float | None = None) -> None:
        self._group, self._every_s = group, SAVE_S if every_s is None else every_s
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether ``every_s`` seconds have passed since this last returned True."""
        passed = self._group.rank == 0 and time.monotonic() - self._last >= self._every_s
        if not self._group.sum(torch.tensor([float(passed)])).item():
            return False
        self._last = time.monotonic()
        return True


@dataclass(frozen=True)
class ScanStatistics:
    """Mean (D,) of all vectors, their root-mean-square deviation from it, and a sample of them (n, D)."""

    mean_D: Floats
    scale: float
    sample_ND: Floats


def scan_statistics(stream: Stream, group: ProcessGroup, codes: int, seed: int) -> ScanStatistics:
    """Read all vectors once: check them, sum them, and draw a sample that does not depend on the number of ranks.

    Args:
        codes: codes per level. The sample holds 256 vectors per code, but at most max(262,144, ``codes``).

    Raises:
        InputError: on every rank, if a vector is not finite or all zeros, or the files do not fit.
    """
    size = min(len(stream), max(min(SAMPLE_PER_CODE * codes, SAMPLE_SIZE), codes))
    picked = np.sort(np.random.default_rng(seed).choice(len(stream), size, replace=False))
    sample_ND = torch.zeros(size, stream.width)
    sums_D2 = torch.zeros(stream.width, 2, dtype=torch.float64)
    message = ""
    try:
        for start, rows_BD in stream.blocks():
            check_vectors(rows_BD, start)
            low, high = np.searchsorted(picked, (start, start + len(rows_BD)))
            block_BD = torch.from_numpy(rows_BD)
            sample_ND[low:high] = block_BD[picked[low:high] - start]
            block_BD = block_BD.double()
            sums_D2 += torch.stack([block_BD.sum(0), block_BD.square().sum(0)], dim=1)
    except InputError as error:
        message = str(error)
    raise_on_all(group, message)
    mean_D, square_D = (group.sum(sums_D2) / len(stream)).unbind(1)
    scale = (square_D - mean_D.square()).mean().clamp(min=0).sqrt().item() or 1.0
    sample_ND = torch.cat([group.sum(part) for part in sample_ND.split(BLOCK)])
    return ScanStatistics(mean_D.float().numpy(), scale, sample_ND.numpy())


def raise_on_all(group: ProcessGroup, message: str) -> None:
    """Raise the lowest failed rank's error message on all ranks, so that none waits for the others forever.

    Raises:
        InputError: if ``message`` is not empty on some rank.
    """
    flags = torch.zeros(group.size)
    flags[group.rank] = float(bool(message))
    flags = group.sum(flags)
    if not flags.any():
        return
    text = torch.zeros(MESSAGE_BYTES, dtype=torch.int32)
    if group.rank == int(flags.nonzero()[0]):
        encoded = message.encode()[:MESSAGE_BYTES]
        text[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.int32)
    raise InputError(bytes(group.sum(text).tolist()).rstrip(b"\0").decode(errors="ignore"))


def broadcast(group: ProcessGroup, values: Tensor) -> Tensor:
    """Rank 0's tensor, on all ranks; ``values`` has the same shape and type on each."""
    return group.sum(values if group.rank == 0 else torch.zeros_like(values))


def sum_all(group: ProcessGroup, parts: Sequence[Tensor]) -> list[Tensor]:
    """All-reduce several tensors of one type in one exchange; shapes are kept."""
    flat = group.sum(torch.cat([part.detach().flatten() for part in parts]))
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]
