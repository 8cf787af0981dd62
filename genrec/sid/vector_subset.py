"""The vectors of some items in memory, where those of all items have no room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from genrec.sid.distributed.vector_stream import Reader
from genrec.sid.vectors import Floats, Longs

HELD_BYTES = 2**30
"""Bytes of vectors that are held at once."""


class InMemory:
    """Vectors (N, D) of all items, read by item row as those in files are."""

    def __init__(self, vectors_ND: Floats) -> None:
        self._vectors_ND = vectors_ND

    def __len__(self) -> int:
        return len(self._vectors_ND)

    @property
    def width(self) -> int:
        """D, the dimensions of a vector."""
        return self._vectors_ND.shape[1]

    def read(self, rows: range | Longs) -> Floats:
        """The vectors (n, D) of the items ``rows``."""
        return self._vectors_ND[np.asarray(rows)]


@dataclass(frozen=True)
class VectorSubset:
    """The vectors (R, D) of the items ``rows_R``, ascending."""

    rows_R: Longs
    vectors_RD: Floats

    @classmethod
    def read(cls, reader: Reader, rows: Longs) -> VectorSubset:
        """Hold the vectors of distinct items ``rows`` (R,), in any order; files are read once, from front to back."""
        rows_R = np.sort(rows)
        return cls(rows_R, reader.read(rows_R))

    def of(self, rows: Longs) -> Floats:
        """The vectors (X, D) of ``rows`` (X,), some of the held items, in this order."""
        return self.vectors_RD[np.searchsorted(self.rows_R, rows)]


def held_in_parts(reader: Reader, rows: Longs, chunk: int) -> Iterator[tuple[Longs, VectorSubset]]:
    """Distinct ``rows`` (R,) in parts of at most ``chunk``, each with vectors; successive parts are held together."""
    most = max(1, rows_that_fit(reader) // chunk) * chunk
    for first in range(0, len(rows), most):
        together = rows[first : first + most]
        held = VectorSubset.read(reader, together)
        for start in range(0, len(together), chunk):
            yield together[start : start + chunk], held


def packs_with_vectors(
    reader: Reader, packs: Sequence[Sequence[Longs]]
) -> Iterator[tuple[Sequence[Longs], VectorSubset]]:
    """Each pack (groups of rows, distinct over all packs) with its vectors; successive packs are held together."""
    first, most = 0, rows_that_fit(reader)
    sizes = np.cumsum([0, *(sum(len(group) for group in pack) for pack in packs)])
    while first < len(packs):
        after = max(first + 1, int(np.searchsorted(sizes, sizes[first] + most, side="right")) - 1)
        held = VectorSubset.read(reader, np.concatenate([group for pack in packs[first:after] for group in pack]))
        for pack in packs[first:after]:
            yield pack, held
        first = after


def rows_that_fit(reader: Reader) -> int:
    """Items whose vectors may be held at once; at least one."""
    return max(1, HELD_BYTES // (4 * reader.width))
