"""The train events of all users as a stream, and what SIDs take from them: counts of items, and items in a row.

Targets of validation and test are left out, so they have no influence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from genrec.data.arrow import one_array, pc
from genrec.data.readers import stream_sequences
from genrec.data.tables import SPLIT_CODES
from genrec.data.train_counts import read_train_counts
from genrec.sid.vectors import Longs

TRAIN = (SPLIT_CODES["first"], SPLIT_CODES["train"])

IntArray = npt.NDArray[np.integer]
Doubles = npt.NDArray[np.float64]
Part = tuple[IntArray, IntArray]
"""Items and users (E,) of some users' train events; the events of a user stand together, oldest first."""


class TrainEvents:
    """The train events of sequences, which are read anew, a part at a time, whenever they are iterated over."""

    def __init__(self, tables: Callable[[], Iterable[pa.Table]], data: Path | None = None) -> None:
        self._tables, self._data = tables, data

    @classmethod
    def read(cls, data: Path) -> TrainEvents:
        """Those of a data directory."""
        return cls(partial(stream_sequences, data, ("items", "split")), data)

    @classmethod
    def of(cls, sequences: pa.Table) -> TrainEvents:
        """Those of a table in memory."""
        return cls(lambda: [sequences])

    def __iter__(self) -> Iterator[Part]:
        for table in self._tables():
            lists = one_array(table["items"])
            train = np.isin(pc.list_flatten(table["split"]).to_numpy(), TRAIN)
            users_E = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())[train]
            yield pc.list_flatten(lists).to_numpy()[train], users_E

    def counts(self, items: int) -> Longs:
        """Train events per item, (N,); those of a data directory were counted when it was written."""
        if self._data is not None:
            return read_train_counts(self._data, items).first_or_train_N
        counts_N = np.zeros(items, np.int64)
        for items_E, _ in self:
            np.add.at(counts_N, items_E, 1)
        return counts_N

    def weights(self, items: int, window: int) -> Doubles:
        """Σ 1 / distance over the events at most ``window`` train positions before or after an item's, (N,)."""
        weights_N = np.zeros(items)
        for items_E, users_E in self:
            for gap in range(1, min(window, len(users_E) - 1) + 1):
                same_E = users_E[:-gap] == users_E[gap:]
                np.add.at(weights_N, items_E[:-gap][same_E], 1 / gap)
                np.add.at(weights_N, items_E[gap:][same_E], 1 / gap)
        return weights_N

    def adjacent_pairs(self, most: int) -> tuple[IntArray, IntArray]:
        """Two different items in a row in a user's train events, (P,) each: all of them, or about ``most`` at random.

        The draw has a fixed seed.
        """
        number = sum(int(_differ(*part).sum()) for part in self)
        rng, kept = np.random.default_rng(0), list[Part]()
        for items_E, users_E in self:
            differ_E = _differ(items_E, users_E)
            if number > most:
                differ_E &= rng.random(len(differ_E)) < most / number
            kept.append((items_E[:-1][differ_E], items_E[1:][differ_E]))
        left, right = zip(*kept, strict=True) if kept else ((), ())
        empty = np.zeros(0, np.int32)
        return np.concatenate([empty, *left]), np.concatenate([empty, *right])


def _differ(items_E: IntArray, users_E: IntArray) -> npt.NDArray[np.bool_]:
    """Whether an event and the next one are of one user and two items, (E - 1,)."""
    return (users_E[:-1] == users_E[1:]) & (items_E[:-1] != items_E[1:])
