"""Codes on disk: one Parquet file per item shard before collisions are resolved, and the table of final SIDs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.files import write_parquet
from genrec.errors import InputError
from genrec.sid.vectors import Ints


def write_codes(codes_NL: Ints, start: int, path: Path) -> None:
    """Write codes (n, L) of items ``start``, ``start`` + 1, … as one shard file (``item``, ``codes``), atomically."""
    items = np.arange(start, start + len(codes_NL), dtype=np.int32)
    write_parquet(pa.table({"item": items, "codes": _lists(codes_NL)}), path)


def write_sids(ids: pa.ChunkedArray, codes_NL: Ints, path: Path) -> None:
    """Write the final SIDs (N, L): ``item`` (row), ``id`` (of the source), ``codes`` (coarse to fine), atomically."""
    items = np.arange(len(codes_NL), dtype=np.int32)
    write_parquet(pa.table({"item": items, "id": ids, "codes": _lists(codes_NL)}), path)


def read_codes(directory: Path, items: int, level_sizes: Sequence[int]) -> Ints:
    """The codes (N, L) int32 in all shard files of a directory.

    Raises:
        InputError: files are missing or out of order, items or levels are of another number, or a code is out of range.
    """
    files = sorted(directory.glob("part-*.parquet"))
    if not files:
        raise InputError(f"{directory}: found no part-*.parquet with codes; run `python -m workflows.assign` again")
    table = pa.concat_tables([pq.ParquetFile(file).read(["item", "codes"]) for file in files]).combine_chunks()
    rows, lists = table["item"].to_numpy(), table["codes"].combine_chunks()
    if not np.array_equal(rows, np.arange(items)):
        raise InputError(
            f"{directory}: got codes of {len(rows)} items, wanted those of items 0 … {items - 1}; assign again"
        )
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    if not np.array_equal(lengths, [len(level_sizes)]):
        raise InputError(f"{directory}: got SIDs of {lengths.tolist()} codes, wanted {len(level_sizes)}; assign again")
    codes_NL = flat.reshape(items, len(level_sizes)).astype(np.int32)
    low, high = codes_NL.min(axis=0), codes_NL.max(axis=0)
    if (low < 0).any() or (high >= np.array(level_sizes)).any():
        raise InputError(f"{directory}: got codes up to {high.tolist()} by level, wanted less than {list(level_sizes)}")
    return codes_NL


def codes_option(level_sizes: Sequence[int]) -> str:
    """The value of ``sid.codebook_size`` for these level sizes, as written on the command line.

    >>> codes_option((8, 8)), codes_option((8, 4))
    ('8', '[8,4]')
    """
    return str(level_sizes[0]) if len(set(level_sizes)) == 1 else f"[{','.join(map(str, level_sizes))}]"


def _lists(codes_NL: Ints) -> pa.ListArray:
    offsets = np.arange(0, codes_NL.size + 1, codes_NL.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes_NL.reshape(-1).astype(np.int32)))
