"""Which training queries an update learns from: a function of (seed, step), so a resumed run has the same ones."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from genrec.data.tables import to_queries
from genrec.errors import InputError
from genrec.metrics import IntArray
from genrec.seeds import generator_of
from genrec.types import Query


class Draws:
    """An endless stream of shuffled epochs over R queries, in batches, which each worker gets an equal share of.

    The stream, and so every batch, is the same for any number of workers. A batch may hold the end of an epoch and the
    start of the next one.

    Args:
        queries: R.

    Raises:
        InputError: there is no training query, or workers cannot share a batch equally.
    """

    def __init__(self, queries: int, batch_size: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        if queries == 0:
            raise InputError("got no training query, wanted at least one; check data.split and data.filters")
        if batch_size % world:
            raise InputError(
                f"got {batch_size} queries in a batch and {world} workers, wanted an equal number for each; "
                "set learning.rl.queries to a multiple of compute.workers"
            )
        self.queries = queries
        self._size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        # A batch reaches into the next epoch; what was shuffled is used until its epoch ends.
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def of_step(self, step: int) -> range:
        """The numbers of this worker's draws for update ``step``, (D,)."""
        return range(step * self._size + self._rank, (step + 1) * self._size, self._world)

    def rows(self, draws: range) -> IntArray:
        """The query, 0 … R - 1, of each of this worker's draws, (D,)."""
        epochs, places = np.divmod(np.arange(draws.start, draws.stop, draws.step), self.queries)
        return np.concatenate([self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def rows_until(self, steps: int) -> IntArray:
        """The queries that this worker draws in ``steps`` updates, each once, in order; all, if these are an epoch."""
        if steps * self._size >= self.queries:
            return np.arange(self.queries)
        return np.unique(self.rows(range(self._rank, steps * self._size, self._world)))

    def _shuffled(self, epoch: int) -> IntArray:
        """The queries in the order of an epoch."""
        order_R = np.arange(self.queries, dtype=np.min_scalar_type(-self.queries))
        generator_of("queries", self._seed, epoch).shuffle(order_R)
        return order_R


class QueryStream:
    """The queries of a table that a worker draws.

    Args:
        queries: (R,), the train queries; or those of them that ``rows`` says.
        rows: the numbers of the table's rows among all train queries, in order; None: the table has all.
    """

    def __init__(self, queries: pa.Table, draws: Draws, rows: IntArray | None = None) -> None:
        context = [name for name in ("events", "times", "event") if name in queries.column_names]
        self._table = queries.select(["id", "user", "history", "target", *context]).combine_chunks()
        self._draws, self._rows = draws, rows

    def __call__(self, step: int) -> list[Query]:
        """This worker's queries of update ``step``."""
        draws = self._draws.of_step(step)
        drawn = self._draws.rows(draws)
        index = drawn if self._rows is None else np.searchsorted(self._rows, drawn)
        queries = zip(to_queries(self._table.take(index)), draws, strict=True)
        return [replace(query, draw=draw) for query, draw in queries]
