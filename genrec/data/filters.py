"""Filters of items and interactions, as pure functions on arrays: E events, U users, N items.

``prepare`` applies them in this order: item titles → time window → ``item_users`` → ``drop_duplicates`` →
``first_only`` → ``last_per_user`` → k-core. The k-core is last, so all remaining users and items have enough events.
Events are sorted by user, oldest first; ``user_E`` numbers users from 0 in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.config import Filters
from genrec.data.arrow import pc
from genrec.errors import InputError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def keep_titles(titles: pa.ChunkedArray, filters: Filters) -> Bools:
    """Which of N items to keep, (N,) bool: those with a title, if it is required, of at most ``title_words`` words."""
    text = pc.utf8_trim_whitespace(titles.fill_null(""))
    keep = np.ones(len(titles), bool)
    if filters.require_title:
        keep &= pc.greater(pc.utf8_length(text), 0).to_numpy()
    if filters.title_words:
        words = pc.list_value_length(pc.utf8_split_whitespace(text)).to_numpy()
        keep &= words <= filters.title_words
    return keep


def window(filters: Filters) -> tuple[int, int] | None:
    """The time window [start, end) in epoch seconds (UTC), or None if there is none.

    Raises:
        InputError: a date is not ISO 8601, or start is not before end.
    """
    if filters.start is None and filters.end is None:
        return None
    start = _epoch(filters.start, "start") if filters.start else 0
    end = _epoch(filters.end, "end") if filters.end else np.iinfo(np.int64).max
    if start >= end:
        raise InputError(f"data.filters.start={filters.start} is not before data.filters.end={filters.end}")
    return start, int(end)


def users_per_item(user_E: Ints, item_E: Ints, items: int) -> Ints:
    """The number of distinct users of each item, (N,) int64, from the users and items (E,) of events."""
    pairs = np.unique(user_E * items + item_E)
    return np.bincount(pairs % items, minlength=items).astype(np.int64)


def first_copies(events: pa.Table) -> Bools:
    """Which events are the first of those that are equal in user, item, time, position, event and value, (E,) bool."""
    same = events.group_by(["user", "item", "time", "position", "event", "value"]).aggregate([("order", "min")])
    return pc.is_in(events["order"], value_set=same["order_min"].combine_chunks()).to_numpy()


def first_of_pair(user_E: Ints, item_E: Ints, items: int) -> Bools:
    """Which events are the first of their user with their item, (E,) bool."""
    _, first = np.unique(user_E * items + item_E, return_index=True)
    keep = np.zeros(len(user_E), bool)
    keep[first] = True
    return keep


def last_of_user(user_E: Ints, count: int) -> Bools:
    """Which events are among the last ``count`` of their user, (E,) bool; a user's events must be adjacent."""
    _, starts, lengths = np.unique(user_E, return_index=True, return_counts=True)
    ends = np.repeat(starts + lengths, lengths)
    return ends - np.arange(len(user_E)) <= count


def core_events(user_E: Ints, item_E: Ints, alive_N: Bools, user_core: int) -> Bools:
    """Which events have an item in ``alive_N``, and a user with at least ``user_core`` such events, (E,) bool."""
    keep = alive_N[item_E]
    if user_core > 1 and len(user_E):
        counts = np.bincount(user_E[keep], minlength=int(user_E.max()) + 1)
        keep &= counts[user_E] >= user_core
    return keep


def k_core(read: Callable[[], Iterable[tuple[Ints, Ints]]], alive_N: Bools, user_core: int, item_core: int) -> Bools:
    """The items (N,) bool of the largest part of the log in which all users and items have enough events.

    ``alive_N`` are the items to start from. ``read`` yields (user_E, item_E) bucket by bucket, with each user in one
    bucket; it is called once per round, so the memory needed is that of the largest bucket and N counts.

    Source: Seidman, "Network structure and minimum degree" (1983).
    """
    alive = alive_N.copy()
    while item_core:
        counts = np.zeros(len(alive), np.int64)
        for user_E, item_E in read():
            keep = core_events(user_E, item_E, alive, user_core)
            counts += np.bincount(item_E[keep], minlength=len(alive))
        still = alive & (counts >= item_core)
        if (still == alive).all():
            break
        alive = still
    return alive


def _epoch(date: str, name: str) -> int:
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        raise InputError(f"data.filters.{name}={date!r} is not an ISO date such as 2016-10-01") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
