"""What rankings recommend, whatever the targets: how many items and categories, how popular, how new."""

from __future__ import annotations

import numpy as np

from genrec.metrics import FloatArray, IntArray

LISTS_AT_ONCE = 2048
FEW_EVENTS = 4
"""An item with at most so many train events is a new one."""


def spread(
    ranked_QK: IntArray,
    train_counts_N: IntArray,
    category_N: IntArray | None = None,
    k: int = 10,
    *,
    recent_QH: IntArray | None = None,
    vectors_ND: FloatArray | None = None,
) -> dict[str, float]:
    """Of the first k items of each query, -1 for none, by ``name@k``:

    ``coverage``: distinct items among all queries' / N; ``new_items``: share of items with at most ``FEW_EVENTS`` train
    events; ``popularity``: mean train events of an item; ``gini``: of how often each item of the catalogue is
    recommended, 0 if all equally, 1 - 1 / N if one alone; ``novelty``: mean of -log2 of an item's share of the train
    events, each item counted once more than it occurs. Where items have categories also ``category_entropy``, mean
    over queries in bits, and ``unique_categories``, the mean number of distinct ones.

    Args:
        train_counts_N: train events of each item.
        category_N: number of each item's category, -1 for none.
        recent_QH: the histories, -1 for none; with them ``repetition``: share of items that are in the history.
        vectors_ND: item vectors; with them ``distance``: mean of 1 - cosine over the pairs of a list.
    """
    top_QK = ranked_QK[:, :k]
    items = top_QK[top_QK >= 0]
    counts = train_counts_N[items]
    found = {
        f"coverage@{k}": len(np.unique(items)) / len(train_counts_N) if len(train_counts_N) else 0.0,
        f"new_items@{k}": float((counts <= FEW_EVENTS).mean()) if len(items) else 0.0,
        f"popularity@{k}": float(counts.mean()) if len(items) else 0.0,
        f"gini@{k}": gini(np.bincount(items, minlength=len(train_counts_N))),
        f"novelty@{k}": _novelty(items, train_counts_N),
    }
    if recent_QH is not None:
        found[f"repetition@{k}"] = _repetition(top_QK, recent_QH)
    if vectors_ND is not None:
        found[f"distance@{k}"] = intra_list_distance(top_QK, vectors_ND)
    if category_N is None or not (category_N >= 0).any() or not len(top_QK):
        return found
    entropy_Q, unique_Q = category_entropy(top_QK, category_N)
    return found | {f"category_entropy@{k}": float(entropy_Q.mean()), f"unique_categories@{k}": float(unique_Q.mean())}


def gini(counts_N: IntArray) -> float:
    """Gini coefficient of the counts (N,): Σ_i (2 i - N - 1) c_i / (N Σ c), with counts ascending, i = 1 … N."""
    sorted_N, size, total = np.sort(counts_N), len(counts_N), float(counts_N.sum())
    if not total:
        return 0.0
    return float(((2 * np.arange(1, size + 1) - size - 1) * sorted_N).sum() / (size * total))


def intra_list_distance(top_QK: IntArray, vectors_ND: FloatArray) -> float:
    """Mean over lists (Q, K), -1 for none, of 1 - cosine over their pairs of items (Ziegler et al. 2005).

    With unit vectors v the sum of cosines over pairs is (|Σ v|² - n) / 2. Lists of one item are left out.
    """
    total, lists = 0.0, 0
    for start in range(0, len(top_QK), LISTS_AT_ONCE):
        part_QK = top_QK[start : start + LISTS_AT_ONCE]
        real_QK = part_QK >= 0
        many_Q = real_QK.sum(axis=1)
        vectors_QKD = vectors_ND[np.maximum(part_QK, 0)].astype(np.float64)
        vectors_QKD /= np.maximum(np.linalg.norm(vectors_QKD, axis=-1, keepdims=True), 1e-12)
        square_Q = ((vectors_QKD * real_QK[..., None]).sum(axis=1) ** 2).sum(axis=-1)
        pairs_Q = np.maximum(many_Q * (many_Q - 1), 1)
        total += float((1.0 - (square_Q - many_Q) / pairs_Q)[many_Q > 1].sum())
        lists += int((many_Q > 1).sum())
    return total / lists if lists else 0.0


def _novelty(items: IntArray, train_counts_N: IntArray) -> float:
    """Mean self-information in bits (Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma")."""
    if not len(items):
        return 0.0
    share_N = (train_counts_N + 1.0) / (float(train_counts_N.sum()) + len(train_counts_N))
    return float(-np.log2(share_N)[items].mean())


def _repetition(top_QK: IntArray, recent_QH: IntArray) -> float:
    real_QK = top_QK >= 0
    again_QK = np.zeros_like(real_QK)
    for item_Q in recent_QH.T:
        again_QK |= top_QK == item_Q[:, None]
    return float((again_QK & real_QK).sum() / max(1, real_QK.sum()))


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
