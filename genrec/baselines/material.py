"""What baselines are made from and chosen by: the train log, and a sample of the validation queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.baselines.ranking import Baseline, target_ranks_of
from genrec.baselines.train_log import TrainLog, read_train_log, recent_history
from genrec.data.readers import read_items, read_queries
from genrec.metrics import IntArray, per_query


@dataclass(frozen=True)
class Material:
    """The train log, and at most ``eval_queries`` validation queries: ``recent_QH``, ``targets_Q`` and ``users_Q``.

    ``users_Q`` are numbered as those of the log.
    """

    log: TrainLog
    recent_QH: IntArray
    targets_Q: IntArray
    users_Q: IntArray
    max_history: int
    seed: int

    @classmethod
    def read(cls, data: Path, max_history: int, *, seed: int, eval_queries: int) -> Material:
        """From the directory that ``prepare`` wrote; ``seed`` draws the sample, and all that baselines draw."""
        log = read_train_log(data, read_items(data).num_rows)
        valid = _sample(read_queries(data, "valid"), eval_queries, seed)
        targets_Q = valid["target"].to_numpy().astype(np.int64)
        return cls(log, recent_history(valid, max_history), targets_Q, users_of(valid), max_history, seed)

    def ndcg(self, model: Baseline) -> float:
        """Validation NDCG@10 of ``model``; 0 where there is no query."""
        masks = self.log.mask_seen
        ranks_Q = target_ranks_of(model, self.recent_QH, self.targets_Q, mask_seen=masks, users_Q=self.users_Q)
        return float(per_query(ranks_Q, (10,))["ndcg@10"].mean()) if len(ranks_Q) else 0.0


def users_of(queries: pa.Table) -> NDArray[np.int64]:
    """The user (Q,) of each query, numbered as in ``TrainLog.users_E``: by rows of the sequences."""
    return queries["user"].to_numpy().astype(np.int64)


def _sample(queries: pa.Table, count: int, seed: int) -> pa.Table:
    if queries.num_rows <= count:
        return queries
    rows = np.random.default_rng(seed).choice(queries.num_rows, count, replace=False)
    return queries.take(pa.array(np.sort(rows)))
