"""Item vectors as a stream that several workers share, so that each holds only a few blocks of them in memory.

The rows are divided into 64 virtual shards of neighbouring rows, and each worker reads a range of virtual shards. A
training batch takes a few rows from every virtual shard. So the batches of an epoch do not depend on the number of
workers, and each worker reads its own virtual shards only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from genrec.sid.vectors import Floats, Longs

VIRTUAL_SHARDS = 64
"""The most workers that can read from a stream: one with no virtual shard would have no rows."""
READ = 2048
"""Rows that a virtual shard reads and shuffles at once: 64 x 2048 x 384 floats are 200 MB over all workers."""
BLOCK = 8192
"""Rows per block where the order does not matter."""


class Reader(Protocol):
    """Item vectors that are read by item row."""

    def __len__(self) -> int:
        """N, the number of items."""
        ...

    @property
    def width(self) -> int:
        """D, the dimensions of a vector."""
        ...

    def read(self, rows: range | Longs) -> Floats:
        """The vectors of ``rows``, (n, D) float32; ``rows`` must be ascending."""
        ...


@dataclass(frozen=True)
class VectorBatch:
    """One worker's part of a training batch.

    ``rows_BD`` (b, D) are its vectors, ``index_B`` (b,) their positions in the whole batch of ``size`` vectors.
    """

    rows_BD: Floats
    index_B: Longs
    size: int


class Stream:
    """The part of the item rows ``rows`` (ascending) that worker ``rank`` of ``workers`` reads.

    In each pass or epoch every row is read exactly once, by one worker.
    """

    def __init__(self, reader: Reader, rows: range | Longs, *, rank: int = 0, workers: int = 1, seed: int = 0) -> None:
        self._reader, self._rows, self._seed = reader, rows, seed
        self._own_shards = range(rank * VIRTUAL_SHARDS // workers, (rank + 1) * VIRTUAL_SHARDS // workers)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def width(self) -> int:
        """D, the dimensions of a vector."""
        return self._reader.width

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """This worker's rows in order, as (position of the block's first row in ``rows``, vectors (b, D))."""
        stop = self._bound(self._own_shards.stop)
        for start in range(self._bound(self._own_shards.start), stop, BLOCK):
            yield start, self._reader.read(self._rows[start : min(start + BLOCK, stop)])

    def steps(self, batch_size: int) -> int:
        """Batches per epoch."""
        return -(-len(self) // batch_size)

    def batches(self, batch_size: int, epoch: int) -> Iterator[VectorBatch]:
        """This worker's part (it may be empty) of each batch of about ``batch_size`` rows, shuffled anew each epoch."""
        steps = self.steps(batch_size)
        shards = [self._virtual_shard(number, epoch) for number in self._own_shards]
        length_J = np.diff([self._bound(number) for number in range(VIRTUAL_SHARDS + 1)])
        phase_J = np.arange(VIRTUAL_SHARDS) * steps // VIRTUAL_SHARDS
        for step in range(steps):
            count_J = ((step + 1) * length_J + phase_J) // steps - (step * length_J + phase_J) // steps
            first_J = np.concatenate([[0], np.cumsum(count_J)])
            own = self._own_shards
            rows = [shard.take(int(count_J[number])) for number, shard in zip(own, shards, strict=True)]
            index_B = np.arange(first_J[own.start], first_J[own.stop])
            yield VectorBatch(np.concatenate(rows), index_B, int(first_J[-1]))

    def _bound(self, number: int) -> int:
        return number * len(self) // VIRTUAL_SHARDS

    def _virtual_shard(self, number: int, epoch: int) -> _VirtualShard:
        rows = self._rows[self._bound(number) : self._bound(number + 1)]
        return _VirtualShard(self._reader, rows, np.random.default_rng([self._seed, epoch, number]))


class _VirtualShard:
    """The rows of one virtual shard: blocks in random order, each block shuffled."""

    def __init__(self, reader: Reader, rows: range | Longs, rng: np.random.Generator) -> None:
        self._reader, self._rows, self._rng = reader, rows, rng
        self._starts = iter(READ * rng.permutation(-(-len(rows) // READ)))
        self._buffer_nD = np.empty((0, reader.width), np.float32)

    def take(self, count: int) -> Floats:
        """The next ``count`` vectors, (count, D); the caller must not take more than the shard holds."""
        while len(self._buffer_nD) < count:
            start = int(next(self._starts))
            block_BD = self._reader.read(self._rows[start : start + READ])
            self._buffer_nD = np.concatenate([self._buffer_nD, block_BD[self._rng.permutation(len(block_BD))]])
        taken_nD, self._buffer_nD = self._buffer_nD[:count], self._buffer_nD[count:]
        return taken_nD
