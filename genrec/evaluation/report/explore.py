"""What the report lets people look through: users with all systems' answers, the catalogue as a map and a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.metrics import FloatArray, IntArray
from genrec.sid.vectors import VectorFiles

USERS, TOP, RECENT = 20, 5, 12
"""Users that are shown, items of each system, and events of each history."""

ITEMS = 2500
"""Items of the map and the tree: a larger catalogue is sampled, so that a phone can open the page."""

BLOCK = 2**16
"""Item vectors that are read at a time."""

LABEL = 120
"""Characters of a title on the map."""


def user_answers(
    histories: Sequence[Sequence[int]],
    targets_Q: IntArray,
    systems: Mapping[str, IntArray],
    titles: Sequence[str | None],
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Twenty users, drawn by ``seed``, each with history (oldest first), target, and every system's first five items.

    Args:
        histories: item numbers of each query, oldest first.
        targets_Q: the item that came next, (Q,).
        systems: rankings (Q, K) by name, -1 for none.
        titles: of the whole catalogue.

    Returns:
        ``{"history", "target", "systems": {name: {"recommended": [title], "rank": from 1, 0 where not found}}}``.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(targets_Q))[:USERS])

    def answer(ranked_K: IntArray, target: int) -> dict[str, Any]:
        found = np.flatnonzero(ranked_K == target)
        shown = [_title(titles, item) for item in ranked_K[:TOP].tolist() if item >= 0]
        return {"recommended": shown, "rank": int(found[0]) + 1 if len(found) else 0}

    return [
        {
            "history": [_title(titles, item) for item in histories[row][-RECENT:]],
            "earlier": max(0, len(histories[row]) - RECENT),
            "target": _title(titles, int(targets_Q[row])),
            "systems": {name: answer(ranked_QK[row], int(targets_Q[row])) for name, ranked_QK in systems.items()},
        }
        for row in rows.tolist()
    ]


def shown_items(count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Numbers of the items on the map and in the tree, (M,): all of them, or 2,500 drawn by ``seed``."""
    if count <= ITEMS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, ITEMS, replace=False))


def catalog_view(
    codes_NL: IntArray, titles: Sequence[str | None], vectors: Path | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """The catalogue for the map and the tree, in the order of the semantic IDs; a large one is sampled by ``seed``.

    The two axes of the map are the first two principal components of the item vectors, or of the codes, one-hot, where
    there are none.

    Args:
        codes_NL: each item's semantic ID.
        vectors: the directory of the stage "embed".

    Returns:
        ``{"items", "axes", "rows": [[title, x, y, code, …]]}``; ``items``: the size of the whole catalogue.
    """
    chosen_M = shown_items(len(codes_NL), seed=seed)
    codes_ML = codes_NL[chosen_M]
    points_M2 = principal_components(_one_hot(codes_ML) if vectors is None else _vectors_of(vectors, chosen_M))
    order = np.lexsort(codes_ML.T[::-1])
    rows = [
        [_title(titles, int(chosen_M[row]))[:LABEL], *points_M2[row].round(3).tolist(), *codes_ML[row].tolist()]
        for row in order.tolist()
    ]
    return {"items": len(codes_NL), "axes": "codes" if vectors is None else "vectors", "rows": rows}


def _vectors_of(directory: Path, chosen_M: IntArray) -> FloatArray:
    """The vectors (M, D) of ascending item numbers, read block by block."""
    files = VectorFiles(directory)
    blocks = range(0, len(files), BLOCK)
    inside = [chosen_M[(chosen_M >= start) & (chosen_M < start + BLOCK)] - start for start in blocks]
    return np.concatenate([files.read(start, start + BLOCK)[rows] for start, rows in zip(blocks, inside, strict=True)])


def principal_components(vectors_MD: FloatArray) -> FloatArray:
    """The first two principal components (M, 2), each scaled to a largest value of 1."""
    from scipy.sparse.linalg import svds

    centred = np.asarray(vectors_MD, dtype=np.float64) - np.mean(vectors_MD, axis=0, dtype=np.float64)
    points_M2 = np.zeros((len(centred), 2))
    if min(centred.shape) > 2 and centred.any():
        left, sizes, _ = svds(centred, k=2, v0=np.random.default_rng(0).standard_normal(min(centred.shape)))
        points_M2 = (left * sizes)[:, ::-1]
    else:
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        points_M2[:, : len(sizes)] = (left * sizes)[:, :2]
    largest = points_M2[np.abs(points_M2).argmax(axis=0), [0, 1]] if len(points_M2) else np.ones(2)
    return points_M2 / np.where(np.abs(largest) > 1e-12, largest, 1.0)


def _one_hot(codes_ML: IntArray) -> FloatArray:
    """Columns of zeros and ones (M, codes of all levels)."""
    levels = [np.eye(int(column.max(initial=0)) + 1)[column] for column in codes_ML.T]
    return np.concatenate(levels, axis=1)


def _title(titles: Sequence[str | None], item: int) -> str:
    return titles[item] or f"(item {item}, no title)"
