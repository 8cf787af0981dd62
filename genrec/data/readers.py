"""Reading the data directory (``genrec.data.tables`` describes it): tables, streams of tables, and train queries.

A log has far more events than users or items. So what holds all users or all queries in memory names the columns that
it needs, or reads a stream; Python lists are made of the rows of one batch alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genrec.data.shared_lists import SharedLists
from genrec.data.tables import ITEMS, QUERIES, QUERY_CONTEXT, SEQUENCES, Split, require_columns, validate_items
from genrec.errors import InputError
from genrec.metrics import IntArray

STREAM_ROWS = 1 << 15
"""Rows of a table of a stream at most."""

HISTORY_LISTS = ("history", "events", "times")
"""Columns of queries with an entry for each event of the history."""


def read_items(directory: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The item table (schema ``ITEMS``, then extra columns), or some ``columns`` of it, N rows in item order.

    Raises:
        InputError: a column is missing; or, of the whole table, it is not valid.
    """
    table = _read([Path(directory) / "items.parquet"], columns)
    if columns is None:
        validate_items(table)
    else:
        require_columns(table, _part_of(ITEMS, columns), "items")
    return table


def count_items(directory: Path) -> int:
    """N, the number of items."""
    return pq.read_metadata(_found(Path(directory) / "items.parquet")).num_rows


