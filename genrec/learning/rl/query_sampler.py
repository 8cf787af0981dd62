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


class QueryStream:
    """Cuts an endless stream of shuffled epochs into batches, which each worker gets an equal share of.

    The stream, and so every batch, is the same for any number of workers. A batch may hold the end of an epoch and the
    start of the next one.

    Raises:
        InputError: there is no training query, or workers cannot share a batch equally.
    """

    def __init__(self, queries: pa.Table, batch_size: int, *, seed: int, rank: int, world: int) -> None:
        if queries.num_rows == 0:
            raise InputError("got no training query, wanted at least one; check data.split and data.filters")
        if batch_size % world:
            raise InputError(
                f"got {batch_size} queries in a batch and {world} workers, wanted an equal number for each; "
                "set learning.rl.queries to a multiple of compute.workers"
            )
        context = [name for name in ("events", "times", "event") if name in queries.column_names]
        self._table = queries.select(["id", "user", "history", "target", *context]).combine_chunks()
        self._size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        # A batch reaches into the next epoch; what was shuffled is used until its epoch ends.
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __call__(self, step: int) -> list[Query]:
        """This worker's queries of update ``step``."""
        draws = range(step * self._size + self._rank, (step + 1) * self._size, self._world)
        epochs, places = np.divmod(np.array(draws), self._table.num_rows)
        index = np.concatenate([self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        queries = zip(to_queries(self._table.take(index)), draws, strict=True)
        return [replace(query, draw=draw) for query, draw in queries]

    def _shuffled(self, epoch: int) -> IntArray:
        """The rows of the table in the order of an epoch."""
        return generator_of("queries", self._seed, epoch).permutation(self._table.num_rows)
