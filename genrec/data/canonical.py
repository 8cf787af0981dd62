"""Tables of any source converted to the canonical columns: types and values, with errors that name the column."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa

from genrec.data.arrow import pc
from genrec.data.columns import CATALOG, LOG, is_listed, is_text
from genrec.data.tables import ITEMS, SPLIT_CODES
from genrec.errors import InputError

LOGGER = logging.getLogger(__name__)

Unit = Literal["auto", "s", "ms", "us", "ns"]
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
LATEST = 10**11
"""Epoch seconds of the year 5138. By the rule of ``time_unit=auto`` larger numbers are milliseconds, those from
1000 times as much on microseconds, and so on."""


def canonical_log(table: pa.Table, found: Mapping[str, str], where: str, unit: Unit = "auto") -> pa.Table:
    """``table`` in the schema ``LOG``; a column that it does not have is null.

    Args:
        found: canonical column -> column of ``table``; where: the file, for messages; unit: of numeric timestamps.

    Raises:
        InputError: missing ids, a negative or NaN timestamp, text that is no number or time, or an unknown split name.
    """
    columns: list[pa.ChunkedArray | pa.Array] = []
    for field in LOG:
        if field.name not in found:
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            columns.append(_converted(table[found[field.name]], field.name, found[field.name], where, unit))
    log = pa.table(columns, schema=LOG)
    for name in ("user_id", "item_id"):
        if log[name].null_count:
            raise InputError(
                f"{where}: column '{found.get(name, name)}' has {log[name].null_count} nulls or empty strings in "
                f"{log.num_rows} rows; every interaction needs a user and an item"
            )
    _refuse_unknown_splits(log["split"], where)
    return log


def canonical_items(table: pa.Table, found: Mapping[str, str], where: str) -> pa.Table:
    """``table`` in the schema ``CATALOG`` ('' and [] for missing values), then its other columns.

    Raises:
        InputError: an id is missing, or a value does not fit its column.
    """
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    for field in CATALOG:
        blank = pa.scalar([] if pa.types.is_list(field.type) else "", field.type)
        if field.name not in found:
            columns[field.name] = pa.repeat(blank, table.num_rows)
            continue
        values = _converted(table[found[field.name]], field.name, found[field.name], where)
        if field.name == "id" and values.null_count:
            raise InputError(
                f"{where}: column '{found['id']}' has {values.null_count} nulls or empty strings; "
                "every item needs an id"
            )
        columns[field.name] = values.fill_null(blank)
    used = {*found.values(), *ITEMS.names}
    extra = {name: table[name] for name in table.column_names if name not in used}
    if "price" in extra and is_text(extra["price"].type):
        extra["price"] = _converted(extra["price"], "value", "price", where)
    items = pa.table({**columns, **extra})
    try:
        items.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: an item column cannot be used: {error}; wanted UTF-8 text") from None
    return items


def paths(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Category paths as list<string>, without empty names: lists as they are, the first of nested lists.

    A string is read as a list if it is one of JSON or Python, else it is split at ``>`` or ``|``.
    """
    kind = values.type
    if is_listed(kind):
        if is_listed(kind.value_type):
            rows = [next(iter(row or []), None) for row in values.to_pylist()]
            values = pa.chunked_array([pa.array(rows, pa.list_(kind.value_type.value_type))])
        names = values.cast(pa.list_(pa.string())).to_pylist()
    else:
        names = [_split(text) for text in _text(values).to_pylist()]
    rows = [[name for name in path or [] if name and name.strip()] for path in names]
    return pa.chunked_array([pa.array(rows, pa.list_(pa.string()))])


def _converted(values: pa.ChunkedArray, name: str, column: str, where: str, unit: Unit = "auto") -> pa.ChunkedArray:
    """One column in its canonical type; every error of Arrow becomes one that names the file and the column."""
    kind = values.type
    try:
        if name == "categories":
            found = paths(_plain(values))
        elif name == "timestamp":
            found = _seconds(_plain(values), unit, where, column)
        elif name == "position":
            found = _whole(_plain(values))
        elif name == "value":
            found = _float32(_plain(values))
        else:
            found = _text(_plain(values))
        found.validate(full=True)
    except InputError:
        raise
    except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        wanted = {"timestamp": "epoch seconds or ISO 8601", "position": "whole numbers", "value": "numbers"}
        first = str(error).splitlines()[0][:200]
        raise InputError(
            f"{where}: got column '{column}' of type {kind} with values that are not "
            f"{wanted.get(name, 'UTF-8 text')} ({first}); correct the column, or leave it out"
        ) from None
    return found


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _plain(values.cast(kind.value_type))
    return values


