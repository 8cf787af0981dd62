"""Lists of successive rows that share their values.

The history of a user's next query is the history of the query before, without its oldest event where it is full, and
one event more. Stored one by one, H events are kept for each query. Here a row whose list goes on from the list before
adds one value, and is a view of the values up to it:

    row         history        values         view
    0           [3, 1]         3 1            [0:2]
    1           [3, 1, 4]      3 1 4          [0:3]
    2           [1, 4, 9]      3 1 4 9        [1:4]

What does not go on is stored whole, so any lists can be kept. R rows, E values that come, V values that are stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.data.arrow import one_array, pc

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class SharedLists:
    """List columns of a table, collected part by part. The lists of a row have equal lengths, or are null.

    Args:
        schema: of the columns; the first one is never null in a row.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._values: dict[str, list[pa.Array]] = {name: [] for name in schema.names}
        self._known: dict[str, list[Bools]] = {name: [] for name in schema.names}
        self._starts, self._lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        self._stored = 0

    def add(self, lists: pa.Table) -> None:
        """Add R rows."""
        values = {name: _flat(lists[name]) for name in self._schema.names}
        known = {name: lists[name].is_valid().to_numpy() for name in self._schema.names}
        lengths_R = pc.list_value_length(lists[self._schema.names[0]]).to_numpy().astype(np.int64)
        goes_on_R = (lengths_R > 0) & (lengths_R <= np.append(0, lengths_R)[:-1] + 1)
        for name, known_R in known.items():
            goes_on_R[1:] &= known_R[1:] == known_R[:-1]
            goes_on_R &= _repeats(_codes(values[name]), np.where(known_R, lengths_R, 0))
        kept_R = np.where(goes_on_R, 1, lengths_R)
        ends_R = np.cumsum(lengths_R)
        kept_E = np.arange(int(lengths_R.sum())) >= np.repeat(ends_R - kept_R, lengths_R)
        for name, known_R in known.items():
            known_E = np.repeat(known_R, lengths_R)
            stored = values[name].filter(pa.array(kept_E[known_E]))
            self._values[name].append(_with_nulls(stored, known_E[kept_E]))
            self._known[name].append(known_R)
        self._starts.append(self._stored + np.cumsum(kept_R) - lengths_R)
        self._lengths.append(lengths_R)
        self._stored += int(kept_R.sum())

    def columns(self) -> Iterator[tuple[str, pa.Array]]:
        """The columns as views into their values, which begin at the same places; a null row stays null."""
        starts, lengths = (pa.array(np.concatenate(parts)) for parts in (self._starts, self._lengths))
        for field in self._schema:
            known_R = np.concatenate([np.zeros(0, bool), *self._known[field.name]])
            if not known_R.any():
                yield field.name, pa.nulls(len(lengths), field.type)
                continue
            values = pa.chunked_array(self._values.pop(field.name)).unify_dictionaries().combine_chunks()
            mask = None if known_R.all() else pa.array(~known_R)
            yield field.name, pa.LargeListViewArray.from_arrays(starts, lengths, one_array(values), mask=mask)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """The values of a column of lists, strings as a dictionary."""
    values = one_array(pc.list_flatten(column))
    return values.dictionary_encode() if pa.types.is_string(values.type) else values


def _codes(values: pa.Array) -> NDArray[np.integer]:
    """Numbers that are equal where ``values`` are."""
    if isinstance(values, pa.DictionaryArray):
        return pc.fill_null(values.indices, -1).to_numpy(zero_copy_only=False)
    return values.to_numpy(zero_copy_only=False)


def _repeats(values_E: NDArray[np.integer], lengths_R: Ints) -> Bools:
    """Whether each list (R,), without its last value, is the end of the list before: value e is value e - length + 1.

    Only meant for lists that are at most one longer than the list before.
    """
    shift_E = np.repeat(lengths_R - 1, lengths_R)
    differs_E = values_E != values_E[np.maximum(np.arange(len(values_E)) - shift_E, 0)]
    ends_R = np.cumsum(lengths_R)
    differs_E[ends_R[lengths_R > 0] - 1] = False
    before_E = np.append(0, np.cumsum(differs_E))
    return before_E[ends_R] == before_E[ends_R - lengths_R]


def _with_nulls(values: pa.Array, known_V: Bools) -> pa.Array:
    """The ``values`` at the places that are known, null at the others: (V,)."""
    if known_V.all():
        return values
    return values.take(pa.array(np.cumsum(known_V) - 1, mask=~known_V))
