"""Health of semantic IDs: figures that tell how good they are before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from genrec.sid.health_warnings import find_warnings
from genrec.sid.inputs import TRAIN, train_pairs
from genrec.sid.prefixes import prefix_numbers
from genrec.sid.quantizers.base import Quantizer
from genrec.sid.vectors import Floats, Ints, Longs, unit_rows

NEAREST = 10
SAMPLE, PAIRS, POOL = 5000, 50_000, 50_000
"""Items whose neighbours are searched, pairs that are compared, and items whose vectors are read; fixed seeds."""


def measure(
    before_NL: Ints,
    codes_NL: Ints,
    level_sizes: Sequence[int],
    sequences: pa.Table,
    vectors_ND: Floats | None = None,
    quantizer: Quantizer | None = None,
) -> dict[str, Any]:
    """The contents of ``sid_health.json``; measures of vectors are left out if there are none.

    Args:
        before_NL, codes_NL: codes before and after collision resolution; ``codes_NL`` may have one level more.
        level_sizes: those of ``codes_NL``.
        sequences: the sequence table; only train positions are used.
        vectors_ND: the quantized vectors; quantizer: what made the codes, for reconstruction errors.
    """
    traffic_N, levels = np.bincount(_train_items(sequences), minlength=len(codes_NL)), before_NL.shape[1]
    left, right, _ = train_pairs(sequences, 1)
    health: dict[str, Any] = {
        "items": len(codes_NL),
        "level_sizes": list(level_sizes),
        "collisions_before": collisions(before_NL, level_sizes[:levels], traffic_N),
        "collisions_after": collisions(codes_NL, level_sizes, traffic_N),
        "moved": float((before_NL != codes_NL[:, :levels]).any(axis=1).mean()),
        "levels": level_use(codes_NL, level_sizes),
        "tree": tree_shape(codes_NL, level_sizes),
        "bought_together": pair_agreement(left, right, codes_NL, level_sizes),
    }
    rows = _sample(len(codes_NL), POOL)
    if vectors_ND is not None and quantizer is not None:
        health["reconstruction_before"] = reconstruction(vectors_ND[rows], before_NL[rows], quantizer)
        health["reconstruction"] = reconstruction(vectors_ND[rows], codes_NL[rows, :levels], quantizer)
    if vectors_ND is not None:
        health["neighbour_agreement"] = neighbour_agreement(vectors_ND[rows], codes_NL[rows], level_sizes)
    return health | {"warnings": find_warnings(health)}


def summary(health: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of ``measure`` for a stage's metrics."""
    return {
        "items": health["items"],
        "collisions_before": health["collisions_before"]["rate"],
        "collisions_after": health["collisions_after"]["rate"],
        "codes_used": [int(level["used"]) for level in health["levels"]],
        "perplexity": [round(level["perplexity"], 1) for level in health["levels"]],
        "reconstruction": [round(error, 4) for error in health.get("reconstruction", [])],
        "warnings": health["warnings"],
    }


def _train_items(sequences: pa.Table) -> Ints:
    train = np.isin(sequences["split"].combine_chunks().flatten().to_numpy(), TRAIN)
    return sequences["items"].combine_chunks().flatten().to_numpy()[train]


def collisions(codes_NL: Ints, level_sizes: Sequence[int], traffic_N: Longs | None = None) -> dict[str, float]:
    """How many items share a SID, from codes (N, L) and, optionally, train interactions per item (N,).

    Returns:
        rate: 1 - distinct SIDs / items (the collision rate); items: the number of items that share a SID;
        traffic: the fraction of train interactions with such items (if ``traffic_N`` is given).
    """
    _, which_N, counts = np.unique(prefix_numbers(codes_NL, level_sizes), return_inverse=True, return_counts=True)
    shared_N = counts[which_N] > 1
    found = {"rate": 1 - len(counts) / len(codes_NL), "items": float(shared_N.sum())}
    if traffic_N is not None and traffic_N.sum() > 0:
        found["traffic"] = float(traffic_N[shared_N].sum() / traffic_N.sum())
    return found


