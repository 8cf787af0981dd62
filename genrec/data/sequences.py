"""One bucket of users: sort and filter its events, then write them as sequences and queries.

A bucket is in memory as a whole (``data.shards`` determines its size). All functions depend on one bucket and a few
arrays over the items only, so buckets are processed in parallel. E events, U users, N items, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genrec.config import Filters
from genrec.data.files import write_parquet
from genrec.data.filters import core_events, first_copies, first_of_pair, last_of_user
from genrec.data.leaks import wrong_queries
from genrec.data.splits import Codes, Cut, Ints, Samples, chronological, given, hash_ids, leave_one_out
from genrec.data.tables import QUERIES, QUERY_CONTEXT, SEQUENCES, SPLIT_CODES, SPLITS
from genrec.errors import InputError


def sort_events(bucket: pa.Table, by_position: bool) -> pa.Table:
    """The bucket's rows sorted by user, then position (or time), then log order; column ``user`` numbers users from 0.

    Raises:
        InputError: known times decrease along the positions of a user.
    """
    coded = bucket["user_id"].combine_chunks().dictionary_encode()
    ranks = np.argsort(np.argsort(np.array(coded.dictionary.to_pylist(), dtype=object)))
    user = ranks[coded.indices.to_numpy()].astype(np.int32)
    when = bucket["position" if by_position else "time"].to_numpy()
    order = np.lexsort((bucket["order"].to_numpy(), when, user))
    events = bucket.append_column("user", pa.array(user)).take(pa.array(order))
    if by_position:
        _refuse_times_going_back(events)
    return events


def filter_events(events: pa.Table, filters: Filters, alive_N: NDArray[np.bool_]) -> tuple[pa.Table, dict[str, int]]:
    """Apply ``item_users`` (the mask ``alive_N``), ``drop_duplicates``, ``first_only`` and ``last_per_user``.

    Returns:
        The events, and the number after each filter, after ``duplicates``: how many are a copy of an earlier event.
    """
    left: dict[str, int] = {}
    events = events.filter(pa.array(alive_N[events["item"].to_numpy()]))
    left["item_users"] = events.num_rows
    first_E = first_copies(events)
    left["duplicates"] = int((~first_E).sum())
    if filters.drop_duplicates:
        events = events.filter(pa.array(first_E))
    left["drop_duplicates"] = events.num_rows
    if filters.first_only:
        user, item = _ints(events["user"]), _ints(events["item"])
        events = events.filter(pa.array(first_of_pair(user, item, len(alive_N))))
    left["first_only"] = events.num_rows
    if filters.last_per_user:
        events = events.filter(pa.array(last_of_user(_ints(events["user"]), filters.last_per_user)))
    left["last_per_user"] = events.num_rows
    return events, left


@dataclass(frozen=True)
class Users:
    """The filtered events of a bucket, sorted by user, oldest first, in final item rows.

    ``starts_V`` holds the U + 1 offsets of the users' events. ``time_E`` never decreases within a user; it is in epoch
    seconds, or in positions if not all times are known. ``known_E`` is in epoch seconds, -1 where the time is unknown.
    ``order_E`` is the position in the whole log.
    """

    user_ids: pa.Array
    starts_V: Ints
    user_E: Ints
    item_E: NDArray[np.int32]
    time_E: Ints
    known_E: Ints
    split_E: Codes
    order_E: Ints
    event: pa.ChunkedArray
    value: pa.ChunkedArray

    def samples(self) -> Samples:
        """All events as samples of the chronological split, with each user's first event (compare ``targets``)."""
        first = np.minimum.reduceat(self.order_E, self.starts_V[:-1]) if len(self.order_E) else self.order_E
        position = np.arange(len(self.user_E)) - self.starts_V[self.user_E]
        return Samples(self.known_E, first[self.user_E] if len(first) else first, position)

    def targets(self) -> Samples:
        """The samples without each user's first event."""
        samples = self.samples()
        later = samples.position > 0
        return Samples(samples.time[later], samples.user[later], samples.position[later])


def read_users(file: Path, alive_N: NDArray[np.bool_], user_core: int, *, timed: bool) -> Users:
    """Read a filtered bucket, apply the k-core (``alive_N`` and ``user_core``), and renumber users and items."""
    table = pq.ParquetFile(file).read()
    keep = core_events(_ints(table["user"]), _ints(table["item"]), alive_N, user_core)
    table = table.filter(pa.array(keep))
    _, first, user = np.unique(table["user"].to_numpy(), return_index=True, return_inverse=True)
    row_N = np.cumsum(alive_N, dtype=np.int32) - 1
    time = _ints(table["time" if timed else "position"])
    return Users(
        user_ids=table["user_id"].combine_chunks().take(pa.array(first)),
        starts_V=np.append(first, table.num_rows).astype(np.int64),
        user_E=user.astype(np.int64),
        item_E=row_N[table["item"].to_numpy()].astype(np.int32),
        time_E=time,
        known_E=_ints(table["time"].fill_null(-1)),
        split_E=table["split"].fill_null(0).to_numpy().astype(np.int8),
        order_E=_ints(table["order"]),
        event=table["event"],
        value=table["value"],
    )


