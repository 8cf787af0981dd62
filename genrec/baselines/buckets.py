"""Popularity buckets of items: head, middle and tail by thirds of the train traffic, and items never seen in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genrec.metrics import IntArray

BUCKETS = ("head", "middle", "tail", "unseen")


def popularity_bucket(train_counts_N: IntArray) -> NDArray[np.int64]:
    """Bucket of each item, an index into ``BUCKETS``, by thirds of the train traffic.

    Items in order of train events, most first (ties to the lower row): those that make up the first third of all
    events are head, the second third middle, the last third tail; items without a train event are
    unseen. An item that spans a border belongs to the bucket in which its traffic begins.
    """
    order_N = np.argsort(-train_counts_N, kind="stable")
    traffic_N = train_counts_N[order_N].astype(np.float64)
    before_N = np.cumsum(traffic_N) - traffic_N
    bucket_N = np.empty(len(train_counts_N), dtype=np.int64)
    bucket_N[order_N] = np.minimum(3.0 * before_N / max(1.0, traffic_N.sum()), 2.0).astype(np.int64)
    return np.where(train_counts_N > 0, bucket_N, BUCKETS.index("unseen"))
