"""Batches of a log that is larger than memory: which windows a batch holds, and reading a part of them at a time.

An epoch takes the sequence files in an order of its own. Of the windows in this order so many as a *pool* holds are
shuffled and cut into batches together, like the whole training set by ``Epochs``; then come the next ones. What a batch
holds is a function of (seed, step) alone, so a run resumes at any step, and any number of workers learns the same.

Letters: F files, P windows of a pool, S steps, W windows of all files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from genrec.data.readers import sequence_files, stream_sequence_file
from genrec.learning.sft.batches import Batch, Dense, DenseContext, bucketed
from genrec.learning.sft.dense_windows import Windows, count_windows, cut_windows
from genrec.learning.sft.second_pass import HardSamples
from genrec.metrics import IntArray
from genrec.seeds import generator_of

SEQUENCE = ("user_id", "items", "split")
CONTEXT = ("times", "events")


@dataclass(frozen=True)
class FilePart:
    """The windows ``first`` to ``last`` (exclusive) of the sequence file with the number ``file``."""

    file: int
    first: int
    last: int


@dataclass(frozen=True)
class WindowStream:
    """The windows of all sequence files of the directory ``data``, as batches.

    ``windows_F``: the number of windows per file, see ``count_file_windows``. ``pool``: windows that are shuffled
    together at least; a pool holds whole batches. ``history``, ``with_context``: see ``DenseExamples``.
    """

    data: Path
    windows_F: tuple[int, ...]
    history: int
    batch_size: int
    pool: int
    seed: int
    with_context: bool = False

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return -(-sum(self.windows_F) // self.batch_size)

    @property
    def pools(self) -> int:
        """Pools per epoch; they are numbered on from epoch to epoch."""
        return -(-self.steps // self._steps_of_pool)

    def pool_of(self, step: int) -> int:
        """The pool with the batch of ``step``."""
        epoch, within = divmod(step, self.steps)
        return epoch * self.pools + within // self._steps_of_pool

    def parts(self, pool: int) -> list[FilePart]:
        """Where the windows of a pool lie, in the order of its epoch."""
        epoch, within = divmod(pool, self.pools)
        order_F = generator_of("files", self.seed, epoch).permutation(len(self.windows_F))
        start = within * self._steps_of_pool * self.batch_size
        end, before, parts = start + self._steps_of_pool * self.batch_size, 0, list[FilePart]()
        for file in order_F.tolist():
            count = self.windows_F[file]
            first, last = max(start - before, 0), min(end - before, count)
            if first < last:
                parts.append(FilePart(file, first, last))
            before += count
        return parts

    def read(self, pool: int, rank: int, world: int) -> pa.Table:
        """What one of ``world`` workers learns from a pool: a row per step (S,), see ``own_batches``."""
        epoch, within = divmod(pool, self.pools)
        files, parts = sequence_files(self.data), self.parts(pool)
        names = [*SEQUENCE, *(CONTEXT if self.with_context else ())]
        ends_F, tables = list[int](), list[pa.Table]()
        for part in parts:
            tables += stream_sequence_file(files[part.file], names)
            ends_F.append(self.windows_F[part.file])
        windows = cut_windows(tables, self.history, with_context=self.with_context)
        begin_F = np.cumsum([0, *ends_F])
        chosen_P = np.concatenate(
            [np.arange(part.first, part.last) + begin for part, begin in zip(parts, begin_F.tolist(), strict=False)]
        )
        rng = generator_of("pool", self.seed, epoch, within)
        order = rng.permutation(chosen_P)
        first = epoch * self.steps + within * self._steps_of_pool
        batches = bucketed(order, windows.length_W[order], self.batch_size, rng)
        return own_batches(windows, batches, first, rank, world)

    @property
    def _steps_of_pool(self) -> int:
        return max(1, self.pool // self.batch_size)


def count_file_windows(file: Path, history: int) -> int:
    """The number of windows that ``DenseExamples`` would cut from a sequence file, a few users at a time."""
    return sum(count_windows(table, history) for table in stream_sequence_file(file, ["items", "split"]))


def own_batches(windows: Windows, batches: Sequence[IntArray], first: int, rank: int, world: int) -> pa.Table:
    """The part of the worker ``rank`` of each batch, as lists of its windows one after another.

    Columns: ``step`` (``first`` and those after it), ``count`` and ``targets`` (windows and scored items of the whole
    batch), ``users``, ``lengths``, ``items``, ``scored`` and, of windows with context, ``names``, ``events`` and
    ``times``. A worker beyond the last window of a batch gets the first one.
    """
    owned = [index[rank::world] if rank < len(index) else index[:1] for index in batches]
    own_W = np.concatenate(owned)
    length_W = windows.length_W[own_W].astype(np.int64)
    place_E = np.arange(length_W.sum()) - np.repeat(np.cumsum(length_W) - length_W, length_W)
    event_E = np.repeat(windows.start_W[own_W], length_W) + place_E
    scored_E = windows.scored_E[event_E] & (place_E >= np.repeat(windows.fresh_W[own_W], length_W))
    window_S = np.cumsum([0, *map(len, owned)])
    event_S = np.append(0, np.cumsum(length_W))[window_S]

    def lists(bounds_S: IntArray, values: pa.Array) -> pa.Array:
        return pa.LargeListArray.from_arrays(pa.array(bounds_S.astype(np.int64)), values)

    columns = {
        "step": pa.array(first + np.arange(len(batches))),
        "count": pa.array([len(index) for index in batches]),
        "targets": pa.array([int(windows.targets_W[index].sum()) for index in batches]),
        "users": lists(window_S, windows.users.take(pa.array(windows.user_W[own_W])).cast(pa.large_string())),
        "lengths": lists(window_S, pa.array(length_W)),
        "items": lists(event_S, pa.array(windows.items_E[event_E])),
        "scored": lists(event_S, pa.array(scored_E)),
    }
    if windows.event_E is not None and windows.time_E is not None:
        columns["names"] = pa.array([list(windows.names)] * len(batches), pa.list_(pa.string()))
        columns["events"] = lists(event_S, pa.array(windows.event_E[event_E]))
        columns["times"] = lists(event_S, pa.array(windows.time_E[event_E]))
    return pa.table(columns)


OpenPools = Callable[[int, int, int], Iterable[pa.Table]]
"""From a step, a rank and the number of workers to what the worker learns from there on, pool by pool, in order.