def split_codes(users: Users, rule: str, cuts: Sequence[Cut | None]) -> Codes:
    """The split code (E,) int8 of each event under ``data.split``; ``cuts`` are needed for chronological splits."""
    if rule == "given":
        return given(users.split_E, users.starts_V)
    if rule == "chronological":
        return chronological(users.samples(), users.starts_V, cuts)
    return leave_one_out(users.starts_V)


@dataclass(frozen=True)
class Numbering:
    """The numbers of a bucket's first user and event among all, and which evaluation queries are kept.

    A query's id is the number of its target event; ``limits`` holds the largest id hash that is kept, per split.
    """

    first_user: int
    first_event: int
    limits: dict[str, int | None]

    def ids(self, users: Users) -> Ints:
        """The id (E,) int64 of the query of each event."""
        return np.arange(len(users.item_E), dtype=np.int64) + self.first_event


def write_queries(
    users: Users, codes_E: Codes, numbering: Numbering, max_history: int, folder: Path, bucket: int
) -> pa.Table:
    """Write a bucket's query files, and return its sequences.

    Each query is compared with its user's sequence first: a leak of the future is an error of the program.
    """
    name = f"part-{bucket:05d}.parquet"
    sequences = sequence_table(users, codes_E, numbering.first_user)
    for split in SPLITS:
        chosen = np.flatnonzero(codes_E == SPLIT_CODES[split])
        limit = numbering.limits.get(split)
        if limit is not None:
            chosen = chosen[hash_ids(numbering.ids(users)[chosen]) <= np.uint64(limit)]
        queries = query_table(users, chosen, numbering, max_history)
        wrong = int(wrong_queries(sequences, queries, split, numbering.first_event).sum())
        if wrong:
            raise RuntimeError(f"{wrong} {split} queries do not fit the sequences of their users: please report this")
        write_parquet(queries, folder / "queries" / split / name)
    return sequences


def query_table(users: Users, target_Q: Ints, numbering: Numbering, max_history: int) -> pa.Table:
    """Queries with the events ``target_Q`` as targets and up to ``max_history`` items before.

    Schema ``QUERIES``, then ``QUERY_CONTEXT``.
    """
    user = users.user_E[target_Q]
    begin = np.maximum(users.starts_V[user], target_Q - max_history)
    lengths = target_Q - begin
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.arange(bounds[-1]) + np.repeat(begin - bounds[:-1], lengths)
    known = users.known_E[target_Q]

    def before(values: pa.Array | pa.ChunkedArray) -> pa.Array:
        return _lists(bounds, values.take(pa.array(flat)))

    return pa.table(
        {
            "id": numbering.ids(users)[target_Q],
            "user": user + numbering.first_user,
            "user_id": users.user_ids.take(pa.array(user)),
            "history": before(pa.array(users.item_E)),
            "target": users.item_E[target_Q],
            "time": pa.array(known, mask=known < 0),
            "event": users.event.take(pa.array(target_Q)),
            "events": before(users.event),
            "times": before(pa.array(users.time_E)),
            "values": before(users.value),
            "value": users.value.take(pa.array(target_Q)),
        },
        schema=pa.schema([*QUERIES, *QUERY_CONTEXT]),
    )


def sequence_table(users: Users, codes_E: Codes, first_user: int) -> pa.Table:
    """One row per user (schema ``SEQUENCES``)."""
    bounds = users.starts_V.astype(np.int32)
    return pa.table(
        {
            "user": np.arange(len(users.user_ids), dtype=np.int64) + first_user,
            "user_id": users.user_ids,
            "items": _lists(bounds, pa.array(users.item_E)),
            "split": _lists(bounds, pa.array(codes_E)),
            "times": _lists(bounds, pa.array(users.time_E)),
            "events": _lists(bounds, users.event),
            "values": _lists(bounds, users.value),
        },
        schema=SEQUENCES,
    )


def count_repeats(users: Users, codes_E: Codes) -> int:
    """The number of targets whose item occurs earlier in the same user's events."""
    items = int(users.item_E.max()) + 1 if len(users.item_E) else 1
    again = ~first_of_pair(users.user_E, users.item_E.astype(np.int64), items)
    return int((again & (codes_E > 0)).sum())


def _lists(bounds: NDArray[np.int32], values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Lists of ``values``, which begin and end at ``bounds``; nulls where all values are, as of a log without them."""
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if flat.null_count == len(flat):
        return pa.nulls(len(bounds) - 1, pa.list_(flat.type))
    return pa.ListArray.from_arrays(pa.array(bounds), flat)


def _ints(values: pa.ChunkedArray) -> Ints:
    return values.to_numpy().astype(np.int64)


def _refuse_times_going_back(events: pa.Table) -> None:
    time = _ints(events["time"].fill_null(-1))
    user = _ints(events["user"])
    latest = np.maximum.accumulate(user * (1 << 37) + time) - user * (1 << 37)
    back = (time >= 0) & (time < latest)
    if back.any():
        row = int(np.flatnonzero(back)[0])
        who = events["user_id"][row].as_py()
        raise InputError(
            f"timestamps out of order: {int(back.sum())} events are earlier than one at a smaller position of the same "
            f"user, e.g. user {who!r} at position {events['position'][row].as_py()}: {time[row]} after {latest[row]}; "
            "sort the positions by time, or leave the position column out"
        )