def level_use(codes_NL: Ints, level_sizes: Sequence[int]) -> list[dict[str, float]]:
    """Per level of codes (N, L): codes used and dead, perplexity exp(-Σ p log p), and Gini (0: even, 1: one code)."""
    levels: list[dict[str, float]] = []
    for level, size in enumerate(level_sizes):
        count_K = np.bincount(codes_NL[:, level], minlength=size)
        share_K = count_K[count_K > 0] / count_K.sum()
        ranked_K = np.sort(count_K)
        gini = 1 - 2 * float(np.sum(np.cumsum(ranked_K) / count_K.sum()) - 0.5) / size
        levels.append(
            {
                "codes": float(size),
                "used": float(len(share_K)),
                "dead": float(size - len(share_K)),
                "perplexity": float(np.exp(-np.sum(share_K * np.log(share_K)))),
                "gini": gini,
            }
        )
    return levels


def tree_shape(codes_NL: Ints, level_sizes: Sequence[int]) -> list[dict[str, float]]:
    """Per level of codes (N, L): mean children per prefix, and the fraction of items whose code is an only child."""
    levels: list[dict[str, float]] = []
    parent_N = np.zeros(len(codes_NL), np.int64)
    for level in range(len(level_sizes)):
        nodes, child_N = np.unique(prefix_numbers(codes_NL[:, : level + 1], level_sizes), return_inverse=True)
        parents = np.empty(len(nodes), np.int64)
        parents[child_N] = parent_N
        children = np.bincount(parents)
        levels.append({"branching": float(children.mean()), "forced": float((children[parent_N] == 1).mean())})
        parent_N = child_N
    return levels


def reconstruction(vectors_ND: Floats, codes_NL: Ints, quantizer: Quantizer) -> list[float]:
    """Σ|x - decode(c_1 … c_l)|² / Σ|x - mean|² for l = 1 … L: 0 is exact, 1 as good as the mean vector."""
    spread = np.square(vectors_ND - vectors_ND.mean(axis=0)).sum()
    return [
        float(np.square(vectors_ND - quantizer.decode(codes_NL[:, : level + 1])).sum() / max(spread, 1e-12))
        for level in range(codes_NL.shape[1])
    ]


def neighbour_agreement(vectors_ND: Floats, codes_NL: Ints, level_sizes: Sequence[int]) -> list[float]:
    """Per prefix length 1 … L: the fraction of an item's 10 nearest vectors (by cosine) with the same prefix."""
    unit_ND = unit_rows(vectors_ND)
    rows = _sample(len(unit_ND), SAMPLE)
    agree_L, looked = np.zeros(len(level_sizes)), 0
    prefixes = [prefix_numbers(codes_NL[:, : level + 1], level_sizes) for level in range(len(level_sizes))]
    nearest = min(NEAREST, len(unit_ND) - 1)
    for start in range(0, len(rows) if nearest else 0, 256):
        part = rows[start : start + 256]
        similar_PN = unit_ND[part] @ unit_ND.T
        similar_PN[np.arange(len(part)), part] = -np.inf
        near_PJ = np.argpartition(-similar_PN, nearest - 1, axis=1)[:, :nearest]
        looked += near_PJ.size
        agree_L += [float((number_N[near_PJ] == number_N[part, None]).sum()) for number_N in prefixes]
    return [float(value) for value in agree_L / max(looked, 1)]


def pair_agreement(left_P: Ints, right_P: Ints, codes_NL: Ints, level_sizes: Sequence[int]) -> dict[str, list[float]]:
    """Per prefix length 1 … L: the fraction of item pairs (P,) with the same prefix, and of random pairs."""
    rng = np.random.default_rng(0)
    different = np.flatnonzero(left_P != right_P)
    if len(different) == 0:
        return {"together": [], "random": []}
    pairs = rng.choice(different, min(len(different), PAIRS), replace=False)
    shuffled = rng.permutation(right_P[pairs])
    found: dict[str, list[float]] = {"together": [], "random": []}
    for level in range(len(level_sizes)):
        number_N = prefix_numbers(codes_NL[:, : level + 1], level_sizes)
        left = number_N[left_P[pairs]]
        found["together"].append(float((left == number_N[right_P[pairs]]).mean()))
        found["random"].append(float((left == number_N[shuffled]).mean()))
    return found


def _sample(rows: int, most: int) -> Longs:
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
