"""What a sequential network learns from: windows of the train log, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrec.baselines.train_log import TrainLog
from genrec.errors import InputError
from genrec.metrics import IntArray
from genrec.seeds import generator_of

MIXED = 16
"""Batches that are sorted by length together: enough to save padding, few enough to keep the order random."""

Form = Literal["dense", "rows", "cloze"]

NOTHING = -1
"""In ``targets_BT``: no prediction here."""


@dataclass(frozen=True)
class WindowBatch:
    """``items_BT`` oldest first, 0 behind ``lengths_B``; ``targets_BT`` the item to predict at a place, or -1.

    ``users_B``: the number of each window's user.
    """

    items_BT: Tensor
    lengths_B: Tensor
    targets_BT: Tensor
    users_B: Tensor

    def to(self, device: torch.device) -> WindowBatch:
        """The same on ``device``."""
        tensors = (self.items_BT, self.lengths_B, self.targets_BT, self.users_B)
        return WindowBatch(*(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class TrainingWindows:
    """S windows of the log's events: ``lengths_S`` events from ``starts_S`` on, each of which has a next one.

    ``users_S`` are the users.

    ``dense``: the next item is a target at each position, else at the last one alone.
    """

    items_E: IntArray
    starts_S: NDArray[np.int64]
    lengths_S: NDArray[np.int64]
    users_S: IntArray
    dense: bool

    @property
    def targets(self) -> int:
        """Predictions of an epoch."""
        return int(self.lengths_S.sum()) if self.dense else len(self.lengths_S)

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[WindowBatch]:
        """All windows once, in an order that is a function of ``number`` and ``seed``."""
        random = generator_of("baseline windows", seed, number)
        order_S = random.permutation(len(self.starts_S))
        chunk, batches = batch_size * MIXED, list[NDArray[np.int64]]()
        for start in range(0, len(order_S), chunk):
            rows = order_S[start : start + chunk]
            rows = rows[np.argsort(self.lengths_S[rows], kind="stable")]
            batches += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        for place in random.permutation(len(batches)):
            yield self.batch(batches[place])

    def batch(self, rows: NDArray[np.int64]) -> WindowBatch:
        """The windows ``rows`` (B,)."""
        lengths_B, place_T = self.lengths_S[rows], np.arange(self.lengths_S[rows].max())
        inside_BT = place_T < lengths_B[:, None]
        index_BT = np.where(inside_BT, self.starts_S[rows, None] + place_T, 0)
        wanted_BT = inside_BT if self.dense else place_T == lengths_B[:, None] - 1
        targets_BT = np.where(wanted_BT, self.items_E[np.where(inside_BT, index_BT + 1, 0)], NOTHING)
        items_BT = np.where(inside_BT, self.items_E[index_BT], 0)
        arrays = (items_BT, lengths_B, targets_BT, self.users_S[rows])
        return WindowBatch(*(torch.from_numpy(array) for array in arrays))


def training_windows(log: TrainLog, max_history: int, form: Form) -> TrainingWindows:
    """The windows of at most ``max_history`` items for a network of ``form``.

    dense, cloze: a user's events are cut into windows from the newest one back, so that each is predicted once; rows:
    a window ends before each event.

    Raises:
        InputError: no user has two events.
    """
    first_E = np.flatnonzero(np.diff(log.users_E, prepend=-1))
    counts_U = np.diff(first_E, append=len(log.users_E))
    position_E = np.arange(len(log.users_E)) - np.repeat(first_E, counts_U)
    last_E = np.repeat(counts_U, counts_U) - 1
    ends = position_E > 0
    if form != "rows":
        ends &= (last_E - position_E) % max_history == 0
    place_S = np.flatnonzero(ends)
    if not len(place_S):
        raise InputError("no user has two train events, so there is no next item to learn; check data.split")
    lengths_S = np.minimum(position_E[place_S], max_history)
    starts_S = place_S - lengths_S
    return TrainingWindows(log.items_E, starts_S, lengths_S, log.users_E[starts_S], dense=form != "rows")
