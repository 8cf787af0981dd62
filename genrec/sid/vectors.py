"""Item vectors on disk: one Parquet file per item shard, in item order, read by item row."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.files import write_parquet
from genrec.errors import InputError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class VectorFiles:
    """The ``part-*.parquet`` files of a directory as one (N, D) float32 array that is read by row range.

    Raises InputError if there are none.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = sorted(Path(directory).glob("part-*.parquet"))
        if not self._files:
            raise InputError(
                f"{directory}: found no part-*.parquet with vectors; run `python -m workflows.embed` first"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def require(self, items: int) -> None:
        """Raise InputError unless there are vectors of exactly this number of items."""
        if len(self) != items:
            raise InputError(
                f"{self._directory}: got vectors of {len(self)} items, wanted {items} as in the item table; embed again"
            )

    @cached_property
    def _starts(self) -> Longs:
        return np.cumsum([0] + [pq.read_metadata(file).num_rows for file in self._files])

    @cached_property
    def width(self) -> int:
        """D, the dimensions of a vector."""
        kind = pq.read_schema(self._files[0]).field("vector").type
        if not pa.types.is_fixed_size_list(kind):
            raise InputError(f"{self._files[0]}: got column 'vector' of type {kind}, wanted a fixed-size list of float")
        return kind.list_size

    def read(self, start: int = 0, stop: int | None = None) -> Floats:
        """Rows ``start`` … ``stop - 1`` as (n, D) float32; the array must not be written to.

        Raises:
            InputError: a file whose vectors have another width, or whose rows are not the items they should be.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        rows_ND = np.empty((max(stop - start, 0), self.width), np.float32)
        if start >= stop:
            return rows_ND
        touched = range(np.searchsorted(self._starts, start, "right") - 1, np.searchsorted(self._starts, stop))
        for number in touched:
            first, after = int(self._starts[number]), int(self._starts[number + 1])
            low, high = max(start, first), min(stop, after)
            part_ND = self._read_file(self._files[number], first)[low - first : high - first]
            if len(part_ND) == len(rows_ND):
                return part_ND
            rows_ND[low - start : high - start] = part_ND
        return rows_ND

    def _read_file(self, file: Path, first: int) -> Floats:
        table = pq.ParquetFile(file, memory_map=True).read(["item", "vector"]).combine_chunks()
        items = table["item"].to_numpy()
        if not np.array_equal(items, np.arange(first, first + len(items))):
            raise InputError(
                f"{file}: column 'item' must count {first}, {first + 1}, …: the file was changed; embed again"
            )
        flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if flat.size != len(items) * self.width:
            raise InputError(
                f"{file}: got vectors of width {flat.size / len(items):g}, wanted {self.width}; embed again"
            )
        return flat.reshape(len(items), self.width)


def write_vectors(vectors_ND: Floats, start: int, path: Path) -> None:
    """Write the vectors (n, D) of items ``start``, ``start`` + 1, … as one shard file, atomically.

    Without nulls, compression or small pages: embeddings hardly compress, and decoding them would take a third of the
    time of an assignment.
    """
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), vectors_ND.shape[1])
    schema = pa.schema([pa.field("item", pa.int32(), nullable=False), pa.field("vector", kind, nullable=False)])
    items = pa.array(np.arange(start, start + len(vectors_ND), dtype=np.int32))
    flat = pa.array(np.ascontiguousarray(vectors_ND, np.float32).reshape(-1))
    table = pa.table([items, pa.FixedSizeListArray.from_arrays(flat, type=kind)], schema=schema)
    write_parquet(table, path, compression="none", use_dictionary=False, write_statistics=False, data_page_size=2**26)


NEIGHBOURS = 10
"""Known items that stand for a new one."""
COSINES = 2**24
"""Cosines that are in memory at once (64 MiB)."""


def nearest_rows(known_ND: Floats, new_MD: Floats) -> Longs:
    """The ``NEIGHBOURS`` known items (M, ≤ 10) whose vectors have the largest cosines with each new one's."""
    known_ND, new_MD = unit_rows(known_ND), unit_rows(new_MD)
    block = max(1, COSINES // max(1, len(known_ND)))
    found = [_largest(new_MD[start : start + block] @ known_ND.T) for start in range(0, len(new_MD), block)]
    return np.concatenate(found) if found else np.empty((0, min(NEIGHBOURS, len(known_ND))), np.int64)


def _largest(cosine_BN: Floats) -> Longs:
    """The columns (B, ≤ 10) of the largest numbers of each row, largest first; the first of equals."""
    most = min(NEIGHBOURS, cosine_BN.shape[1])
    limit_B = np.partition(cosine_BN, -most, axis=1)[:, -most]
    found_BX = np.empty((len(cosine_BN), most), np.int64)
    for row, (cosine_N, limit) in enumerate(zip(cosine_BN, limit_B, strict=True)):
        columns = np.flatnonzero(cosine_N >= limit)
        found_BX[row] = columns[np.argsort(-cosine_N[columns], kind="stable")[:most]]
    return found_BX


def check_vectors(vectors_ND: Floats, start: int = 0) -> None:
    """Check that vectors (n, D) can be quantized; ``start`` is the item row of the first.

    Raises:
        InputError: a NaN, an infinity, or a vector of zeros; the message counts them and names the first items.
    """
    norm_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    for wrong_N, what in ((~np.isfinite(norm_N), "NaN or infinite values"), (norm_N == 0, "only zeros")):
        rows = np.flatnonzero(wrong_N) + start
        if len(rows):
            raise InputError(
                f"{len(rows)} of {len(vectors_ND)} item vectors hold {what} (items {rows[:5].tolist()}…); "
                "every item needs a finite, non-zero vector: look at the text of these items, then embed again"
            )


def unit_rows(vectors_ND: Floats, length: float = 1.0) -> Floats:
    """Each row of (N, D) scaled to Euclidean norm ``length``; a row of zeros is unchanged."""
    norm_N1 = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))[:, None]
    return np.multiply(vectors_ND, length / np.where(norm_N1 == 0, 1, norm_N1), dtype=np.float32, casting="same_kind")
