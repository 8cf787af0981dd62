"""Which events of the sequences are train events: the one definition that counts, baselines and rewards share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.data.splits import Ints
from genrec.data.tables import SPLIT_CODES
from genrec.errors import InputError

TRAIN = SPLIT_CODES["train"]
"""Split code of train targets; the lower one is of first events, which precede them."""


@dataclass(frozen=True)
class TrainPart:
    """All events (E,) of some users: items, users as rows of the table, places in the user's sequence, split codes.

    ``is_train_E``: the event is a first or train one, and no later than its user's last train target. A user without a
    train target has no train event.
    """

    items_E: Ints
    users_E: Ints
    position_E: Ints
    split_E: Ints
    is_train_E: NDArray[np.bool_]


def train_part(sequences: pa.Table, items: int) -> TrainPart:
    """The events of ``sequences``, from their columns ``items`` and ``split``, over a catalogue of ``items``.

    Raises:
        InputError: an item outside the catalogue, or columns that do not fit.
    """
    items_E, lengths_U = flat_column(sequences, "items")
    split_E, split_lengths_U = flat_column(sequences, "split")
    if not np.array_equal(lengths_U, split_lengths_U):
        raise InputError("sequences: the columns items and split differ in length; run `genrec prepare` again")
    low, high = int(items_E.min(initial=0)), int(items_E.max(initial=0))
    if low < 0 or high >= items:
        raise InputError(f"sequences hold item {low if low < 0 else high}; the catalogue has rows 0 to {items - 1}")
    users_E, ends_U = np.repeat(np.arange(len(lengths_U)), lengths_U), np.cumsum(lengths_U)
    targets_E = np.append(0, np.cumsum(split_E == TRAIN))
    comes_target_E = targets_E[ends_U][users_E] > targets_E[:-1]
    position_E = np.arange(len(items_E)) - np.repeat(ends_U - lengths_U, lengths_U)
    return TrainPart(items_E, users_E, position_E, split_E, comes_target_E & (split_E <= TRAIN))


def flat_column(table: pa.Table, column: str) -> tuple[Ints, Ints]:
    """The concatenated values of a list column, and the length of each row.

    Raises:
        InputError: the table lacks the column, or it holds nulls.
    """
    if column not in table.column_names:
        raise InputError(f"got the columns {table.column_names}, wanted {column!r}; run `genrec prepare` again")
    lists = table.column(column).combine_chunks()
    array = cast("pa.ListArray", lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists)
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    if array.null_count or array.flatten().null_count:
        raise InputError(f"the column {column!r} holds nulls; every row needs its {column}")
    return array.flatten().to_numpy(zero_copy_only=False).astype(np.int64), np.diff(offsets).astype(np.int64)
