"""What rankings recommend, whatever the targets: how many items and categories, how popular, how new."""

from __future__ import annotations

import numpy as np

from genrec.metrics import IntArray

FEW_EVENTS = 4
"""An item with at most so many train events is a new one."""


def spread(
    ranked_QK: IntArray, train_counts_N: IntArray, category_N: IntArray | None = None, k: int = 10
) -> dict[str, float]:
    """Of the first k items of each query, -1 for none, by ``name@k``:

    ``coverage``: distinct items among all queries' / N; ``new_items``: share of items with at most ``FEW_EVENTS`` train
    events; ``popularity``: mean train events of an item. Where items have categories also ``category_entropy``, mean
    over queries in bits, and ``unique_categories``, the mean number of distinct ones.

    Args:
        train_counts_N: train events of each item.
        category_N: number of each item's category, -1 for none.
    """
    top_QK = ranked_QK[:, :k]
    items = top_QK[top_QK >= 0]
    counts = train_counts_N[items]
    found = {
        f"coverage@{k}": len(np.unique(items)) / len(train_counts_N) if len(train_counts_N) else 0.0,
        f"new_items@{k}": float((counts <= FEW_EVENTS).mean()) if len(items) else 0.0,
        f"popularity@{k}": float(counts.mean()) if len(items) else 0.0,
    }
    if category_N is None or not (category_N >= 0).any() or not len(top_QK):
        return found
    entropy_Q, unique_Q = category_entropy(top_QK, category_N)
    return found | {f"category_entropy@{k}": float(entropy_Q.mean()), f"unique_categories@{k}": float(unique_Q.mean())}


def of_targets(targets_Q: IntArray, train_counts_N: IntArray) -> dict[str, float]:
    """The ``popularity`` and ``new_items`` of the targets themselves, to compare those of rankings with."""
    counts_Q = train_counts_N[targets_Q]
    return {"popularity": float(counts_Q.mean()), "new_items": float((counts_Q <= FEW_EVENTS).mean())}


def category_entropy(top_QK: IntArray, category_N: IntArray) -> tuple[np.ndarray, np.ndarray]:
    """-Σ_c p_c log2 p_c of the shares p of a query's categories c, and their number, both (Q,).

    0 bits if its items have one category, log2(K) if K. Items without a category are left out.
    """
    category_QK = np.where(top_QK >= 0, category_N[np.maximum(top_QK, 0)], -1)
    query_QK = np.broadcast_to(np.arange(len(top_QK))[:, None], top_QK.shape)
    known_QK, size = category_QK >= 0, int(category_N.max()) + 1
    pairs_P, counts_P = np.unique(query_QK[known_QK] * size + category_QK[known_QK], return_counts=True)
    query_P, queries = pairs_P // size, len(top_QK)
    share_P = counts_P / np.bincount(query_P, counts_P, minlength=queries)[query_P]
    entropy_Q = np.bincount(query_P, -share_P * np.log2(share_P), minlength=queries)
    return entropy_Q.astype(np.float64), np.bincount(query_P, minlength=queries)  # of no item, bincount counts in ints