It may begin at an earlier step, or, at the beginning of a pool, at a later one.
"""


class StreamedEpochs:
    """The batches of a ``WindowStream``, one after another (``TrainingBatches`` protocol).

    Args:
        open_pools: reads the pools; this process does so itself by default.
    """

    hard: HardSamples | None = None

    def __init__(self, stream: WindowStream, open_pools: OpenPools | None = None) -> None:
        self._stream = stream
        self._open = open_pools or self._read_here
        self._rows: Iterator[pa.Table] | None = None
        self._row, self._step = pa.table({}), -1

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return self._stream.steps

    def count(self, step: int) -> int:
        """Number of windows in the batch of ``step``, which is the one that was asked for last."""
        return self._row["count"][0].as_py()

    def micro_batches(self, step: int, size: int, rank: int, world: int) -> tuple[list[Batch], int]:
        """This worker's part of a batch in pieces of ``size``, and the number of targets in the whole batch."""
        if self._rows is None or step < self._step:
            self._rows = self._rows_from(step, rank, world)
        while self._step != step:
            self._row = next(self._rows)
            self._step = self._row["step"][0].as_py()
            if self._step > step:
                raise RuntimeError(f"the stream of windows goes on at step {self._step}, wanted {step}")
        return _pieces(self._row, size), self._row["targets"][0].as_py()

    def is_recorded(self, step: int) -> bool:
        """Never: a stream has no second pass."""
        return False

    def record(
        self, step: int, pieces: Sequence[Tensor], rank: int, world: int, add: Callable[[Tensor], Tensor]
    ) -> None:
        """Nothing is kept."""

    def names(self, step: int) -> list[str]:
        """The users of this worker's windows in the batch of ``step``, which is the one that was asked for last."""
        return [f"user {user}" for user in self._row["users"][0].as_py()]

    def _rows_from(self, step: int, rank: int, world: int) -> Iterator[pa.Table]:
        """The rows from ``step`` on, or from an earlier one.

        What was opened may begin later, where a killed worker had come further than the last checkpoint that outlived
        it: the pools before it are read in this process.
        """
        opened = _single_rows(self._open(step, rank, world))
        if (first := next(opened, None)) is None:
            yield from _single_rows(self._read_here(step, rank, world))
            return
        missing = range(self._stream.pool_of(step), self._stream.pool_of(first["step"][0].as_py()))
        yield from _single_rows(self._stream.read(pool, rank, world) for pool in missing)
        yield first
        yield from opened

    def _read_here(self, step: int, rank: int, world: int) -> Iterator[pa.Table]:
        pool = self._stream.pool_of(step)
        while True:
            yield self._stream.read(pool, rank, world)
            pool += 1


def _single_rows(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    return chain.from_iterable((table.slice(row, 1) for row in range(table.num_rows)) for table in tables)


def _pieces(row: pa.Table, size: int) -> list[Batch]:
    """The windows of one row of ``own_batches``, padded within each piece."""
    found = {name: row[name][0].values for name in row.column_names if name not in ("step", "count", "targets")}
    users, length_B = found["users"].to_pylist(), found["lengths"].to_numpy()
    end_B = np.cumsum(length_B)
    pieces = list[Batch]()
    for first in range(0, len(length_B), size):
        own = slice(first, first + size)
        place_I = np.arange(length_B[own].max())
        inside_BI = place_I < length_B[own][:, None]
        events = slice(end_B[first] - length_B[first], end_B[own][-1])
        target_BI = _padded(inside_BI, found["scored"], events, False)
        context = None
        if "events" in found:
            event_BI, time_BI = (_padded(inside_BI, found[name], events, -1) for name in ("events", "times"))
            context = DenseContext(found["names"].to_pylist(), event_BI, time_BI)
        pieces.append(Dense(_padded(inside_BI, found["items"], events, -1), target_BI, users[own], context))
    return pieces


def _padded(inside_BI: np.ndarray, values: pa.Array, events: slice, padding: int | bool) -> Tensor:
    flat_E = values.to_numpy(zero_copy_only=False)[events]
    kind = np.bool_ if isinstance(padding, bool) else np.int64
    padded_BI = np.full(inside_BI.shape, padding, kind)
    padded_BI[inside_BI] = flat_E
    return torch.from_numpy(padded_BI)
