"""From a source's columns to the canonical ones: names, types and values, each refusal naming the column.

``LOG`` is what every source's log becomes, ``CATALOG`` what its item table becomes (extra columns stay).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from genrec.data.arrow import pc
from genrec.data.tables import ITEMS, SPLIT_CODES
from genrec.errors import InputError

LOG = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.int64()),
        ("position", pa.int64()),
        ("event", pa.string()),
        ("value", pa.float32()),
        ("split", pa.string()),
    ]
)
"""One interaction a row: ``timestamp`` in epoch seconds, ``position`` within the user; one of the two is needed."""

CATALOG = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("brand", pa.string()),
        ("categories", pa.list_(pa.string())),
    ]
)

LOG_ALIASES: dict[str, tuple[str, ...]] = {
    "user_id": ("user_id", "user", "household_id", "customer_id", "reviewerID"),
    "item_id": ("item_id", "item", "parent_asin", "asin", "product_id", "article_id"),
    "timestamp": ("timestamp", "time", "unixReviewTime", "datetime", "date"),
    "position": ("position",),
    "event": ("event", "event_type"),
    "value": ("value", "rating", "overall", "amount"),
    "split": ("split",),
}
CATALOG_ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("item_id", "id", "item", "parent_asin", "asin", "product_id", "article_id"),
    "title": ("title", "name"),
    "description": ("description",),
    "brand": ("brand", "store"),
    "categories": ("categories", "category"),
}
LATEST = 10**11
"""Epoch seconds of the year 5138: an integer timestamp beyond it counts milliseconds or finer."""


def check_renames(columns: Mapping[str, str]) -> None:
    """Refuse (InputError) a ``data.columns`` key that is no canonical column."""
    known = sorted({*LOG_ALIASES, *CATALOG_ALIASES})
    for name in columns:
        if name not in known:
            raise InputError(f"data.columns.{name}: no such canonical column; known: {', '.join(known)}")


def find_log_columns(schema: pa.Schema, columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Canonical log column -> the file's column, for those that the file has.

    Raises InputError if users, items, or both time and position are missing, or a column has an unusable type.
    """
    found = _find(schema, LOG_ALIASES, columns, where)
    for name in ("user_id", "item_id"):
        _need(found, name, schema, LOG_ALIASES, where)
    if "timestamp" not in found and "position" not in found:
        raise InputError(
            f"{where}: neither a timestamp (epoch seconds) nor a position column; found {schema.names}. "
            "Name one with data.columns.timestamp=… or data.columns.position=…"
        )
    for name, column in found.items():
        _check_type(schema.field(column), name, where)
    return found


def find_catalog_columns(schema: pa.Schema, columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Canonical item column -> the file's column; InputError without an id, or with an unusable type."""
    renames = dict(columns)
    if "id" not in renames and columns.get("item_id") in schema.names:
        renames["id"] = columns["item_id"]
    found = _find(schema, CATALOG_ALIASES, renames, where)
    _need(found, "id", schema, CATALOG_ALIASES, where)
    for name, column in found.items():
        _check_type(schema.field(column), name, where)
    return found


def canonical_log(table: pa.Table, found: Mapping[str, str], where: str) -> pa.Table:
    """``table`` in the schema ``LOG``; null for columns that it lacks.

    Raises InputError for null ids, a negative, NaN or millisecond timestamp, or a split name that is unknown.
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
    """``table`` in the schema ``CATALOG`` (unknown text '' and []), then its other columns; InputError for null ids."""
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
    taken = {*found.values(), *ITEMS.names}
    extra = {name: table[name] for name in table.column_names if name not in taken}
    return pa.table({**columns, **extra})


def paths(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Category paths as list<string>: lists stay, of several paths the first, strings part at ``>`` or ``|``."""
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_list(kind.value_type):
            values = pa.chunked_array([[row[0] if row else [] for row in values.to_pylist()]], pa.list_(pa.string()))
    elif not pa.types.is_null(kind):
        parted = pc.split_pattern_regex(values.cast(pa.string()).fill_null(""), pattern=r"\s*[>|]\s*")
        rows = [[name for name in row if name] for row in parted.to_pylist()]
        values = pa.chunked_array([rows], pa.list_(pa.string()))
    return values.cast(pa.list_(pa.string())).fill_null(pa.scalar([], pa.list_(pa.string())))


def _find(
    schema: pa.Schema, aliases: Mapping[str, Sequence[str]], renames: Mapping[str, str], where: str
) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, others in aliases.items():
        if name in renames and renames[name] in schema.names:
            found[name] = renames[name]
        elif name in renames and name not in ("item_id", "id"):
            raise InputError(f"{where}: no column '{renames[name]}' (data.columns.{name}); found {schema.names}")
        else:
            column = next((other for other in others if other in schema.names), None)
            if column is not None:
                found[name] = column
    return found


def _need(
    found: Mapping[str, str], name: str, schema: pa.Schema, aliases: Mapping[str, Sequence[str]], where: str
) -> None:
    if name not in found:
        raise InputError(
            f"{where}: no column for '{name}' (looked for {', '.join(aliases[name])}); found {schema.names}. "
            f"Name it with data.columns.{name}=…"
        )


def _check_type(field: pa.Field, name: str, where: str) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    whole = pa.types.is_integer(kind)
    number = whole or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    wanted = {
        "user_id": (text or whole, "a string or an integer"),
        "item_id": (text or whole, "a string or an integer"),
        "id": (text or whole, "a string or an integer"),
        "timestamp": (number or pa.types.is_temporal(kind), "epoch seconds (a number), a timestamp or a date"),
        "position": (whole or pa.types.is_null(kind), "an integer"),
        "value": (number, "a number"),
        "categories": (text or listed, "a list of strings or a string"),
    }
    fits, what = wanted.get(name, (text, "a string"))
    if not fits:
        raise InputError(f"{where}: column '{field.name}' is {field.type}; '{name}' wants {what}")


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
                f"{where}: column '{column}' has {broken} NaN or infinite timestamps; epoch seconds wanted"
            )
        values = pc.floor(values).cast(pa.int64())
    values = values.cast(pa.int64())
    bounds = pc.min_max(values).as_py()
    if bounds["min"] is not None and bounds["min"] < 0:
        raise InputError(
            f"{where}: column '{column}' has negative timestamps, e.g. {bounds['min']}; epoch seconds (>= 0) wanted"
        )
    if bounds["max"] is not None and bounds["max"] >= LATEST:
        raise InputError(
            f"{where}: column '{column}' has timestamps like {bounds['max']}: milliseconds or finer; "
            "epoch seconds wanted (or a Parquet timestamp type)"
        )
    return values


def _refuse_unknown_splits(splits: pa.ChunkedArray, where: str) -> None:
    names = pc.unique(splits.drop_null()).to_pylist()
    unknown = [name for name in names if name not in SPLIT_CODES]
    if unknown:
        raise InputError(f"{where}: unknown split names {unknown[:5]}; known: {', '.join(SPLIT_CODES)}")
