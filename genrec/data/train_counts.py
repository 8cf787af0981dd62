"""Counts of the train events: ``prepare`` counts each shard of users once, and stores the sum for all who ask.

    train_counts.parquet   row i is item i; figures of the whole log are in the file's metadata

A directory without this file, as earlier versions wrote it, is counted when it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.arrow import pc
from genrec.data.files import write_parquet
from genrec.data.readers import count_items, stream_sequences
from genrec.data.splits import Ints
from genrec.data.tables import SEQUENCES, require_columns
from genrec.data.train_part import TRAIN, train_part
from genrec.errors import InputError

TRAIN_COUNTS = "train_counts.parquet"

COLUMNS = ("items", "split", "events")
"""Columns of sequences that are counted."""

SCHEMA = pa.schema(
    [pa.field("events", pa.int64(), nullable=False), pa.field("first_or_train", pa.int64(), nullable=False)]
)
TOTALS = b"totals"
"""Key of the file's metadata: the figures of the whole log, as JSON."""


@dataclass(frozen=True)
class TrainCounts:
    """Counts of some users, which ``+`` adds to those of others.

    ``events_N`` are train events of each item: those of ``train_part``, repeats included. ``first_or_train_N`` are its
    events that are no target of validation or test, also of users without a train target. ``users`` is the number of
    users with train events, ``pairs`` of different pairs of a user and an item among these events, and ``types`` of
    train targets of each event type, by name.
    """

    events_N: Ints
    first_or_train_N: Ints
    users: int
    pairs: int
    types: Mapping[str, int]

    def __add__(self, other: TrainCounts) -> TrainCounts:
        types = {name: self.types.get(name, 0) + other.types.get(name, 0) for name in {*self.types, *other.types}}
        return TrainCounts(
            self.events_N + other.events_N,
            self.first_or_train_N + other.first_or_train_N,
            self.users + other.users,
            self.pairs + other.pairs,
            dict(sorted(types.items())),
        )

    @property
    def repeat_share(self) -> float:
        """``repeat_share`` of these events."""
        return repeat_share(int(self.events_N.sum()), self.pairs, self.users)

    @property
    def mask_seen(self) -> bool:
        """Whether answers leave out the items of the history: where no train target repeats one."""
        return self.repeat_share == 0.0

    @property
    def most_frequent_type(self) -> str | None:
        """The event type of most train targets, the first by name of several; None where none is known."""
        return min(self.types, key=lambda name: (-self.types[name], name), default=None)

    def of_catalogue(self, items: int) -> TrainCounts:
        """The counts of a catalogue of ``items``: later ones than these have no event.

        Raises:
            InputError: no train event, or an event of an item outside the catalogue.
        """
        if not self.users:
            raise InputError("sequences hold no train position (split code 1); the data needs a train split")
        if self.first_or_train_N[items:].any():
            row = items + int(np.flatnonzero(self.first_or_train_N[items:])[-1])
            raise InputError(f"train_counts: got events of item {row}; the catalogue has rows 0 to {items - 1}")
        more = max(0, items - len(self.events_N))
        events_N, first_or_train_N = (
            np.pad(one_N[:items], (0, more)) for one_N in (self.events_N, self.first_or_train_N)
        )
        return replace(self, events_N=events_N, first_or_train_N=first_or_train_N)

    def write(self, file: Path) -> None:
        """Write them as Parquet."""
        totals = {"users": self.users, "pairs": self.pairs, "types": dict(self.types)}
        columns = {"events": self.events_N, "first_or_train": self.first_or_train_N}
        schema = SCHEMA.with_metadata({TOTALS: json.dumps(totals, ensure_ascii=False).encode()})
        write_parquet(pa.table(columns, schema=schema), file)

    @classmethod
    def read(cls, file: Path) -> TrainCounts:
        """What ``write`` wrote.

        Raises:
            InputError: the file has other columns, or no figures of the whole log.
        """
        table = pq.ParquetFile(file).read()
        require_columns(table, SCHEMA, TRAIN_COUNTS)
        totals = (table.schema.metadata or {}).get(TOTALS)
        if totals is None:
            raise InputError(f"{file}: its metadata lacks {TOTALS.decode()!r}; delete it, and it is counted when asked")
        return cls(*(table[name].to_numpy() for name in SCHEMA.names), **json.loads(totals))


def repeat_share(events: int, pairs: int, users: int) -> float:
    """Share of the train targets that repeat an earlier item of the user (a user's first event is no target).

    Of ``events`` of ``users``, with ``pairs`` different pairs of a user and an item.
    """
    targets = events - users
    return (events - pairs) / targets if targets else 0.0


def count_train(sequences: pa.Table, items: int) -> TrainCounts:
    """The counts of some users' sequences (``COLUMNS``; types may be missing) over a catalogue of ``items``.

    Raises:
        InputError: as ``train_part``.
    """
    part = train_part(sequences, items)
    items_E, users_E = part.items_E[part.is_train_E], part.users_E[part.is_train_E]
    return TrainCounts(
        np.bincount(items_E, minlength=items),
        np.bincount(part.items_E[part.split_E <= TRAIN], minlength=items),
        int(np.count_nonzero(np.diff(users_E, prepend=-1))),
        len(np.unique(users_E * np.int64(items) + items_E)),
        _target_types(sequences),
    )


def _target_types(sequences: pa.Table) -> dict[str, int]:
    """How often each event type is that of a train target; users whose types are not known add nothing."""
    if "events" not in sequences.column_names:
        return {}
    known = sequences.filter(pc.is_valid(sequences["events"]))
    is_target_E = pc.equal(pc.list_flatten(known["split"]), TRAIN)
    types = pc.value_counts(pc.list_flatten(known["events"]).filter(is_target_E).drop_null()).to_pylist()
    return {one["values"]: one["counts"] for one in sorted(types, key=lambda one: one["values"])}


def total(parts: Iterable[TrainCounts], items: int) -> TrainCounts:
    """The sum of the counts of parts of the users over a catalogue of ``items``."""
    return reduce(add, parts, count_train(SEQUENCES.empty_table(), items))


def read_train_counts(directory: Path, items: int) -> TrainCounts:
    """The counts of a data directory over a catalogue of ``items``.

    Raises:
        InputError: as ``TrainCounts.of_catalogue`` and ``train_part``.
    """
    file = Path(directory) / TRAIN_COUNTS
    return (TrainCounts.read(file) if file.is_file() else _counted(directory, items)).of_catalogue(items)


def write_train_counts(directory: Path) -> None:
    """Count the sequences of a data directory, and store the result there."""
    _counted(directory, count_items(directory)).write(Path(directory) / TRAIN_COUNTS)


def _counted(directory: Path, items: int) -> TrainCounts:
    return total((count_train(table, items) for table in stream_sequences(directory, COLUMNS)), items)
