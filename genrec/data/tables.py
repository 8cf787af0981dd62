"""The data directory that ``prepare`` writes: schemas and checks; ``genrec.data.readers`` reads it.

    items.parquet               one row per item; row i is item i everywhere in genrec
    sequences/part-*.parquet    one row per user, oldest event first; each user is in one part
    queries/{train,valid,test}/part-*.parquet   one row per query: predict the target from the history
    train_counts.parquet        train events of each item (``genrec.data.train_counts``)
    stats.json                  counts

Only these tables hold the ids of the source (strings); everything else uses item rows 0 … N - 1.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from genrec.data.arrow import pc
from genrec.errors import InputError
from genrec.types import NO_CONTEXT, HistoryContext, Query

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
SPLIT_CODES = {"first": 0, "train": 1, "valid": 2, "test": 3}
"""Codes of ``sequences.split``: the split of the query whose target is that event; 0 is never a target."""

ITEMS = pa.schema(
    [
        pa.field("item", pa.int32(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("description", pa.string(), nullable=False),
        pa.field("brand", pa.string(), nullable=False),
        pa.field("categories", pa.list_(pa.string()), nullable=False),
        pa.field("first_seen", pa.int64()),
    ]
)
"""``categories`` is a path, coarse to fine, and may be empty; ``first_seen`` is in epoch seconds. Unknown text is ''.

A source's extra columns follow these.
"""

SEQUENCES = pa.schema(
    [
        pa.field("user", pa.int64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("items", pa.list_(pa.int32()), nullable=False),
        pa.field("split", pa.list_(pa.int8()), nullable=False),
        pa.field("times", pa.list_(pa.int64()), nullable=False),
        pa.field("events", pa.list_(pa.string())),
        pa.field("values", pa.list_(pa.float32())),
    ]
)
"""``times`` never decrease; they are in epoch seconds, or positions if some time is not known."""

QUERIES = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("user", pa.int64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("history", pa.list_(pa.int32()), nullable=False),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("time", pa.int64()),
        pa.field("event", pa.string()),
    ]
)
"""``history`` is oldest first and never empty; ``time`` is that of the target, in epoch seconds, if it is known."""

QUERY_CONTEXT = pa.schema(
    [
        pa.field("events", pa.list_(pa.string())),
        pa.field("times", pa.list_(pa.int64())),
        pa.field("values", pa.list_(pa.float32())),
        pa.field("value", pa.float32()),
    ]
)
"""Further columns of queries: of the history, as in ``SEQUENCES``, and the target's ``value``; null where unknown."""


def to_queries(table: pa.Table) -> list[Query]:
    """Rows of a query table as ``Query`` objects, in row order."""
    columns = [table[name].to_pylist() for name in ("id", "user", "history", "target")]
    rows = zip(*columns, contexts(table), strict=True)
    return [Query(id_, user, tuple(history), target, context=of) for id_, user, history, target, of in rows]


def contexts(table: pa.Table) -> list[HistoryContext]:
    """What rows of a query table say besides items; nothing where the table lacks the columns."""
    if not {"events", "times", "event"} <= set(table.column_names):
        return [NO_CONTEXT] * table.num_rows
    columns = [table[name].to_pylist() for name in ("events", "times", "event")]
    return [
        HistoryContext(tuple(events or ()), tuple(times or ()), wanted)
        for events, times, wanted in zip(*columns, strict=True)
    ]


def target_events(queries: pa.Table) -> list[str | None]:
    """The event type of each query's target; empty where none is known."""
    events = queries["event"]
    return [] if events.null_count == len(events) else events.to_pylist()


def validate_items(table: pa.Table) -> None:
    """Raise InputError for an item table with wrong columns, no rows, rows out of order, or ids that occur twice."""
    require_columns(table, ITEMS, "items")
    if table.num_rows == 0:
        raise InputError("the item table is empty; wanted at least one item")
    rows = table["item"].to_numpy()
    if rows[0] != 0 or (rows[1:] - rows[:-1] != 1).any():
        raise InputError(
            "items.parquet: column 'item' must count 0, 1, 2, …: the file was reordered or filtered; prepare it again"
        )
    refuse_duplicate_ids(table["id"], "items.parquet", "id")


def validate_queries(table: pa.Table, items: int, max_history: int) -> None:
    """Raise InputError for queries with wrong columns, empty or too long histories, or items not in 0 … items - 1."""
    require_columns(table, QUERIES, "queries")
    lengths = pc.list_value_length(table["history"])
    if table.num_rows and not 1 <= pc.min(lengths).as_py() <= pc.max(lengths).as_py() <= max_history:
        raise InputError(
            f"queries: got histories of {pc.min_max(lengths).as_py()} items, wanted 1 to {max_history} items"
        )
    for name, rows in (("target", table["target"]), ("history", pc.list_flatten(table["history"]))):
        bounds = pc.min_max(rows).as_py()
        if table.num_rows and not 0 <= bounds["min"] <= bounds["max"] < items:
            raise InputError(f"queries: got item rows {bounds} in column '{name}', wanted 0 … {items - 1}")
    if pc.count_distinct(table["id"]).as_py() != table.num_rows:
        raise InputError("queries: some ids occur twice; each query must have its own")


def same_spelling(id_: str) -> str:
    """The id without what programs change by accident: spaces around it, leading zeros, ``.0`` at its end, and case.

    >>> same_spelling(" 007 ") == same_spelling("7.0")
    True
    """
    return id_.strip().removesuffix(".0").lstrip("0").casefold()


def refuse_duplicate_ids(ids: pa.ChunkedArray, where: str, column: str) -> None:
    """Raise InputError with examples if a value of ``ids`` occurs more than once."""
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    counts = pa.table({"id": ids}).group_by("id").aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    examples = ", ".join(repr(value) for value in twice["id"].slice(0, 3).to_pylist())
    raise InputError(
        f"{where}: {twice.num_rows} values of '{column}' occur more than once, e.g. {examples}; "
        "each item must have one row"
    )


def require_columns(table: pa.Table, schema: pa.Schema, where: str) -> None:
    """Raise InputError if a column of ``schema`` is missing in ``table``, or has another type there."""
    for field in schema:
        if field.name not in table.column_names:
            raise InputError(f"{where}: column '{field.name}' ({field.type}) is missing; found {table.column_names}")
        if not table.schema.field(field.name).type.equals(field.type):
            got = table.schema.field(field.name).type
            raise InputError(f"{where}: got column '{field.name}' of type {got}, wanted {field.type}")
