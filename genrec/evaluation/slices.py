"""Where the hits come from: popularity buckets of the target, and how wide the recommendations spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.baselines.buckets import BUCKETS
from genrec.metrics import FloatArray, IntArray, means


def by_bucket(values: dict[str, FloatArray], targets_Q: IntArray, bucket_N: IntArray) -> dict[str, dict[str, float]]:
    """Means of the per-query ``values`` for the queries whose target lies in each bucket, with their number."""
    bucket_Q = bucket_N[targets_Q]
    table: dict[str, dict[str, float]] = {}
    for number, name in enumerate(BUCKETS):
        inside_Q = bucket_Q == number
        if inside_Q.any():
            part = means({key: vector[inside_Q] for key, vector in values.items()})
            table[name] = {"queries": int(inside_Q.sum()), "items": int((bucket_N == number).sum()), **part}
    return table


def coverage(ranked_QK: IntArray, n_items: int, k: int = 10) -> float:
    """Share of the catalogue that stands in someone's first k."""
    shown = np.unique(ranked_QK[:, :k])
    return int((shown >= 0).sum()) / n_items if n_items else 0.0


def category_entropy(ranked_QK: IntArray, category_N: IntArray, k: int = 10) -> float | None:
    """Mean over queries of the entropy, in bits, of the first k items' categories: 0 for one, log2(k) for k.

    ``category_N`` numbers the items' categories, -1 for none; items without one are left out. None without categories.
    """
    if not (category_N >= 0).any() or not len(ranked_QK):
        return None
    top_QK = ranked_QK[:, :k]
    category_QK = np.where(top_QK >= 0, category_N[np.maximum(top_QK, 0)], -1)
    query_QK = np.broadcast_to(np.arange(len(top_QK))[:, None], top_QK.shape)
    known_QK = category_QK >= 0
    keys = query_QK[known_QK] * (int(category_N.max()) + 1) + category_QK[known_QK]
    pairs_P, counts_P = np.unique(keys, return_counts=True)
    query_P = pairs_P // (int(category_N.max()) + 1)
    total_Q = np.bincount(query_P, counts_P, minlength=len(top_QK))
    share_P = counts_P / total_Q[query_P]
    return float(np.bincount(query_P, -share_P * np.log2(share_P), minlength=len(top_QK)).mean())


def category_numbers(items: pa.Table, level: int = -1) -> NDArray[np.int64]:
    """Number each item's category path up to ``level`` (-1: the whole path); -1 for an item without categories."""
    numbers: dict[tuple[Any, ...], int] = {}
    paths: Sequence[Sequence[str] | None] = items.column("categories").to_pylist()
    category_N = np.full(len(paths), -1, dtype=np.int64)
    for row, path in enumerate(paths):
        if path:
            cut = tuple(path) if level == -1 else tuple(path[: level + 1])
            category_N[row] = numbers.setdefault(cut, len(numbers))
    return category_N


def sid_use(codes_NL: IntArray, level_sizes: Sequence[int]) -> dict[str, Any]:
    """How the catalogue uses its codes: per level the items per code (most used first), codes used, perplexity.

    Perplexity is 2 to the entropy of the code distribution: the number of equally used codes that would carry as much.
    """
    levels: list[dict[str, Any]] = []
    for level, size in enumerate(level_sizes):
        counts_K = np.sort(np.bincount(codes_NL[:, level], minlength=size))[::-1]
        share_K = counts_K[counts_K > 0] / max(1, counts_K.sum())
        levels.append(
            {
                "size": int(size),
                "used": int((counts_K > 0).sum()),
                "perplexity": float(2.0 ** -(share_K * np.log2(share_K)).sum()),
                "counts": counts_K.tolist(),
            }
        )
    distinct = len(np.unique(codes_NL, axis=0))
    return {"items": len(codes_NL), "distinct": distinct, "levels": levels}
