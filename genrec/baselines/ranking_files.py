"""Rankings on disk: one Parquet file, a list of item rows for each query, best first."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.errors import InputError
from genrec.metrics import IntArray

RANKING = "ranking.parquet"
"""What a ranking's file is called."""


def write_ranking(ranked_QK: IntArray, file: Path) -> None:
    """Write the rankings (Q, K), -1 for no item."""
    flat = pa.array(ranked_QK.astype("int32").ravel())
    pq.write_table(pa.table({"items": pa.FixedSizeListArray.from_arrays(flat, ranked_QK.shape[1])}), file)


def read_ranking(file: Path, queries: int) -> IntArray:
    """The rankings (Q, K) that ``write_ranking`` left.

    Raises:
        InputError: they are not of this number of queries.
    """
    column = pq.read_table(file)["items"].combine_chunks()
    if len(column) != queries:
        raise InputError(f"{file}: got rankings of {len(column)} queries, wanted {queries}; delete it and run again")
    return column.flatten().to_numpy().astype("int64").reshape(queries, -1)
