"""Which items are chosen together, as the sparse PPMI matrix (N, N), in blocks of rows that each fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse

from genrec.data.matrix_files import Sparse, map_matrix, write_matrix
from genrec.sid.train_events import Doubles, IntArray, TrainEvents

BLOCK_PAIRS = 1 << 24
"""Pairs of events that are counted at once: about a gigabyte."""
BLOCK_ROWS = 1 << 20
"""Rows of a block, at most."""


@dataclass(frozen=True)
class Block:
    """Rows ``start`` … of a matrix, (R, N)."""

    start: int
    rows_RN: Sparse


@dataclass(frozen=True)
class Cooccurrence:
    """How often items are at most ``window`` train positions apart, each pair with the weight 1 / distance.

    ``weights_N`` are the sums of the rows of these (symmetric) counts, ``pairs_N`` the numbers of pairs in them.
    """

    events: TrainEvents
    window: int
    weights_N: Doubles
    pairs_N: IntArray

    @classmethod
    def of(cls, events: TrainEvents, items: int, window: int) -> Cooccurrence:
        """Those of N ``items``."""
        weights_N = events.weights(items, window)
        return cls(events, window, weights_N, 2 * window * events.counts(items))

    def ranges(self) -> Iterator[range]:
        """The rows in ranges of at most ``BLOCK_ROWS``, whose pairs are at most ``BLOCK_PAIRS``, but at least a row."""
        ends_N, start = np.append(0, np.cumsum(self.pairs_N)), 0
        while start < len(self.pairs_N):
            end = int(np.searchsorted(ends_N, ends_N[start] + BLOCK_PAIRS, side="right")) - 1
            end = max(start + 1, min(end, start + BLOCK_ROWS))
            yield range(start, end)
            start = end

    def ppmi(self, rows: range) -> Sparse:
        """Some rows (R, N) of PPMI_ij = max(log(p_ij / (p_i q_j)), 0), with context probabilities q_j ∝ p_j^0.75.

        Source: Levy & Goldberg, "Neural Word Embedding as Implicit Matrix Factorization" (2014).
        """
        counts = self._counts(rows)
        smooth_N = self.weights_N**0.75
        row_E = np.repeat(np.arange(rows.start, rows.stop), np.diff(counts.indptr))
        chance_E = self.weights_N[row_E] * (smooth_N / smooth_N.sum())[counts.indices]
        counts.data = np.maximum(np.log(counts.data / chance_E), 0)
        counts.eliminate_zeros()
        return counts

    def _counts(self, rows: range) -> Sparse:
        left, right, weight = list[IntArray](), list[IntArray](), list[Doubles]()
        for items_E, users_E in self.events:
            (inside_E,) = ((items_E >= rows.start) & (items_E < rows.stop)).nonzero()
            for gap in (*range(1, self.window + 1), *range(-1, -self.window - 1, -1)):
                other_E = inside_E + gap
                real_E = (other_E >= 0) & (other_E < len(items_E))
                from_P, to_P = inside_E[real_E], other_E[real_E]
                same_P = users_E[from_P] == users_E[to_P]
                left.append(items_E[from_P[same_P]] - rows.start)
                right.append(items_E[to_P[same_P]])
                weight.append(np.full(int(same_P.sum()), 1 / abs(gap)))
        shape = (len(rows), len(self.weights_N))
        entries = tuple(np.concatenate(parts) for parts in (weight, left, right))
        return sparse.csr_matrix((entries[0], (entries[1], entries[2])), shape=shape)


class BlocksOnDisk:
    """Blocks of a matrix in a folder, memory-mapped when they are read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starts: list[int] = []

    def add(self, block: Block) -> npt.NDArray[np.bool_]:
        """Store a block, values in single precision; returns which of its rows (R,) have entries."""
        rows_RN = block.rows_RN
        entries = (rows_RN.data.astype(np.float32), rows_RN.indices, rows_RN.indptr)
        write_matrix(sparse.csr_matrix(entries, rows_RN.shape), self._place(block.start))
        self._starts.append(block.start)
        self._items = rows_RN.shape[1]
        return np.diff(rows_RN.indptr) > 0

    def __iter__(self) -> Iterator[Block]:
        for start in self._starts:
            yield Block(start, map_matrix(self._place(start), self._items))

    def _place(self, start: int) -> Path:
        return self._folder / str(start)
