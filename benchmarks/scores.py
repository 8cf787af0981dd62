"""What a ranking of items is worth on the queries of a split: metrics, of all and by slice, and what is recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from genrec.baselines.buckets import popularity_bucket
from genrec.data.tables import target_events
from genrec.evaluation.slices import by_bucket, by_event, category_numbers
from genrec.evaluation.spread import spread
from genrec.metrics import FloatArray, IntArray, means, per_query, target_ranks

KS = (10, 50)


@dataclass(frozen=True)
class RankingScorer:
    """Scores rankings (Q, K) of the queries with ``targets_Q``.

    ``counts_N``: train events of each item, which make the popularity buckets; ``category_N``: each item's category, -1
    for none; ``event_Q``: the targets' event types, empty where the log has none.
    """

    targets_Q: IntArray
    counts_N: IntArray
    category_N: IntArray
    event_Q: Sequence[str | None] = ()

    @classmethod
    def of(cls, queries: pa.Table, items: pa.Table, counts_N: IntArray) -> RankingScorer:
        """That of a table of queries and the table of all items."""
        targets_Q = queries["target"].to_numpy().astype(np.int64)
        return cls(targets_Q, counts_N, category_numbers(items), target_events(queries))

    @cached_property
    def bucket_N(self) -> IntArray:
        """Each item's popularity bucket."""
        return popularity_bucket(self.counts_N)

    def ranks(self, ranked_QK: IntArray) -> IntArray:
        """The rank of each target from 1, (Q,); 0: not found."""
        return target_ranks(ranked_QK, self.targets_Q)

    def per_query(self, ranked_QK: IntArray) -> dict[str, FloatArray]:
        """HR and NDCG at ``KS`` of each query, (Q,)."""
        return per_query(self.ranks(ranked_QK), KS)

    def scores(self, ranked_QK: IntArray) -> dict[str, float]:
        """The metrics, also as ``<metric>/<slice>`` by popularity bucket and event type; and what is recommended."""
        values = self.per_query(ranked_QK)
        slices: Mapping[str, Mapping[str, Any]] = by_bucket(values, self.targets_Q, self.bucket_N)
        if self.event_Q:
            slices = {**slices, **by_event(values, self.event_Q)}
        sliced = {f"{metric}/{name}": float(part[metric]) for name, part in slices.items() for metric in values}
        return means(values) | sliced | spread(ranked_QK, self.counts_N, self.category_N)
