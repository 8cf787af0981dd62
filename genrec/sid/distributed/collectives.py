"""What a fit that several workers share needs of them: sums over all, a place for its state, one voice for errors."""

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

SAMPLE = 262_144
"""Vectors that first codebooks are made from, at most (400 MB at 384 dimensions); each worker holds them."""
POINTS = 256
"""Vectors per code among them (as many as faiss trains on)."""
SAVE_S = 60.0
"""Seconds between checkpoints."""
MESSAGE = 2000
"""Bytes of a refusal that reach the other workers."""


class ProcessGroup(Protocol):
    """The workers of one fit, seen from one of them; all call the same methods in the same order.

    ``rank`` counts from 0 below ``size``; ``device`` is where this one computes.
    """

    rank: int
    size: int
    device: str

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every worker's tensor: the same bits on each, on the tensor's own device."""
        ...

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest whole checkpoint as a local directory, or None."""
        ...

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Keep what ``write`` puts into an empty directory as the newest checkpoint."""
        ...


class SingleProcess:
    """One worker without company or checkpoints."""

    rank, size = 0, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def sum(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def latest(self) -> AbstractContextManager[Path | None]:
        """None."""
        return nullcontext(None)

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Nothing is kept."""


class CheckpointTimer:
    """Says when a checkpoint is due, on all workers alike, by the clock of the first."""

    def __init__(self, workers: ProcessGroup, every_s: float | None = None) -> None:
        self._workers, self._every_s = workers, SAVE_S if every_s is None else every_s
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether ``every_s`` have passed since it was last due."""
        passed = self._workers.rank == 0 and time.monotonic() - self._last >= self._every_s
        if not self._workers.sum(torch.tensor([float(passed)])).item():
            return False
        self._last = time.monotonic()
        return True


@dataclass(frozen=True)
class ScanStatistics:
    """All vectors' mean (D,) and root mean squared deviation from it, and a sample of them (n, D)."""

    mean_D: Floats
    scale: float
    sample_ND: Floats


def scan_statistics(stream: Stream, workers: ProcessGroup, codes: int, seed: int) -> ScanStatistics:
    """Read everything once: refuse what cannot be quantized, and draw a sample that does not depend on the workers.

    Args:
        codes: the sample has 256 vectors per code, and 262,144 at most (but one per code).

    Raises:
        InputError: a vector that is not finite or all zeros, or files that do not fit; on every worker.
    """
    size = min(len(stream), max(min(POINTS * codes, SAMPLE), codes))
    picked = np.sort(np.random.default_rng(seed).choice(len(stream), size, replace=False))
    sample_ND = torch.zeros(size, stream.width)
    sums_D2 = torch.zeros(stream.width, 2, dtype=torch.float64)
    refused = ""
    try:
        for start, rows_BD in stream.blocks():
            check_vectors(rows_BD, start)
            low, high = np.searchsorted(picked, (start, start + len(rows_BD)))
            block_BD = torch.from_numpy(rows_BD)
            sample_ND[low:high] = block_BD[picked[low:high] - start]
            block_BD = block_BD.double()
            sums_D2 += torch.stack([block_BD.sum(0), block_BD.square().sum(0)], dim=1)
    except InputError as error:
        refused = str(error)
    raise_on_all(workers, refused)
    mean_D, square_D = (workers.sum(sums_D2) / len(stream)).unbind(1)
    scale = (square_D - mean_D.square()).mean().clamp(min=0).sqrt().item() or 1.0
    sample_ND = torch.cat([workers.sum(part) for part in sample_ND.split(BLOCK)])
    return ScanStatistics(mean_D.float().numpy(), scale, sample_ND.numpy())


def raise_on_all(workers: ProcessGroup, refused: str) -> None:
    """Raise the first worker's message on all of them, if any has one: none is left waiting for the others.

    Raises:
        InputError: a worker's ``refused`` is not empty.
    """
    flags = torch.zeros(workers.size)
    flags[workers.rank] = float(bool(refused))
    flags = workers.sum(flags)
    if not flags.any():
        return
    text = torch.zeros(MESSAGE, dtype=torch.int32)
    if workers.rank == int(flags.nonzero()[0]):
        letters = refused.encode()[:MESSAGE]
        text[: len(letters)] = torch.tensor(list(letters), dtype=torch.int32)
    raise InputError(bytes(workers.sum(text).tolist()).rstrip(b"\0").decode(errors="ignore"))


def share(workers: ProcessGroup, values: Tensor) -> Tensor:
    """The first worker's tensor, on all of them."""
    return workers.sum(values if workers.rank == 0 else torch.zeros_like(values))


def sum_all(workers: ProcessGroup, parts: Sequence[Tensor]) -> list[Tensor]:
    """The sums of several tensors of one type, in one exchange."""
    flat = workers.sum(torch.cat([part.detach().flatten() for part in parts]))
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]
