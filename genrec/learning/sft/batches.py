"""Training examples in a fixed order: the batch of a step is a function of (seed, step) alone.

Dense examples: windows of a user's sequence in which every train target is scored once. Row examples: one query each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from genrec.errors import InputError

TRAIN = 1
"""The split code of a position whose item is a training target (``sequences`` table)."""

BUCKET = 8
"""Batches are cut from runs of this many batches sorted by length: little padding, still shuffled."""


@dataclass(frozen=True)
class Dense:
    """Windows of item sequences: ``items_BI`` padded with -1 on the right, ``target_BI`` True at scored items."""

    items_BI: Tensor
    target_BI: Tensor

    @property
    def targets(self) -> int:
        """Number of scored items."""
        return int(self.target_BI.sum())


@dataclass(frozen=True)
class Rows:
    """Queries: item histories and their targets."""

    histories: list[Sequence[int]]
    target_B: Tensor

    @property
    def targets(self) -> int:
        """Number of rows."""
        return len(self.histories)


class Batch(Protocol):
    """Some examples."""

    @property
    def targets(self) -> int:
        """Number of scored items; the loss is divided by it."""
        ...


class Examples(Protocol):
    """A training set that can be cut into batches by index."""

    def lengths(self) -> np.ndarray:
        """Length of each example, for bucketing."""
        ...

    def take(self, index: np.ndarray) -> Batch:
        """The batch of the examples ``index`` (B,)."""
        ...


class DenseExamples:
    """Windows over the training part of each user's sequence.

    A window holds up to 2·H + 1 items, where H = ``max_history``; the next one starts H items later and scores only
    what the one before did not, so each train target is scored exactly once, with at least H items of history if the
    user has as many.

    Raises:
        InputError: the sequences hold no training target.
    """

    def __init__(self, sequences: pa.Table, max_history: int) -> None:
        self._windows: list[tuple[np.ndarray, np.ndarray]] = []
        columns = (sequences["items"].to_pylist(), sequences["split"].to_pylist())
        for items, split in zip(*columns, strict=True):
            scored = np.array(split) == TRAIN
            scored[:1] = False
            if scored.any():
                end = int(scored.nonzero()[0][-1]) + 1
                self._windows += _windows(np.array(items[:end], dtype=np.int64), scored[:end], max_history)
        if not self._windows:
            raise InputError("got sequences without a training target; check data.split and data.filters")

    def lengths(self) -> np.ndarray:
        """Items per window."""
        return np.array([len(items) for items, _ in self._windows])

    def take(self, index: np.ndarray) -> Dense:
        """Windows ``index`` (B,), padded to the longest of them."""
        chosen = [self._windows[i] for i in index]
        width = max((len(items) for items, _ in chosen), default=2)
        items_BI = torch.full((len(chosen), width), -1)
        target_BI = torch.zeros(len(chosen), width, dtype=torch.bool)
        for row, (items, scored) in enumerate(chosen):
            items_BI[row, : len(items)] = torch.from_numpy(items)
            target_BI[row, : len(items)] = torch.from_numpy(scored)
        return Dense(items_BI, target_BI)


def _windows(items: np.ndarray, scored: np.ndarray, history: int) -> list[tuple[np.ndarray, np.ndarray]]:
    size = 2 * history + 1
    cut = [(items[:size], scored[:size])]
    for start in range(history, len(items) - history - 1, history):
        fresh = scored[start : start + size].copy()
        fresh[: history + 1] = False
        cut.append((items[start : start + size], fresh))
    return [(part, fresh) for part, fresh in cut if fresh.any()]


class RowExamples:
    """One example per training query.

    Raises:
        InputError: there is no training query.
    """

    def __init__(self, queries: pa.Table) -> None:
        if queries.num_rows == 0:
            raise InputError("got no training query, wanted at least one; check data.split and data.filters")
        self._histories: list[list[int]] = queries["history"].to_pylist()
        self._targets = torch.from_numpy(queries["target"].to_numpy().astype(np.int64))

    def lengths(self) -> np.ndarray:
        """Items of history per row."""
        return np.array([len(history) for history in self._histories])

    def take(self, index: np.ndarray) -> Rows:
        """Rows ``index`` (B,)."""
        return Rows([self._histories[i] for i in index], self._targets[torch.from_numpy(index)])


class Epochs:
    """Cuts a training set into shuffled, length-bucketed batches; batch ``step`` depends on (seed, step) alone."""

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self._examples = examples
        self._lengths = examples.lengths()
        self._size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order: list[np.ndarray] = []

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return -(-len(self._lengths) // self._size)

    def index(self, step: int) -> np.ndarray:
        """Numbers of the examples in the batch of ``step``."""
        epoch, within = divmod(step, self.steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[within]

    def micro_batches(self, step: int, size: int, rank: int, world: int) -> tuple[list[Batch], int]:
        """This worker's part of a batch in pieces of ``size``, and the number of targets in the whole batch."""
        index = self.index(step)
        if len(index) < world:
            index = np.resize(index, world)
        own = self._ordered(index[rank::world])
        pieces = [self._examples.take(own[at : at + size]) for at in range(0, len(own), size)]
        total = self._examples.take(index).targets if world > 1 else sum(piece.targets for piece in pieces)
        return pieces, total

    def _ordered(self, index: np.ndarray) -> np.ndarray:
        """A worker's part of a batch in the order in which it is cut into pieces."""
        return index

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._lengths))
        run = self._size * BUCKET
        parts: list[np.ndarray] = []
        for start in range(0, len(order), run):
            piece = order[start : start + run]
            piece = piece[np.argsort(self._lengths[piece], kind="stable")]
            parts += [piece[at : at + self._size] for at in range(0, len(piece), self._size)]
        return [parts[i] for i in rng.permutation(len(parts))]
