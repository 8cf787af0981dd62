"""Tables of any source converted to the canonical columns: types and values, with errors that name the column."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from genrec.data.arrow import pc
from genrec.data.columns import CATALOG, LOG
from genrec.data.tables import ITEMS, SPLIT_CODES
from genrec.errors import InputError

LATEST = 10**11
"""Epoch seconds of the year 5138: larger integer timestamps are in milliseconds or finer units."""


def canonical_log(table: pa.Table, found: Mapping[str, str], where: str) -> pa.Table:
    """``table`` in the schema ``LOG``; a column that it does not have is null.

    Args:
        found: canonical column -> column of ``table``; where: the file, for messages.

    Raises:
        InputError: null ids, a negative, NaN or millisecond timestamp, or an unknown split name.
    """
    columns: list[pa.ChunkedArray | pa.Array] = []
    for field in LOG:
        if field.name not in found:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        values = _plain(table[found[field.name]])
        if field.name == "timestamp":
            values = _seconds(values, where, found[field.name])
        columns.append(values.cast(field.type))
    log = pa.table(columns, schema=LOG)
    for name in ("user_id", "item_id"):
        if log[name].null_count:
            raise InputError(
                f"{where}: column '{found.get(name, name)}' has {log[name].null_count} nulls in "
                f"{log.num_rows} rows; every interaction needs a user and an item"
            )
    _refuse_unknown_splits(log["split"], where)
    return log


def canonical_items(table: pa.Table, found: Mapping[str, str], where: str) -> pa.Table:
    """``table`` in the schema ``CATALOG`` ('' and [] for missing values), then its other columns.

    Raises:
        InputError: an id is null.
    """
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    for field in CATALOG:
        if field.name not in found:
            blank = [] if pa.types.is_list(field.type) else ""
            columns[field.name] = pa.repeat(pa.scalar(blank, field.type), table.num_rows)
            continue
        values = _plain(table[found[field.name]])
        if field.name == "id" and values.null_count:
            raise InputError(f"{where}: column '{found['id']}' has {values.null_count} nulls; every item needs an id")
        if field.name == "categories":
            columns["categories"] = paths(values)
        else:
            columns[field.name] = values.cast(pa.string()).fill_null("")
    used = {*found.values(), *ITEMS.names}
    extra = {name: table[name] for name in table.column_names if name not in used}
    return pa.table({**columns, **extra})


def paths(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Category paths as list<string>: lists as they are, the first of nested lists, strings split at ``>`` or ``|``."""
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_list(kind.value_type):
            values = pa.chunked_array([[row[0] if row else [] for row in values.to_pylist()]], pa.list_(pa.string()))
    elif not pa.types.is_null(kind):
        split = pc.split_pattern_regex(values.cast(pa.string()).fill_null(""), pattern=r"\s*[>|]\s*")
        rows = [[name for name in row if name] for row in split.to_pylist()]
        values = pa.chunked_array([rows], pa.list_(pa.string()))
    return values.cast(pa.list_(pa.string())).fill_null(pa.scalar([], pa.list_(pa.string())))


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _seconds(values: pa.ChunkedArray, where: str, column: str) -> pa.ChunkedArray:
    kind = values.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        values = pc.floor_temporal(values.cast(pa.timestamp("us")), unit="second").cast(pa.timestamp("s"))
        values = values.cast(pa.int64())
    elif pa.types.is_floating(kind):
        broken = pc.sum(pc.invert(pc.is_finite(values))).as_py() or 0
        if broken:
            raise InputError(
                f"{where}: got {broken} NaN or infinite timestamps in column '{column}', wanted epoch seconds"
            )
        values = pc.floor(values).cast(pa.int64())
    values = values.cast(pa.int64())
    bounds = pc.min_max(values).as_py()
    if bounds["min"] is not None and bounds["min"] < 0:
        raise InputError(
            f"{where}: got negative timestamps in column '{column}', e.g. {bounds['min']}, wanted epoch seconds (>= 0)"
        )
    if bounds["max"] is not None and bounds["max"] >= LATEST:
        raise InputError(
            f"{where}: got timestamps like {bounds['max']} in column '{column}', which are milliseconds or finer; "
            "wanted epoch seconds or a Parquet timestamp type"
        )
    return values


def _refuse_unknown_splits(splits: pa.ChunkedArray, where: str) -> None:
    names = pc.unique(splits.drop_null()).to_pylist()
    unknown = [name for name in names if name not in SPLIT_CODES]
    if unknown:
        raise InputError(f"{where}: got unknown split names {unknown[:5]}, wanted some of {', '.join(SPLIT_CODES)}")
