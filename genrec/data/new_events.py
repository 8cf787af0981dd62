"""New events of a shop that is served: read, appended to the sequences, and turned into queries.

What was split before stays as it was. Of the new events a user's last one is for validation if the user is among the
held-out ones, by a hash; the others are for training, and each has the whole history before it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from genrec.config import Data
from genrec.data.arrow import pc
from genrec.data.canonical import canonical_log
from genrec.data.columns import LOG, find_log_columns
from genrec.data.sources.parquet import find_tables
from genrec.data.tables import QUERIES, QUERY_CONTEXT, SEQUENCES, SPLIT_CODES
from genrec.errors import InputError
from genrec.seeds import seed_of

LOGGER = logging.getLogger(__name__)

Row = dict[str, Any]


def read_new_log(file: Path, data: Data) -> pa.Table:
    """The interactions of a file or folder (schema ``columns.LOG``), oldest first; events of one time in their order.

    Raises:
        InputError: the file is missing or has no row, a column is missing or of a wrong type, or a time is unknown.
    """
    tables: list[pa.Table] = []
    for file_ in find_tables(str(file), "check the path of --log"):
        found = find_log_columns(file_.schema(), data.columns, file_.path)
        if "timestamp" not in found:
            raise InputError(f"{file_.path}: new events need a timestamp, by which they are appended; add the column")
        columns = list(dict.fromkeys(found.values()))
        tables += [canonical_log(table, found, file_.path, data.time_unit) for table in file_.read(columns)]
    log = pa.concat_tables([LOG.empty_table(), *tables])
    if not log.num_rows or log["timestamp"].null_count:
        raise InputError(
            f"{file}: got {log.num_rows} interactions, {log['timestamp'].null_count} of them without a timestamp; "
            "wanted at least one, and a timestamp for each"
        )
    order = pa.table({"time": log["timestamp"], "row": pa.array(range(log.num_rows))})
    return log.take(order.sort_by([("time", "ascending"), ("row", "ascending")])["row"])


@dataclass
class Appended:
    """Sequences with new events, and the queries of these.

    ``counts``: the events that were ``new``, known already (``known``), of ``unknown_items``, or older than the user's
    last event (``late``); and the queries of ``train`` and ``valid``. ``unknown``: some ids of unknown items.
    """

    sequences: pa.Table
    train: pa.Table
    valid: pa.Table
    counts: dict[str, int] = field(default_factory=dict[str, int])
    unknown: Sequence[str] = ()


class _Appender:
    """Appends events to the sequences of the users who have some, in memory."""

    def __init__(self, sequences: pa.Table, rows: Mapping[str, int], next_user: int) -> None:
        self._rows = rows
        self.users: list[Row] = sequences.to_pylist()
        self._by_id = {user["user_id"]: user for user in self.users}
        self._next_user = next_user
        self.fresh: dict[str, list[int]] = defaultdict(list)
        """By user the places of the new events."""
        self.counts: dict[str, int] = dict.fromkeys(("new", "known", "late", "unknown_items"), 0)
        self.unknown: dict[str, None] = {}

    def add(self, event: Row) -> None:
        user, row = self._by_id.get(event["user_id"]), self._rows.get(event["item_id"])
        kind = self._kind(user, row, event)
        self.counts[kind] += 1
        if kind == "unknown_items":
            self.unknown[event["item_id"]] = None
        if kind != "new":
            return
        user = user or self._new_user(event["user_id"])
        place = len(user["items"])
        self.fresh[event["user_id"]].append(place)
        user["items"].append(row)
        user["split"].append(SPLIT_CODES["train" if place else "first"])
        user["times"].append(event["timestamp"])
        for column, name in (("events", "event"), ("values", "value")):
            if user[column] is None and event[name] is not None:
                user[column] = [None] * place
            if user[column] is not None:
                user[column].append(event[name])

    def _kind(self, user: Row | None, row: int | None, event: Row) -> str:
        if row is None:
            return "unknown_items"
        if user is None or not user["items"]:
            return "new"
        last = user["times"][-1]
        kinds = user["events"] or [None] * len(user["items"])
        same = any(
            time == event["timestamp"] and item == row and (None in (kind, event["event"]) or kind == event["event"])
            for item, time, kind in zip(user["items"], user["times"], kinds, strict=True)
        )
        if same and event["timestamp"] <= last:
            return "known"
        return "late" if event["timestamp"] < last else "new"

    def _new_user(self, user_id: str) -> Row:
        user: Row = {"user": self._next_user, "user_id": user_id, "items": [], "split": [], "times": []}
        user |= {"events": None, "values": None}
        self._next_user += 1
        self._by_id[user_id] = user
        self.users.append(user)
        return user

    def user(self, user_id: str) -> Row:
        return self._by_id[user_id]


def append_events(
    sequences: pa.Table,
    log: pa.Table,
    rows: Mapping[str, int],
    *,
    absent: frozenset[int] = frozenset(),
    max_history: int,
    first_query: int,
    held_out: float,
    seed: int,
) -> Appended:
    """Append the events of ``log`` to ``sequences`` (schema ``SEQUENCES``).

    Args:
        log: the result of ``read_new_log``.
        rows: the row of each item id; events of other items are left out.
        absent: rows that are never a target, such as removed items.
        first_query: the id of the first new query.
        held_out: share of the users whose last new event is for validation.

    Raises:
        InputError: no event is new.
    """
    is_touched = pc.is_in(sequences["user_id"], value_set=pc.unique(log["user_id"]))
    touched, others = sequences.filter(is_touched), sequences.filter(pc.invert(is_touched))
    appender = _Appender(touched, rows, (pc.max(sequences["user"]).as_py() or 0) + 1)
    for event in log.to_pylist():
        appender.add(event)
    if not appender.counts["new"]:
        raise InputError(
            f"none of {log.num_rows} events is new: {appender.counts['known']} are in the log already, "
            f"{appender.counts['late']} are older than their user's last event, {appender.counts['unknown_items']} are "
            f"of unknown items {list(appender.unknown)[:3]}; give newer events, or the items with --items"
        )
    queries: dict[str, list[Row]] = {"train": [], "valid": []}
    for user_id, places in appender.fresh.items():
        user = appender.user(user_id)
        targets = [place for place in places if place and user["items"][place] not in absent]
        held = bool(targets) and seed_of(f"held out {user_id}", seed) < held_out * 2**64
        for place in targets:
            split = "valid" if held and place == targets[-1] else "train"
            user["split"][place] = SPLIT_CODES[split]
            queries[split].append(_query(user, place, max_history, first_query))
            first_query += 1
    schema = pa.schema([*QUERIES, *QUERY_CONTEXT])
    tables = {split: pa.Table.from_pylist(found, schema=schema) for split, found in queries.items()}
    counts = appender.counts | {split: table.num_rows for split, table in tables.items()}
    whole = pa.concat_tables([others.cast(SEQUENCES), pa.Table.from_pylist(appender.users, schema=SEQUENCES)])
    return Appended(whole, tables["train"], tables["valid"], counts, list(appender.unknown)[:3])


def _query(user: Row, place: int, max_history: int, number: int) -> Row:
    history = slice(max(0, place - max_history), place)

    def part(name: str) -> list[Any] | None:
        return None if user[name] is None else user[name][history]

    def own(name: str) -> Any:
        return None if user[name] is None else user[name][place]

    return {
        "id": number,
        "user": user["user"],
        "user_id": user["user_id"],
        "history": part("items"),
        "target": user["items"][place],
        "time": user["times"][place],
        "event": own("events"),
        "events": part("events"),
        "times": part("times"),
        "values": part("values"),
        "value": own("values"),
    }
