"""Published semantic IDs: read from a column of the item table, with collisions resolved at the last level."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from genrec.errors import InputError
from genrec.sid.codes import codes_option
from genrec.sid.prefixes import prefix_codes, prefix_numbers, refuse_full
from genrec.sid.vectors import Ints

NUMBER = re.compile(r"\d+")


def published_codes(items: pa.Table, column: str, level_sizes: Sequence[int]) -> Ints:
    """Codes (N, L) int32 from a column of lists of integers, or of strings with one number each such as ``<a_236>``.

    Raises:
        InputError: no such column, an item without SID, another number of levels, or a code out of range.
    """
    if column not in items.column_names:
        lists = [field.name for field in items.schema if pa.types.is_list(field.type) and field.name != "categories"]
        raise InputError(
            f"sid.column={column} is no column of the item table; its columns of lists are {lists}; "
            "name one of them, or choose another sid.quantizer"
        )
    values = items[column].to_pylist()
    try:
        rows = [[_code(part) for part in value] if value else [] for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"item column '{column}' must hold lists of integers or of strings like '<a_236>': {error}"
        ) from None
    wrong = [item for item, row in enumerate(rows) if len(row) != len(level_sizes)]
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(rows)} items have no SID of {len(level_sizes)} codes in '{column}' "
            f"(item {wrong[0]}: {values[wrong[0]]}); set sid.levels to what the column holds, or complete it"
        )
    codes_NL = np.array(rows, np.int64)
    for level, size in enumerate(level_sizes):
        low, high = int(codes_NL[:, level].min()), int(codes_NL[:, level].max())
        if low < 0 or high >= size:
            equal = len(set(level_sizes)) == 1
            enough = [max(high + 1, size) if equal or at == level else other for at, other in enumerate(level_sizes)]
            raise InputError(
                f"'{column}': got codes {low}…{high} at level {level + 1}, wanted 0…{size - 1}; "
                f"set sid.codebook_size={codes_option(enough)}"
            )
    return codes_NL.astype(np.int32)


def resolve_published(codes_NL: Ints, level_sizes: Sequence[int]) -> Ints:
    """Distinct codes (N, L) int32 from codes (N, L): of the items that share a SID the first keeps it.

    Each other one gets the lowest free last code of its prefix or, if there is none, the lowest free SID of all: there
    are no vectors that could tell which is nearest.

    Raises:
        InputError: more items than SIDs.
    """
    refuse_full(len(codes_NL), level_sizes)
    number_N = prefix_numbers(codes_NL, level_sizes)
    _, first = np.unique(number_N, return_index=True)
    taken = set(number_N.tolist())
    lowest: dict[int, int] = {}
    anywhere, room = 0, level_sizes[-1]
    for item in np.setdiff1d(np.arange(len(number_N)), first).tolist():
        start = int(number_N[item]) // room * room
        free = next((sid for sid in range(lowest.get(start, start), start + room) if sid not in taken), None)
        lowest[start] = start + room if free is None else free + 1
        if free is None:
            free = anywhere = next(sid for sid in range(anywhere, len(taken) + 1) if sid not in taken)
        number_N[item] = free
        taken.add(free)
    return prefix_codes(number_N, level_sizes)


def _code(part: Any) -> int:
    if isinstance(part, str):
        numbers = NUMBER.findall(part)
        if len(numbers) != 1:
            raise ValueError(f"got {len(numbers)} numbers in {part!r}, wanted one")
        return int(numbers[0])
    return int(part)
