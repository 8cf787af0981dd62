"""Item vectors as a stream that several workers share, so that no worker holds more than a few blocks of them.

The rows are cut into 64 lanes, neighbouring rows in one lane, and each worker reads a run of lanes. A training batch
takes a few rows from every lane. So the batches of an epoch are the same whatever the number of workers, and each
worker reads its own lanes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from genrec.sid.vectors import Floats

Longs = npt.NDArray[np.int64]
VIRTUAL_SHARDS = 64
"""More workers than lanes would have nothing to read."""
READ = 2048
"""Rows that a lane reads at once, and shuffles; 64 lanes of 384 dimensions hold 200 MB, shared by the workers."""
BLOCK = 8192
"""Rows per block where order does not matter."""


class Reader(Protocol):
    """Item vectors that are read by row numbers."""

    def __len__(self) -> int:
        """N, all items."""
        ...

    @property
    def width(self) -> int:
        """D, the dimensions of a vector."""
        ...

    def read(self, rows: range | Longs) -> Floats:
        """The vectors (n, D) of these rows, which ascend."""
        ...


@dataclass(frozen=True)
class VectorBatch:
    """One worker's part of a training batch: its vectors (b, D), their places in the batch (b,), the batch's size."""

    rows_BD: Floats
    place_B: Longs
    size: int


class Stream:
    """What one of ``workers`` reads of the item rows ``rows`` (ascending).

    Every row is read once per pass: by one worker, and in one batch of an epoch.
    """

    def __init__(self, reader: Reader, rows: range | Longs, *, rank: int = 0, workers: int = 1, seed: int = 0) -> None:
        self._reader, self._rows, self._seed = reader, rows, seed
        self._lanes = range(rank * VIRTUAL_SHARDS // workers, (rank + 1) * VIRTUAL_SHARDS // workers)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def width(self) -> int:
        """D, the dimensions of a vector."""
        return self._reader.width

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """This worker's rows in order: where each block begins among all rows, and its vectors (b, D)."""
        stop = self._bound(self._lanes.stop)
        for start in range(self._bound(self._lanes.start), stop, BLOCK):
            yield start, self._reader.read(self._rows[start : min(start + BLOCK, stop)])

    def steps(self, batch_size: int) -> int:
        """Batches per epoch."""
        return -(-len(self) // batch_size)

    def batches(self, batch_size: int, epoch: int) -> Iterator[VectorBatch]:
        """This worker's part, perhaps empty, of each batch of about ``batch_size`` rows, drawn anew each epoch."""
        steps = self.steps(batch_size)
        lanes = [self._virtual_shard(virtual_shard, epoch) for virtual_shard in self._lanes]
        length_J = np.diff([self._bound(virtual_shard) for virtual_shard in range(VIRTUAL_SHARDS + 1)])
        phase_J = np.arange(VIRTUAL_SHARDS) * steps // VIRTUAL_SHARDS
        for step in range(steps):
            count_J = ((step + 1) * length_J + phase_J) // steps - (step * length_J + phase_J) // steps
            first_J = np.concatenate([[0], np.cumsum(count_J)])
            own = self._lanes
            rows = [virtual_shard.take(int(count_J[number])) for number, virtual_shard in zip(own, lanes, strict=True)]
            place_B = np.arange(first_J[own.start], first_J[own.stop])
            yield VectorBatch(np.concatenate(rows), place_B, int(first_J[-1]))

    def _bound(self, virtual_shard: int) -> int:
        return virtual_shard * len(self) // VIRTUAL_SHARDS

    def _virtual_shard(self, virtual_shard: int, epoch: int) -> _VirtualShard:
        rows = self._rows[self._bound(virtual_shard) : self._bound(virtual_shard + 1)]
        return _VirtualShard(self._reader, rows, np.random.default_rng([self._seed, epoch, virtual_shard]))


class _VirtualShard:
    """The rows of one lane, its blocks in random order and each block shuffled."""

    def __init__(self, reader: Reader, rows: range | Longs, rng: np.random.Generator) -> None:
        self._reader, self._rows, self._rng = reader, rows, rng
        self._starts = iter(READ * rng.permutation(-(-len(rows) // READ)))
        self._left_nD = np.empty((0, reader.width), np.float32)

    def take(self, count: int) -> Floats:
        """The next ``count`` rows; there must be as many."""
        while len(self._left_nD) < count:
            start = int(next(self._starts))
            block_BD = self._reader.read(self._rows[start : start + READ])
            self._left_nD = np.concatenate([self._left_nD, block_BD[self._rng.permutation(len(block_BD))]])
        taken_nD, self._left_nD = self._left_nD[:count], self._left_nD[count:]
        return taken_nD