def _text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """As strings; an empty one is null."""
    text = values.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _numbers(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as int64 if all of it is whole numbers, else as float64; other types as they are."""
    if not is_text(values.type):
        return values
    text = pc.utf8_trim_whitespace(_text(values))
    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:
        return text.cast(pa.float64())


def _whole(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return _numbers(values).cast(pa.int64())


def _float32(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """As float32, rounded; NaN is null."""
    wide = _numbers(values).cast(pa.float64(), safe=False)
    wide = pc.if_else(pc.is_nan(wide), pa.scalar(None, pa.float64()), wide)
    large = pc.max(pc.abs(wide)).as_py()
    if large is not None and large > float(np.finfo(np.float32).max):
        raise ValueError(f"{large} is too large")
    return wide.cast(pa.float32(), safe=False)


def _seconds(values: pa.ChunkedArray, unit: Unit, where: str, column: str) -> pa.ChunkedArray:
    """Epoch seconds: of a time type by its unit, of numbers by ``unit``, of text as numbers or ISO 8601."""
    if is_text(values.type):
        values = _times(values)
    kind = values.type
    if pa.types.is_date32(kind):
        values = pc.multiply_checked(values.cast(pa.int32()).cast(pa.int64()), 86400)
        unit = "s"
    elif pa.types.is_date64(kind) or pa.types.is_timestamp(kind):
        values, unit = values.cast(pa.int64()), kind.unit if pa.types.is_timestamp(kind) else "ms"
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = values.cast(pa.float64())
        broken = pc.sum(pc.invert(pc.is_finite(values))).as_py() or 0
        if broken:
            raise InputError(
                f"{where}: got {broken} NaN or infinite timestamps in column '{column}', wanted epoch seconds"
            )
        values = pc.floor(values).cast(pa.int64())
    values = values.cast(pa.int64())
    if unit == "auto" and (days := _days(values)) is not None:
        values, unit = days, "s"
        _tell_days(where, column)
    low, high = (pc.min_max(values)[name].as_py() for name in ("min", "max"))
    if low is not None and low < 0:
        raise InputError(
            f"{where}: got negative timestamps in column '{column}', e.g. {low}, wanted times from 1970 on (>= 0)"
        )
    if unit == "auto":
        unit = _unit_of(values, where, column)
    if high is not None and high // PER_SECOND[unit] >= LATEST:
        raise InputError(
            f"{where}: got timestamps like {high} in column '{column}', which in {unit} are after the year 5138; "
            "set data.time_unit to their unit, or correct them"
        )
    return pc.divide(values, PER_SECOND[unit])


def _days(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Epoch seconds of numbers such as 20240115, if all are days: as seconds they would be of August 1970."""
    bounds = pc.min_max(values).as_py()
    if bounds["min"] is None or not 19000101 <= bounds["min"] <= bounds["max"] <= 21001231:
        return None
    try:
        return pc.strptime(values.cast(pa.string()), format="%Y%m%d", unit="s").cast(pa.int64())
    except pa.ArrowInvalid:
        return None


@cache
def _tell_days(where: str, column: str) -> None:
    LOGGER.warning(
        f"{where}: column '{column}' is read as days YYYYMMDD; set data.time_unit=s if they are epoch seconds"
    )


def _times(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as numbers if all of it is numbers, else as ISO 8601, in UTC where no zone is given."""
    try:
        return _numbers(text)
    except pa.ArrowInvalid:
        plain = pc.utf8_trim_whitespace(_text(text))
    zoned = bool(pc.any(pc.match_substring_regex(plain, r"(Z|[+-]\d\d:?\d\d)$")).as_py())
    try:
        return plain.cast(pa.timestamp("ns", "UTC" if zoned else None))
    except pa.ArrowInvalid:
        _refuse_mixed(plain)
        raise


def _refuse_mixed(text: pa.ChunkedArray) -> None:
    """Raise ValueError for numbers beside other text, and name one that is none: Arrow names a number."""
    is_number = pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
    numbers, others = text.filter(is_number), text.filter(pc.invert(is_number))
    if len(numbers) and len(others):
        raise ValueError(f"{len(numbers)} numbers, such as '{numbers[0]}', and '{others[0]}'")


def _unit_of(values: pa.ChunkedArray, where: str, column: str) -> Unit:
    """The unit of epoch times by their size; InputError if the sizes do not agree (0 fits every unit)."""
    bounds = pc.min_max(pc.filter(values, pc.greater(values, 0))).as_py()
    if bounds["max"] is None:
        return "s"
    low, high = (next(unit for unit in PER_SECOND if time < LATEST * PER_SECOND[unit] or unit == "ns")
                 for time in (bounds["min"], bounds["max"]))  # fmt: skip
    if low != high:
        raise InputError(
            f"{where}: got timestamps in column '{column}' from {bounds['min']} (in {low}) to "
            f"{bounds['max']} (in {high}), wanted one unit; correct them, or name the unit with data.time_unit=s, ms, …"
        )
    if high != "s":
        _tell_unit(where, column, high)
    return cast("Unit", high)


@cache
def _tell_unit(where: str, column: str, unit: str) -> None:
    LOGGER.warning(
        f"{where}: column '{column}' is read as epoch times in {unit}, because its numbers are too large for "
        "seconds; set data.time_unit if that is wrong"
    )


def _split(text: str | None) -> list[str]:
    if not text:
        return []
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                names: Any = parse(text)
                return [str(name) for name in names if name is not None]
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return [name.strip() for name in text.replace("|", ">").split(">")]


def _refuse_unknown_splits(splits: pa.ChunkedArray, where: str) -> None:
    names = pc.unique(splits.drop_null()).to_pylist()
    unknown = [name for name in names if name not in SPLIT_CODES]
    if unknown:
        raise InputError(f"{where}: got unknown split names {unknown[:5]}, wanted some of {', '.join(SPLIT_CODES)}")
