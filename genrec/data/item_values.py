"""What an item is worth by a column of the item table, such as its price."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.data.columns import CATALOG
from genrec.errors import InputError


def item_values(items: pa.Table, column: str) -> NDArray[np.float64]:
    """The numbers in ``column`` of the item table, (N,); all 1 if it is ''.

    Raises:
        InputError: there is no such column of numbers, or a number is missing, negative or infinite.
    """
    if not column:
        return np.ones(items.num_rows)
    numbers = [field.name for field in items.schema if field.name not in CATALOG.names and _is_number(field.type)]
    if column not in numbers:
        known = ", ".join(name for name in numbers if name not in ("item", "first_seen")) or "none"
        raise InputError(
            f"rewards.settings.value_column={column}: the item table has no such column of numbers, those that it has: "
            f"{known}; name one of them, or leave it empty"
        )
    value_N = np.array([np.nan if value is None else float(value) for value in items[column].to_pylist()])
    if (wrong := np.flatnonzero(~(np.isfinite(value_N) & (value_N >= 0)))).size:
        examples = ", ".join(f"{items['id'][int(row)].as_py()}: {items[column][int(row)].as_py()}" for row in wrong[:3])
        raise InputError(
            f"rewards.settings.value_column={column}: {len(wrong)} of {len(value_N)} items have no value or a negative "
            f"one, e.g. {examples}; wanted a number from 0 for every item"
        )
    return value_N


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
