"""The canonical columns of logs and item tables, and the search for them in a source's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

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
"""The log of every source, one interaction per row.

``timestamp`` is in epoch seconds, ``position`` numbers a user's events; one of the two is needed.
"""

CATALOG = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("brand", pa.string()),
        ("categories", pa.list_(pa.string())),
    ]
)
"""The item table of every source; extra columns follow these."""

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


def check_renames(columns: Mapping[str, str]) -> None:
    """Raise InputError for a key of ``data.columns`` that is not a canonical column."""
    known = sorted({*LOG_ALIASES, *CATALOG_ALIASES})
    for name in columns:
        if name not in known:
            raise InputError(f"data.columns.{name}: no such canonical column; choose from {', '.join(known)}")


def renames_that_count(columns: Mapping[str, str]) -> dict[str, str]:
    """``columns`` without names that are looked for first anyway: where these are found, they say nothing.

    ``id`` is not among them: a column ``item_id`` of the item table would come before it.
    """
    first = {name: others[0] for name, others in (*CATALOG_ALIASES.items(), *LOG_ALIASES.items())}
    return {name: column for name, column in columns.items() if first.get(name) != column}


def find_log_columns(schema: pa.Schema, columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Canonical log column -> the file's column, for the columns that the file has.

    Args:
        columns: ``data.columns``, the names that the user gave; where: the file, for messages.

    Raises:
        InputError: users, items, or both time and position are missing, or a column has a wrong type.
    """
    found = _find(schema, LOG_ALIASES, columns, where)
    for name in ("user_id", "item_id"):
        _require(found, name, schema, LOG_ALIASES, where)
    if "timestamp" not in found and "position" not in found:
        raise InputError(
            f"{where}: neither a timestamp (epoch seconds) nor a position column; got {schema.names}. "
            "Name one with data.columns.timestamp=… or data.columns.position=…"
        )
    for name, column in found.items():
        _check_type(schema.field(column), name, where)
    return found


def find_catalog_columns(schema: pa.Schema, columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Canonical item column -> the file's column, for the columns that the file has.

    Raises:
        InputError: the id is missing, or a column has a wrong type.
    """
    renames = dict(columns)
    if "id" not in renames and columns.get("item_id") in schema.names:
        renames["id"] = columns["item_id"]
    found = _find(schema, CATALOG_ALIASES, renames, where)
    _require(found, "id", schema, CATALOG_ALIASES, where)
    for name, column in found.items():
        _check_type(schema.field(column), name, where)
    return found


def _find(
    schema: pa.Schema, aliases: Mapping[str, Sequence[str]], renames: Mapping[str, str], where: str
) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, others in aliases.items():
        if name in renames and renames[name] in schema.names:
            found[name] = renames[name]
        elif name in renames:
            raise InputError(f"{where}: no column '{renames[name]}' (data.columns.{name}); got {schema.names}")
        else:
            column = next((other for other in others if other in schema.names), None)
            if column is not None:
                found[name] = column
    return found


def _require(
    found: Mapping[str, str], name: str, schema: pa.Schema, aliases: Mapping[str, Sequence[str]], where: str
) -> None:
    if name not in found:
        raise InputError(
            f"{where}: no column for '{name}'; got {schema.names}, wanted one of {', '.join(aliases[name])}. "
            f"Name it with data.columns.{name}=…"
        )


def _check_type(field: pa.Field, name: str, where: str) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    text, whole = is_text(kind), pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    number = whole or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    time = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    wanted = {
        "user_id": (text or whole, "a string or an integer"),
        "item_id": (text or whole, "a string or an integer"),
        "id": (text or whole, "a string or an integer"),
        "timestamp": (text or number or time, "an epoch time (a number), a timestamp or a date"),
        "position": (text or number, "an integer"),
        "value": (text or number, "a number"),
        "categories": (text or whole or is_listed(kind), "a list of strings or a string"),
    }
    fits, kinds = wanted.get(name, (text or whole, "a string"))
    if not fits:
        raise InputError(f"{where}: got column '{field.name}' of type {field.type}, wanted {kinds} for '{name}'")


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type can be read as strings: any string type, bytes (as UTF-8), or nulls."""
    types = pa.types
    string = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return string or binary or types.is_fixed_size_binary(kind) or types.is_null(kind)


def is_listed(kind: pa.DataType) -> bool:
    """Whether the type is one of Arrow's list types."""
    types = pa.types
    views = types.is_list_view(kind) or types.is_large_list_view(kind)
    return views or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
