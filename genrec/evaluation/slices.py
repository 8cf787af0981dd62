"""Metrics by popularity bucket or event type of the target, numbers of categories, and use of the codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.baselines.buckets import BUCKETS
from genrec.metrics import FloatArray, IntArray, means


def by_bucket(values: dict[str, FloatArray], targets_Q: IntArray, bucket_N: IntArray) -> dict[str, dict[str, float]]:
    """Means of the per-query ``values`` (Q,) over the queries whose target is in each bucket, with their number.

    Args:
        bucket_N: each item's bucket, an index into ``BUCKETS``.
    """
    bucket_Q = bucket_N[targets_Q]
    table: dict[str, dict[str, float]] = {}
    for number, name in enumerate(BUCKETS):
        inside_Q = bucket_Q == number
        if inside_Q.any():
            part = means({key: vector[inside_Q] for key, vector in values.items()})
            table[name] = {"queries": int(inside_Q.sum()), "items": int((bucket_N == number).sum()), **part}
    return table


def by_event(values: dict[str, FloatArray], event_Q: Sequence[str | None]) -> dict[str, dict[str, float]]:
    """Means of the per-query ``values`` (Q,) over the queries with each event type, the most frequent first."""
    known_Q = np.array([name or "unknown" for name in event_Q], dtype=object)
    names, counts = np.unique(known_Q, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    inside = {str(names[i]): known_Q == names[i] for i in order}
    return {
        name: {"queries": int(at_Q.sum()), **means({key: vector[at_Q] for key, vector in values.items()})}
        for name, at_Q in inside.items()
    }


def category_numbers(items: pa.Table, level: int = -1) -> NDArray[np.int64]:
    """A number for each item's category path up to ``level`` (-1: the full path), (N,); -1 without categories."""
    numbers: dict[tuple[Any, ...], int] = {}
    paths: Sequence[Sequence[str] | None] = items.column("categories").to_pylist()
    category_N = np.full(len(paths), -1, dtype=np.int64)
    for row, path in enumerate(paths):
        if path:
            cut = tuple(path) if level == -1 else tuple(path[: level + 1])
            category_N[row] = numbers.setdefault(cut, len(numbers))
    return category_N


def sid_use(codes_NL: IntArray, level_sizes: Sequence[int]) -> dict[str, Any]:
    """Use of the codes: per level the items per code (most used first), the codes in use, and their perplexity.

    Perplexity is 2^H, H the entropy of the distribution of codes in bits: the number of equally frequent codes with the
    same entropy.
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
