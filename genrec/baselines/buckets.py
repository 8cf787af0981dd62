"""Popularity buckets of items: head, middle and tail by thirds of the train events, and items without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genrec.metrics import IntArray

BUCKETS = ("head", "middle", "tail", "unseen")


def popularity_bucket(train_counts_N: IntArray) -> NDArray[np.int64]:
    """The bucket (N,) of each item, an index into ``BUCKETS``, from its number of train events ``train_counts_N``.

    Items are ordered by train events, most first (ties: lower row first). Those with the first third of all events are
    head, with the second third middle, with the last third tail; items without a train event are unseen. An item across
    a border belongs to the bucket in which its events begin.
    """
    order_N = np.argsort(-train_counts_N, kind="stable")
    traffic_N = train_counts_N[order_N].astype(np.float64)
    before_N = np.cumsum(traffic_N) - traffic_N
    bucket_N = np.empty(len(train_counts_N), dtype=np.int64)
    bucket_N[order_N] = np.minimum(3.0 * before_N / max(1.0, traffic_N.sum()), 2.0).astype(np.int64)
    return np.where(train_counts_N > 0, bucket_N, BUCKETS.index("unseen"))
