"""Training examples in a fixed order: the batch of a step is a function of (seed, step) alone.

Dense examples: windows of a user's sequence in which every train target is scored once. Row examples: one query each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from genrec.data.arrow import pc
from genrec.data.tables import contexts
from genrec.errors import InputError
from genrec.learning.sft.dense_windows import cut_windows
from genrec.learning.sft.second_pass import HardSamples
from genrec.seeds import generator_of
from genrec.types import HistoryContext

BUCKET = 8
"""Batches are cut from runs of this many batches sorted by length: little padding, still shuffled."""


class DenseContext(NamedTuple):
    """The event types of windows, as indices (B, I) into ``names`` (-1: unknown), and the events' times (B, I)."""

    names: Sequence[str]
    event_BI: Tensor
    time_BI: Tensor


@dataclass(frozen=True)
class Dense:
    """Windows of item sequences: ``items_BI`` padded with -1 on the right, ``target_BI`` True at scored items.

    ``users``: whose they are, B ids; empty where nobody knows. ``context``: None where nobody reads it.
    """

    items_BI: Tensor
    target_BI: Tensor
    users: Sequence[str] = ()
    context: DenseContext | None = None

    @property
    def targets(self) -> int:
        """Number of scored items."""
        return int(self.target_BI.sum())

    @property
    def targets_B(self) -> Tensor:
        """Number of scored items per window."""
        return self.target_BI.sum(1)


@dataclass(frozen=True)
class Rows:
    """Queries: item histories, their targets, and whose they are (B ids; empty where nobody knows).

    ``contexts``: of the histories; empty where nobody reads them.
    """

    histories: list[Sequence[int]]
    target_B: Tensor
    users: Sequence[str] = ()
    contexts: Sequence[HistoryContext] = ()

    @property
    def targets(self) -> int:
        """Number of rows."""
        return len(self.histories)

    @property
    def targets_B(self) -> Tensor:
        """One per row."""
        return torch.ones(len(self.histories))


class Batch(Protocol):
    """Some examples."""

    @property
    def targets(self) -> int:
        """Number of scored items; the loss is divided by it."""
        ...

    @property
    def targets_B(self) -> Tensor:
        """The same per example."""
        ...


class Examples(Protocol):
    """A training set that can be cut into batches by index."""

    def lengths(self) -> np.ndarray:
        """Length of each example, for bucketing."""
        ...

    def take(self, index: np.ndarray) -> Batch:
        """The batch of the examples ``index`` (B,)."""
        ...

    def targets(self, index: np.ndarray) -> int:
        """Number of scored items in the examples ``index`` (B,), without building the batch."""
        ...

    def names(self, index: np.ndarray) -> list[str]:
        """What the examples ``index`` (B,) are called in a message, such as ``query 7``."""
        ...


class TrainingBatches(Protocol):
    """A training set in batches, which are the same for any number of workers.

    ``hard``: the samples of a second pass per epoch, None without one.
    """

    hard: HardSamples | None

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        ...

    def count(self, step: int) -> int:
        """Number of examples in the batch of ``step``."""
        ...

    def micro_batches(self, step: int, size: int, rank: int, world: int) -> tuple[list[Batch], int]:
        """A worker's part of a batch in pieces of ``size``, and the number of targets in the whole batch.

        A worker beyond the batch's last example gets the first one, which the caller gives the weight 0.
        """
        ...

    def is_recorded(self, step: int) -> bool:
        """Whether the losses of this step's samples decide what the second pass of its epoch trains."""
        ...

    def record(
        self, step: int, pieces: Sequence[Tensor], rank: int, world: int, add: Callable[[Tensor], Tensor]
    ) -> None:
        """Keep the losses of a step's samples; see ``HardSamples.record``."""
        ...

    def names(self, step: int) -> list[str]:
        """What the examples in the batch of ``step`` are called in a message."""
        ...


class DenseExamples:
    """Windows over the training part of each user's sequence.

    A window holds up to 2·H + 1 items, where H = ``max_history``; the next one starts H items later and scores only
    what the one before did not, so each train target is scored exactly once, with at least H items of history if the
    user has as many.

    Args:
        sequences: of all users, a table or a stream of tables.
        with_context: batches have the events' types and times, too.

    Raises:
        InputError: the sequences hold no training target.
    """

    def __init__(
        self, sequences: pa.Table | Iterable[pa.Table], max_history: int, *, with_context: bool = False
    ) -> None:
        tables = [sequences] if isinstance(sequences, pa.Table) else sequences
        self._windows = cut_windows(tables, max_history, with_context=with_context)

    def lengths(self) -> np.ndarray:
        """Items per window."""
        return self._windows.length_W

    def take(self, index: np.ndarray) -> Dense:
        """Windows ``index`` (B,), padded to the longest of them."""
        own, length_B = self._windows, self._windows.length_W[index]
        place_I = np.arange(length_B.max(initial=2))
        inside_BI = place_I < length_B[:, None]
        event_BI = np.where(inside_BI, own.start_W[index][:, None] + place_I, 0)

        def padded(values_E: np.ndarray) -> Tensor:
            return torch.from_numpy(np.where(inside_BI, values_E[event_BI], -1).astype(np.int64))

        target_BI = inside_BI & own.scored_E[event_BI] & (place_I >= own.fresh_W[index][:, None])
        context = None
        if own.event_E is not None and own.time_E is not None:
            context = DenseContext(list(own.names), padded(own.event_E), padded(own.time_E))
        return Dense(padded(own.items_E), torch.from_numpy(target_BI), self._users(index), context)

    def targets(self, index: np.ndarray) -> int:
        """Number of scored items in the windows ``index`` (B,)."""
        return int(self._windows.targets_W[index].sum())

    def names(self, index: np.ndarray) -> list[str]:
        """The users whose windows ``index`` (B,) are."""
        return [f"user {user}" for user in self._users(index)]

    def _users(self, index: np.ndarray) -> list[str]:
        return self._windows.users.take(pa.array(self._windows.user_W[index])).to_pylist()


