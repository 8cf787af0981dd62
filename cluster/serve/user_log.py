"""What the log of a run knows of its users: their whole histories, and how often each item occurs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.baselines.popularity import popularity_scores
from genrec.data.readers import read_sequences
from genrec.data.train_counts import read_train_counts
from genrec.errors import InputError
from genrec.metrics import FloatArray


@dataclass(frozen=True)
class UserHistory:
    """Item rows of a user, oldest first, with the type of event and the time of each where the log has them."""

    rows: list[int]
    events: list[str | None]
    times: list[int]


class UserLog:
    """The sequences of all users, from a data directory; N is the number of items, inserted ones included."""

    def __init__(self, data: Path, items: int) -> None:
        self._data, self._items = data, items
        self._table = read_sequences(data).combine_chunks()
        self._row_of = {user: row for row, user in enumerate(self._table["user_id"].to_pylist())}

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def users(self) -> list[str]:
        """The ids of all users, in the order of the log."""
        return list(self._row_of)

    def history(self, user: str) -> UserHistory:
        """All events of a user.

        Raises:
            InputError: the log has no such user.
        """
        if user not in self._row_of:
            raise InputError(f"user {user!r} is not in the run's log, and no history was given; wanted one of the two")
        row = self._row_of[user]
        rows = [int(item) for item in self._table["items"][row].as_py()]
        return UserHistory(rows, self._listed("events", row), self._listed("times", row))

    def popularity(self) -> FloatArray:
        """``popularity_scores`` (N,) by the train events of each item; equal ones where the log has no users."""
        if not len(self):
            return np.ones(self._items)
        counts_N = read_train_counts(self._data, self._items).events_N
        return popularity_scores(counts_N, counts_N)

    def _listed(self, column: str, row: int) -> list[Any]:
        return (self._table[column][row].as_py() or []) if column in self._table.column_names else []
