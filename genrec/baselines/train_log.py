"""The data of baselines: the train events of all users, and histories as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.data.readers import STREAM_ROWS, stream_sequences
from genrec.data.train_counts import repeat_share
from genrec.data.train_part import flat_column, train_part
from genrec.errors import InputError
from genrec.metrics import IntArray

TRAIN_COLUMNS = ("items", "split", "times")
"""Columns of sequences that ``train_log`` reads."""

COUNTED_AT_ONCE = 1 << 22
"""Events whose distinct items are counted in one go."""


@dataclass(frozen=True)
class TrainLog:
    """The train part of all users' sequences, concatenated: E events, oldest first within a user.

    ``items_E`` item rows, ``users_E`` user numbers (the events of a user stand together), ``times_E`` times;
    ``n_items`` is N. What is counted is kept, so it is counted once for all who ask.
    """

    items_E: IntArray
    users_E: IntArray
    times_E: IntArray
    n_items: int

    @cached_property
    def counts_N(self) -> NDArray[np.int64]:
        """Train events per item, (N,)."""
        return np.bincount(self.items_E, minlength=self.n_items)

    @cached_property
    def repeat_share(self) -> float:
        """Share of the train targets that repeat an earlier item of the user (a user's first event is no target)."""
        if self.items_E.size == 0:
            return 0.0
        users = int(np.count_nonzero(np.diff(self.users_E))) + 1
        return repeat_share(self.items_E.size, self._distinct(), users)

    @property
    def mask_seen(self) -> bool:
        """Whether answers leave out the items of the history: where no train target repeats one."""
        return self.repeat_share == 0.0

    def _distinct(self) -> int:
        """The number of pairs of a user and an item, counted in runs of whole users."""
        (last_U,) = np.diff(self.users_E, append=-1).nonzero()
        cuts = np.searchsorted(last_U, np.arange(COUNTED_AT_ONCE, self.items_E.size, COUNTED_AT_ONCE))
        bounds = np.unique([0, *(last_U[cuts] + 1), self.items_E.size])
        runs = (slice(start, end) for start, end in pairwise(bounds))
        return sum(np.unique(self.users_E[E] * np.int64(self.n_items) + self.items_E[E]).size for E in runs)


def train_log(sequences: pa.Table | Iterable[pa.Table], n_items: int) -> TrainLog:
    """``train_events`` of a log that has some.

    Raises:
        InputError: no train target, an item outside the catalogue, or columns that do not fit.
    """
    log = train_events(sequences, n_items)
    if not len(log.items_E):
        raise InputError("sequences hold no train position (split code 1); the baselines need a train split")
    return log


def train_events(sequences: pa.Table | Iterable[pa.Table], n_items: int) -> TrainLog:
    """The train events: each user's context and train positions up to the last train target.

    Args:
        sequences: a table, or a stream of tables, with the columns ``items``, ``split`` (0 context, 1 train, 2 valid,
            3 test) and, if known, ``times``; without them the time of an event is its position. A user without a train
            target adds nothing.
        n_items: N; items are rows 0 … N - 1.

    Raises:
        InputError: an item outside the catalogue, or columns that do not fit.
    """
    if isinstance(sequences, pa.Table):
        whole: Any = sequences
        sequences = (pa.Table.from_batches([part]) for part in whole.to_batches(STREAM_ROWS))
    none = np.zeros(0, np.int32)
    parts, users = [(none, none, np.zeros(0, np.int64))], 0
    for table in sequences:
        parts.append(_train_events(table, users, n_items))
        users += table.num_rows
    items_E, users_E, times_E = (np.concatenate(column) for column in zip(*parts, strict=True))
    return TrainLog(items_E, users_E, times_E, n_items)


def read_train_log(data: Path, n_items: int) -> TrainLog:
    """``train_log`` of the sequences in a data directory, of which it reads a part at a time."""
    return train_log(stream_sequences(data, TRAIN_COLUMNS), n_items)


def _train_events(
    sequences: pa.Table, first_user: int, n_items: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Items, users and times (E,) of the train events of some users."""
    part = train_part(sequences, n_items)
    times_E = flat_column(sequences, "times")[0] if "times" in sequences.column_names else part.position_E
    keep_E = part.is_train_E
    return part.items_E[keep_E].astype(np.int32), (part.users_E[keep_E] + first_user).astype(np.int32), times_E[keep_E]


def recent_history(queries: pa.Table, max_history: int) -> NDArray[np.int64]:
    """The ``history`` column as ``recent_QH``: at most ``max_history`` items, newest first, padded with -1."""
    items_E, lengths_Q = flat_column(queries, "history")
    ends_Q = np.cumsum(lengths_Q)
    index_QH = ends_Q[:, None] - 1 - np.arange(max_history)[None, :]
    inside_QH = np.arange(max_history)[None, :] < lengths_Q[:, None]
    if items_E.size == 0:
        return np.full(inside_QH.shape, -1, dtype=np.int64)
    return np.where(inside_QH, items_E[np.maximum(index_QH, 0)], -1)


def newest_first(histories: Sequence[Sequence[int]], length: int) -> NDArray[np.int64]:
    """The last ``length`` items of each history, newest first and padded with -1, (Q, ``length``)."""
    recent_QH = np.full((len(histories), length), -1, dtype=np.int64)
    for row, history in enumerate(histories):
        last = history[::-1][:length]
        recent_QH[row, : len(last)] = last
    return recent_QH
