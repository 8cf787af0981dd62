"""Windows of whole sequences, as places in flat arrays: no Python object for a user, a window or an item.

Letters: E events of all users, U users of one table, W windows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.data.arrow import one_array, pc
from genrec.errors import InputError
from genrec.metrics import IntArray

TRAIN = 1
"""The split code of a position whose item is a training target (``sequences`` table)."""

NO_TARGET = "got sequences without a training target; check data.split and data.filters"


@dataclass(frozen=True)
class Windows:
    """All windows: W parts of E events, those of users with a training target.

    ``items_E``; ``scored_E``: whether the item is a training target; ``start_W``, ``length_W``: a window's events;
    ``fresh_W``: the event of the window from which on targets are scored, since the window before scored the others;
    ``targets_W``: scored items; ``user_W``: row of ``users``, the ids. With context ``event_E`` is an index into
    ``names``, -1 where the type is unknown, and ``time_E`` the time.
    """

    items_E: NDArray[np.int32]
    scored_E: NDArray[np.bool_]
    start_W: IntArray
    length_W: IntArray
    fresh_W: IntArray
    targets_W: IntArray
    user_W: IntArray
    users: pa.Array
    names: tuple[str, ...] = ()
    event_E: NDArray[np.int32] | None = None
    time_E: NDArray[np.int64] | None = None


def cut_windows(sequences: Iterable[pa.Table], history: int, *, with_context: bool) -> Windows:
    """The windows of all sequences; see ``DenseExamples``.

    Args:
        sequences: tables of users with ``items`` and ``split``; ``user_id`` where it is known; with context ``events``
            and ``times``.

    Raises:
        InputError: no training target.
    """
    names: dict[str, int] = {}
    parts, events, users = list[Windows](), 0, 0
    for table in sequences:
        part = _cut(table, history, names if with_context else None)
        parts.append(replace(part, start_W=part.start_W + events, user_W=part.user_W + users))
        events, users = events + len(part.items_E), users + len(part.users)
    if not any(len(part.start_W) for part in parts):
        raise InputError(NO_TARGET)
    return replace(_joined(parts), names=tuple(names))


def count_windows(table: pa.Table, history: int) -> int:
    """The number of windows of the users in a table with ``items`` and ``split``."""
    return len(_cut(table, history, None).start_W)


def _cut(table: pa.Table, history: int, names: dict[str, int] | None) -> Windows:
    items_E, length_U = _flat(table, "items")
    scored_E = _flat(table, "split")[0] == TRAIN
    begin_U = np.cumsum(length_U) - length_U
    scored_E[begin_U[length_U > 0]] = False
    end_U = _after_last_target(scored_E, begin_U, length_U)
    trained_U = np.flatnonzero(end_U)
    start_W, room_W, user_W, place_W = _places(end_U[trained_U], history)
    length_W = np.minimum(room_W, 2 * history + 1)
    fresh_W = np.where(place_W > 0, history + 1, 0)
    start_W = start_W + begin_U[trained_U][user_W]
    before_E = np.append(0, np.cumsum(scored_E))
    targets_W = before_E[start_W + length_W] - before_E[start_W + np.minimum(fresh_W, length_W)]
    full_W = targets_W > 0
    small = (one_W[full_W].astype(np.int32) for one_W in (length_W, fresh_W, targets_W, trained_U[user_W]))
    windows = Windows(np.asarray(items_E, dtype=np.int32), scored_E, start_W[full_W], *small, users=_users(table))
    if names is None:
        return windows
    return replace(windows, event_E=_event_numbers(table, length_U, names), time_E=_flat(table, "times")[0])


def _after_last_target(scored_E: NDArray[np.bool_], begin_U: IntArray, length_U: IntArray) -> IntArray:
    """The number of events (U,) of each user up to the last target; 0 without one."""
    user_E = np.repeat(np.arange(len(length_U)), length_U)
    end_U = np.zeros(len(length_U), np.int64)
    (at_T,) = scored_E.nonzero()
    end_U[user_E[at_T]] = at_T + 1 - begin_U[user_E[at_T]]  # positions ascend, so the last one stays
    return end_U


def _places(end_U: IntArray, history: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Of each window: its first event, the events from there on, its user, and its number among the user's windows."""
    count_U = 1 + np.maximum(0, -((2 * history + 1 - end_U) // history))
    user_W = np.repeat(np.arange(len(end_U)), count_U)
    place_W = np.arange(len(user_W)) - np.repeat(np.cumsum(count_U) - count_U, count_U)
    start_W = place_W * history
    return start_W, end_U[user_W] - start_W, user_W, place_W


def _users(table: pa.Table) -> pa.Array:
    if "user_id" not in table.column_names:
        return pa.array([str(row) for row in range(table.num_rows)], pa.large_string())
    users = one_array(table["user_id"])
    return users.cast(pa.large_string()) if pa.types.is_string(users.type) else users


def _event_numbers(table: pa.Table, length_U: IntArray, names: dict[str, int]) -> NDArray[np.int32]:
    """Numbers (E,) of the event types in ``names``, to which new types are added; -1: unknown."""
    column = table["events"]
    coded = cast("pa.DictionaryArray", one_array(pc.list_flatten(column)).dictionary_encode())
    numbers = [names.setdefault(name, len(names)) for name in coded.dictionary.to_pylist()]
    known_E = np.repeat(column.is_valid().to_numpy(), length_U)
    number_E = np.full(len(known_E), -1, np.int32)
    number_E[known_E] = np.array([*numbers, -1], np.int32)[pc.fill_null(coded.indices, -1).to_numpy()]
    return number_E


def _flat(table: pa.Table, name: str) -> tuple[NDArray[np.generic], IntArray]:
    """The values of a list column, and the length of each row."""
    values = one_array(pc.list_flatten(table[name])).to_numpy(zero_copy_only=False)
    return values, pc.list_value_length(table[name]).to_numpy().astype(np.int64)


def _joined(parts: list[Windows]) -> Windows:
    def whole(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts])

    arrays = {name: whole(name) for name in ("items_E", "scored_E", "start_W", "length_W", "fresh_W", "targets_W")}
    context = {name: whole(name) for name in ("event_E", "time_E") if getattr(parts[0], name) is not None}
    # In one piece: Arrow would join all pieces again in every ``take``, which is one per batch.
    users = one_array(pa.chunked_array([part.users for part in parts]).unify_dictionaries())
    return Windows(**arrays, user_W=whole("user_W"), users=users, **context)  # pyright: ignore[reportArgumentType]
