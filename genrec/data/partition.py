"""Partitioning of the log by user: each part of the log is streamed once, and all rows of a user get into one bucket.

``part-i/bucket-j.parquet`` holds part i's rows of bucket j; ``part-i/counts.json`` is written last and so marks the
part as complete. Memory: one batch, and up to ``FLUSH_ROWS`` rows that are not written yet.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genrec.data.arrow import pc
from genrec.data.files import write_json
from genrec.data.sources.source import Part, Source
from genrec.data.tables import SPLIT_CODES

FLUSH_ROWS = 1 << 20
"""Rows that are kept in memory before they are written."""
BUCKET = pa.schema(
    [
        ("user_id", pa.string()),
        ("item", pa.int32()),
        ("time", pa.int64()),
        ("position", pa.int64()),
        ("event", pa.string()),
        ("value", pa.float32()),
        ("split", pa.int8()),
        ("order", pa.int64()),
    ]
)
"""``item`` is a row of the source's item table; ``order`` is the row's position in the log (by part, then row)."""

COUNTS = ("rows", "unknown", "outside_window", "filtered_items", "kept", "no_time", "no_position", "no_split")
"""What is counted of each part: its rows, those removed by reason, those kept, and kept rows that lack a value."""


def buckets_of(user_ids: pa.ChunkedArray, buckets: int) -> NDArray[np.int64]:
    """The bucket (E,) int64 of each user id: CRC-32 modulo ``buckets``, the same on every machine."""
    coded = user_ids.combine_chunks().dictionary_encode()
    hashes = [zlib.crc32(name.encode()) for name in coded.dictionary.to_pylist()]
    return (np.array(hashes, np.int64) % buckets)[coded.indices.to_numpy()]


def partition_part(
    source: Source,
    part: Part,
    index: int,
    *,
    ids: pa.Array,
    keep_N: NDArray[np.bool_],
    window: tuple[int, int] | None,
    buckets: int,
    folder: Path,
) -> None:
    """Write part number ``index`` of the log into ``folder``, one file per bucket, and the counts of its rows.

    Rows are removed if their item is not in ``ids`` or not in ``keep_N`` (a mask of ``ids``), or if their time is known
    and outside ``window``.

    Raises:
        InputError: the source's reader finds a bad value.
    """
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    examples: list[str] = []
    with _BucketWriter(folder) as writer:
        for log in source.read(part):
            rows = pc.index_in(log["item_id"], value_set=ids)
            order = pa.array((index << 40) + counts["rows"] + np.arange(log.num_rows))
            item_E = rows.fill_null(-1).to_numpy()
            known_E, inside_E = item_E >= 0, _inside(log["timestamp"], window)
            keep_E = known_E & inside_E & keep_N[item_E]
            table = _bucket_table(log, rows, order).filter(pa.array(keep_E))
            writer.add(table, buckets_of(table["user_id"], buckets))
            counts.update(_counts(known_E, inside_E, table))
            if not known_E.all() and len(examples) < 3:
                examples += log["item_id"].filter(pa.array(~known_E)).slice(0, 3).to_pylist()
    write_json({**counts, "unknown_examples": examples[:3]}, folder / "counts.json")


def read_bucket(folder: Path, bucket: int, columns: list[str] | None = None) -> pa.Table:
    """All rows of one bucket, from all ``part-*`` of ``folder``, in log order (schema ``BUCKET``)."""
    files = sorted(folder.glob(f"part-*/bucket-{bucket:05d}.parquet"))
    empty = BUCKET if columns is None else pa.schema([BUCKET.field(name) for name in columns])
    return pa.concat_tables([empty.empty_table(), *(pq.ParquetFile(file).read(columns=columns) for file in files)])


def total_counts(folder: Path) -> dict[str, Any]:
    """The sums of the counts over all parts, and up to three ids of unknown items."""
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("part-*/counts.json"))]
    total: dict[str, Any] = {"unknown_examples": []}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    total["unknown_examples"] = total["unknown_examples"][:3]
    return total


def _counts(known_E: NDArray[np.bool_], inside_E: NDArray[np.bool_], table: pa.Table) -> dict[str, int]:
    """The ``COUNTS`` of one batch, of which ``table`` holds the kept rows."""
    eligible = int((known_E & inside_E).sum())
    return {
        "rows": len(known_E),
        "unknown": int((~known_E).sum()),
        "outside_window": int((known_E & ~inside_E).sum()),
        "filtered_items": eligible - table.num_rows,
        "kept": table.num_rows,
        "no_time": table["time"].null_count,
        "no_position": table["position"].null_count,
        "no_split": table["split"].null_count,
    }


def _inside(time: pa.ChunkedArray, window: tuple[int, int] | None) -> NDArray[np.bool_]:
    if window is None:
        return np.ones(len(time), bool)
    seconds = time.fill_null(window[0]).to_numpy()
    return (seconds >= window[0]) & (seconds < window[1])


def _bucket_table(log: pa.Table, rows: pa.ChunkedArray, order: pa.Array) -> pa.Table:
    names = pa.array(list(SPLIT_CODES), pa.string())
    split = pc.index_in(log["split"].combine_chunks(), value_set=names, skip_nulls=True).cast(pa.int8())
    columns = [log["user_id"], rows, log["timestamp"], log["position"], log["event"], log["value"], split, order]
    return pa.table(columns, schema=BUCKET)


class _BucketWriter:
    """Collects rows in memory until there are ``FLUSH_ROWS``, then appends them to one open file per bucket."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("bucket-*.parquet"):
            leftover.unlink()
        self._folder = folder
        self._files: dict[int, pq.ParquetWriter] = {}
        self._pending: list[tuple[pa.Table, NDArray[np.int64]]] = []
        self._rows = 0

    def __enter__(self) -> _BucketWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._flush()
        for file in self._files.values():
            file.close()

    def add(self, table: pa.Table, bucket_E: NDArray[np.int64]) -> None:
        self._pending.append((table, bucket_E))
        self._rows += table.num_rows
        if self._rows >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        for bucket, table in self._by_bucket():
            if bucket not in self._files:
                name = self._folder / f"bucket-{bucket:05d}.parquet"
                self._files[bucket] = pq.ParquetWriter(name, BUCKET, compression="zstd")
            self._files[bucket].write_table(table)
        self._pending, self._rows = [], 0

    def _by_bucket(self) -> Iterator[tuple[int, pa.Table]]:
        if not self._rows:
            return
        table = pa.concat_tables([rows for rows, _ in self._pending])
        bucket_E = np.concatenate([buckets for _, buckets in self._pending])
        order = np.argsort(bucket_E, kind="stable")
        table = table.take(pa.array(order))
        found, starts = np.unique(bucket_E[order], return_index=True)
        for bucket, start, end in zip(found, starts, [*starts[1:], len(order)], strict=True):
            yield int(bucket), table.slice(int(start), int(end) - int(start))