class RowExamples:
    """One example per training query; ``with_context``: batches have the contexts of the histories, too.

    Raises:
        InputError: there is no training query.
    """

    def __init__(self, queries: pa.Table, *, with_context: bool = False) -> None:
        if queries.num_rows == 0:
            raise InputError("got no training query, wanted at least one; check data.split and data.filters")
        has = set(queries.column_names)
        wanted = ["history", "user_id", *(("events", "times", "event") if with_context else ())]
        self._table = queries.select([name for name in wanted if name in has]).combine_chunks()
        self._ids_N = queries["id"].to_numpy() if "id" in has else np.arange(queries.num_rows)
        self._targets = torch.from_numpy(queries["target"].to_numpy().astype(np.int64))
        self._with_context = with_context

    def lengths(self) -> np.ndarray:
        """Items of history per row."""
        return pc.list_value_length(self._table["history"]).to_numpy().astype(np.int32)

    def take(self, index: np.ndarray) -> Rows:
        """Rows ``index`` (B,)."""
        rows = self._table.take(pa.array(index))
        users: list[str] = rows["user_id"].to_pylist() if "user_id" in rows.column_names else []
        known = contexts(rows) if self._with_context else []
        return Rows(rows["history"].to_pylist(), self._targets[torch.from_numpy(index)], users, known)

    def targets(self, index: np.ndarray) -> int:
        """Number of the rows ``index`` (B,): B."""
        return len(index)

    def names(self, index: np.ndarray) -> list[str]:
        """The ids of the queries ``index`` (B,)."""
        return [f"query {id_}" for id_ in self._ids_N[index]]


class Epochs:
    """Cuts a training set into shuffled, length-bucketed batches; batch ``step`` depends on (seed, step) alone.

    With ``second_pass`` an epoch goes on with batches of that share of the examples, those with the largest losses of
    its first pass (``hard``); these batches depend on the recorded losses, too.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, second_pass: float = 0.0) -> None:
        self._examples = examples
        self._lengths = examples.lengths()
        self._size = batch_size
        self._seed = seed
        self._pass = (-1, -1)
        self._order: list[np.ndarray] = []
        self.hard = HardSamples(self._kinds(), second_pass) if second_pass else None

    @property
    def steps(self) -> int:
        """Batches per epoch, those of its second pass included."""
        return self._first + (-(-self.hard.count // self._size) if self.hard else 0)

    def index(self, step: int) -> np.ndarray:
        """Numbers of the examples in the batch of ``step``."""
        epoch, within = divmod(step, self.steps)
        second = within >= self._first
        if (epoch, second) != self._pass:
            self._pass, self._order = (epoch, second), self._shuffled(epoch, second=second)
        return self._order[within - self._first * second]

    def count(self, step: int) -> int:
        """Number of examples in the batch of ``step``."""
        return len(self.index(step))

    def micro_batches(self, step: int, size: int, rank: int, world: int) -> tuple[list[Batch], int]:
        """This worker's part of a batch in pieces of ``size``, and the number of targets in the whole batch."""
        index = self.index(step)
        own = self._ordered(index[rank::world] if rank < len(index) else index[:1])
        pieces = [self._examples.take(own[at : at + size]) for at in range(0, len(own), size)]
        return pieces, self._examples.targets(index)

    def is_recorded(self, step: int) -> bool:
        """Whether the losses of this step's samples decide what the second pass of its epoch trains."""
        return self.hard is not None and step % self.steps < self._first

    def record(
        self, step: int, pieces: Sequence[Tensor], rank: int, world: int, add: Callable[[Tensor], Tensor]
    ) -> None:
        """Keep the losses of a step's samples; see ``HardSamples.record``."""
        if self.hard is not None:
            index = self.index(step)
            self.hard.record(index, self._ordered(index[rank::world]), pieces, add)

    def names(self, step: int) -> list[str]:
        """What the examples in the batch of ``step`` are called in a message."""
        return self._examples.names(self.index(step))

    @property
    def _first(self) -> int:
        """Batches of a first pass."""
        return -(-len(self._lengths) // self._size)

    def _kinds(self) -> Sequence[range]:
        """The parts of the training set whose losses can be compared."""
        return [range(len(self._lengths))]

    def _ordered(self, index: np.ndarray) -> np.ndarray:
        """A worker's part of a batch in the order in which it is cut into pieces."""
        return index

    def _shuffled(self, epoch: int, *, second: bool) -> list[np.ndarray]:
        if second and self.hard is not None:
            rng = generator_of("second pass", self._seed, epoch)
            order = rng.permutation(self.hard.chosen())
        else:
            rng = generator_of("examples", self._seed, epoch)
            order = rng.permutation(len(self._lengths))
        return bucketed(order, self._lengths[order], self._size, rng)


def bucketed(order: np.ndarray, length_E: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Examples in the order ``order`` (E,) cut into batches of similar lengths, in a shuffled order.

    Each run of ``BUCKET`` batches is sorted by length; the last batch may be smaller than ``size``.

    Args:
        length_E: of the examples, in the same order.
    """
    run, parts = size * BUCKET, list[np.ndarray]()
    for start in range(0, len(order), run):
        piece, length = order[start : start + run], length_E[start : start + run]
        piece = piece[np.argsort(length, kind="stable")]
        parts += [piece[at : at + size] for at in range(0, len(piece), size)]
    return [parts[i] for i in rng.permutation(len(parts))]
