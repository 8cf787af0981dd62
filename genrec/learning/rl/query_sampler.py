"""Which training queries an update learns from: a function of (seed, step), so a resumed run has the same ones."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from genrec.errors import InputError
from genrec.types import Query


class QueryStream:
    """Cuts the training queries into batches, shuffled anew each epoch; each worker gets an equal share of a batch.

    Raises:
        InputError: fewer queries in a batch than workers.
    """

    def __init__(self, queries: pa.Table, batch_size: int, *, seed: int, rank: int, world: int) -> None:
        self._table = queries.select(["id", "user", "history", "target"])
        self._size = min(batch_size, queries.num_rows) // world * world
        if self._size == 0:
            raise InputError(
                f"{queries.num_rows} training queries in batches of {batch_size} cannot be shared by {world} workers: "
                "got fewer queries in a batch than workers, wanted one each; use fewer workers or a larger "
                "learning.rl.queries"
            )
        self._seed, self._rank, self._world = seed, rank, world

    def __call__(self, step: int) -> list[Query]:
        """This worker's queries of update ``step``."""
        per_epoch = self._table.num_rows // self._size
        epoch, within = divmod(step, per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(self._table.num_rows)
        index = order[within * self._size : (within + 1) * self._size][self._rank :: self._world]
        rows = self._table.take(index).to_pylist()
        return [Query(row["id"], row["user"], tuple(row["history"]), row["target"]) for row in rows]