def read_item_rows(directory: Path, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Some ``columns`` of the items ``rows``, in this order; the table is read a part at a time."""
    order, parts, first = np.argsort(rows, kind="stable"), list[pa.Table](), 0
    with pq.ParquetFile(_found(Path(directory) / "items.parquet")) as file:
        for batch in file.iter_batches(STREAM_ROWS, columns=list(columns)):
            low, high = np.searchsorted(rows, (first, first + len(batch)), sorter=order)
            parts.append(pa.Table.from_batches([batch]).take(pa.array(rows[order[low:high]] - first)))
            first += len(batch)
    return pa.concat_tables(parts).take(pa.array(np.argsort(order)))


def read_sequences(directory: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All users' sequences (schema ``SEQUENCES``, or some ``columns`` of it), in file order."""
    table = _read(sequence_files(directory), columns)
    require_columns(table, _part_of(SEQUENCES, columns), "sequences")
    return table


def stream_sequences(directory: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some ``columns`` of the sequences, in file order, as tables of at most ``STREAM_ROWS`` users."""
    return _stream(sequence_files(directory), _part_of(SEQUENCES, columns), "sequences")


def stream_sequence_file(file: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The same of one file of ``sequence_files``."""
    return _stream([file], _part_of(SEQUENCES, columns), "sequences")


def read_queries(directory: Path, split: Split, columns: Sequence[str] | None = None) -> pa.Table:
    """All queries of one split (schema ``QUERIES``, then ``QUERY_CONTEXT``, or some ``columns``), in file order."""
    return _with_context(_read(query_files(directory, split), columns), split, columns)


def read_query_rows(directory: Path, split: Split, rows: range) -> pa.Table:
    """``read_queries`` of the ``rows`` alone, (R,); only the row groups that hold some of them are read."""
    parts, start = list[pa.Table](), 0
    for path in query_files(directory, split):
        if parts and start >= rows.stop:
            break
        with pq.ParquetFile(_found(path)) as file:
            parts.append(file.schema_arrow.empty_table())
            for group in range(file.metadata.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                first, last = max(rows.start, start), min(rows.stop, end)
                if first < last:
                    parts.append(file.read_row_group(group).slice(first - start, last - first))
                start = end
    return _with_context(pa.concat_tables(parts), split)


def _with_context(table: pa.Table, split: Split, columns: Sequence[str] | None = None) -> pa.Table:
    """Queries with every column that was asked for: null where an older ``prepare`` did not write it."""
    require_columns(table, _part_of(QUERIES, columns), f"queries/{split}")
    for field in QUERY_CONTEXT:
        if field.name not in table.column_names and (columns is None or field.name in columns):
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def count_train_queries(directory: Path) -> int:
    """The number of train queries, from what the files say of themselves."""
    return sum(pq.read_metadata(_found(file)).num_rows for file in query_files(directory, "train"))


def count_train_targets(directory: Path, items: int) -> IntArray:
    """How often each item is the target of a train query, (N,)."""
    counts_N = np.zeros(items, np.int64)
    for table in _stream(query_files(directory, "train"), _part_of(QUERIES, ["target"]), "queries/train"):
        counts_N += np.bincount(table["target"].to_numpy(), minlength=items)
    return counts_N


def read_train_queries(directory: Path, *, with_context: bool, rows_R: IntArray | None = None) -> pa.Table:
    """The train queries to learn from, in file order, in a small part of the memory that ``read_queries`` takes.

    Columns ``id``, ``user``, ``user_id``, ``history`` and ``target``; ``with_context`` also ``event``, and of the
    history ``events`` and ``times``. The lists are views into values that successive queries of a user share (see
    ``SharedLists``): they can be sliced, filtered and taken from, but Arrow cannot cast or write them.

    Args:
        rows_R: the numbers (R,) of the queries to keep, in order; None: all.
    """
    names = ["id", "user", "user_id", "history", "target"]
    names += ["event", "events", "times"] if with_context else []
    schema = _part_of(pa.schema([*QUERIES, *QUERY_CONTEXT]), names)
    lists = [name for name in HISTORY_LISTS if name in names]
    shared, parts, start = SharedLists(pa.schema([schema.field(name) for name in lists])), list[pa.Table](), 0
    for whole in _stream(query_files(directory, "train"), schema, "queries/train"):
        end = start + whole.num_rows
        table = (
            whole if rows_R is None else _taken(whole, rows_R[slice(*np.searchsorted(rows_R, (start, end)))] - start)
        )
        shared.add(table.select(lists))
        parts.append(table.drop_columns(lists))
        start = end
    flat = pa.concat_tables(parts).unify_dictionaries() if parts else schema.empty_table().drop_columns(lists)
    columns = {name: flat[name] for name in flat.column_names} | dict(shared.columns())
    return pa.table({name: columns[name] for name in names})


def _taken(table: pa.Table, rows_R: IntArray) -> pa.Table:
    """Some rows, with the ids of their users alone: a dictionary of a row group has those of all its users."""
    taken = table.take(rows_R)
    ids = taken["user_id"].cast(pa.string()).dictionary_encode()
    return taken.set_column(taken.column_names.index("user_id"), "user_id", ids)


def read_stats(directory: Path) -> dict[str, Any]:
    """The contents of ``stats.json``."""
    return json.loads((Path(directory) / "stats.json").read_text(encoding="utf-8"))


def sequence_files(directory: Path) -> list[Path]:
    """The sequence files, one per shard of users, in order; InputError if there are none."""
    return _parts(Path(directory) / "sequences")


def query_files(directory: Path, split: Split) -> list[Path]:
    """The query files of one split, one per shard of users, in order; InputError if there are none."""
    return _parts(Path(directory) / "queries" / split)


def _parts(folder: Path) -> list[Path]:
    files = sorted(folder.glob("part-*.parquet"))
    if not files:
        raise InputError(f"{folder}: found no part-*.parquet; run workflows.prepare first")
    return files


def _part_of(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([field for field in schema if field.name in columns])


def _read(files: list[Path], columns: Sequence[str] | None = None) -> pa.Table:
    chosen = None if columns is None else list(columns)
    return pa.concat_tables([pq.ParquetFile(_found(file)).read(columns=chosen) for file in files])


def _found(file: Path) -> Path:
    if not file.is_file():
        raise InputError(f"not found: {file}; run workflows.prepare first")
    return file


def _stream(files: list[Path], schema: pa.Schema, where: str) -> Iterator[pa.Table]:
    """The columns of ``schema`` of some files; ids of users come as dictionaries, nullable columns may be missing."""
    for path in files:
        with pq.ParquetFile(path, read_dictionary=["user_id"]) as file:
            found = [field for field in schema if not field.nullable or field.name in file.schema_arrow.names]
            require_columns(file.schema_arrow.empty_table(), _without_user_ids(pa.schema(found)), where)
            for batch in file.iter_batches(STREAM_ROWS, columns=[field.name for field in found]):
                table = pa.Table.from_batches([batch])
                for field in schema:
                    if field.name not in table.column_names:
                        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
                yield table


def _without_user_ids(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name != "user_id"])
