"""Health of semantic IDs: figures that tell how good they are before any training.

Figures of codes are those of all items. Of a large catalogue, figures of vectors are those of a sample of its items,
and come with their error: half of a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.sid.distributed.vector_stream import Reader
from genrec.sid.health_warnings import find_warnings
from genrec.sid.prefixes import prefix_numbers
from genrec.sid.quantizers.base import Quantizer
from genrec.sid.train_events import IntArray, TrainEvents
from genrec.sid.vectors import Floats, Ints, Longs, unit_rows

NEAREST = 10
SAMPLE, PAIRS, POOL = 5000, 50_000, 50_000
"""Items whose neighbours are searched, pairs that are compared, and items whose vectors are read; fixed seeds."""
MOST_PAIRS = 1 << 23
"""Pairs of events that the compared ones are drawn from."""
DEVIATIONS = 1.96
"""Standard errors in half of a 95 % interval."""


def measure(
    before_NL: Ints,
    codes_NL: Ints,
    level_sizes: Sequence[int],
    events: TrainEvents,
    vectors: Reader | None = None,
    quantizer: Quantizer | None = None,
) -> dict[str, Any]:
    """The contents of ``sid_health.json``; measures of vectors are left out if there are none.

    Args:
        before_NL, codes_NL: codes before and after collision resolution; ``codes_NL`` may have one level more.
        level_sizes: those of ``codes_NL``.
        events: the train events.
        vectors: the quantized vectors (N, D); quantizer: what made the codes, for reconstruction errors.
    """
    traffic_N, levels = events.counts(len(codes_NL)), before_NL.shape[1]
    health: dict[str, Any] = {
        "items": len(codes_NL),
        "level_sizes": list(level_sizes),
        "collisions_before": collisions(before_NL, level_sizes[:levels], traffic_N),
        "collisions_after": collisions(codes_NL, level_sizes, traffic_N),
        "moved": float((before_NL != codes_NL[:, :levels]).any(axis=1).mean()),
        "levels": level_use(codes_NL, level_sizes),
        "tree": tree_shape(codes_NL, level_sizes),
        "bought_together": pair_agreement(*events.adjacent_pairs(MOST_PAIRS), codes_NL, level_sizes),
    }
    if vectors is not None:
        rows = sample_rows(len(codes_NL), POOL)
        health |= _of_vectors(vectors.read(rows), before_NL[rows], codes_NL[rows], level_sizes, quantizer)
        if len(rows) < len(codes_NL):
            health["sampled_items"] = len(rows)
        else:
            health.pop("errors")
    return health | {"warnings": find_warnings(health)}


def _of_vectors(
    vectors_ND: Floats, before_NL: Ints, codes_NL: Ints, level_sizes: Sequence[int], quantizer: Quantizer | None
) -> dict[str, Any]:
    """The figures of vectors, and under ``errors`` those of the figures that would differ for other items."""
    found: dict[str, Any] = {"errors": {}}
    levels = before_NL.shape[1]
    if quantizer is not None:
        found["reconstruction_before"] = reconstruction(vectors_ND, before_NL, quantizer)
        found["reconstruction"] = reconstruction(vectors_ND, codes_NL[:, :levels], quantizer)
        found["errors"]["reconstruction"] = reconstruction_error(vectors_ND, codes_NL[:, :levels], quantizer)
    agree_QL = neighbours_that_agree(vectors_ND, codes_NL, level_sizes)
    found["neighbour_agreement"] = agree_QL.mean(axis=0).tolist()
    found["errors"]["neighbour_agreement"] = half_interval(agree_QL).tolist()
    return found


def half_interval(values_QL: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Half of the 95 % interval of each column's mean (L,), by the normal approximation."""
    return DEVIATIONS * values_QL.std(axis=0) / max(1, len(values_QL)) ** 0.5


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


def reconstruction_error(vectors_ND: Floats, codes_NL: Ints, quantizer: Quantizer) -> list[float]:
    """Half of the 95 % interval of each figure of ``reconstruction``, if the items (N,) are a sample of more.

    Of a ratio Σe / Σs the standard error is that of the mean of e - (Σe / Σs) s, over the mean of s (Cochran, "Sampling
    Techniques", 1977, section 2.11).
    """
    spread_N = np.square(vectors_ND - vectors_ND.mean(axis=0)).sum(axis=1)
    halves: list[float] = []
    for level in range(codes_NL.shape[1]):
        error_N = np.square(vectors_ND - quantizer.decode(codes_NL[:, : level + 1])).sum(axis=1)
        share = error_N.sum() / max(spread_N.sum(), 1e-12)
        halves.append(float(half_interval(error_N - share * spread_N) / max(spread_N.mean(), 1e-12)))
    return halves


def neighbour_agreement(vectors_ND: Floats, codes_NL: Ints, level_sizes: Sequence[int]) -> list[float]:
    """Per prefix length 1 … L: the fraction of an item's 10 nearest vectors (by cosine) with the same prefix."""
    return neighbours_that_agree(vectors_ND, codes_NL, level_sizes).mean(axis=0).tolist()


def neighbours_that_agree(vectors_ND: Floats, codes_NL: Ints, level_sizes: Sequence[int]) -> npt.NDArray[np.float64]:
    """``neighbour_agreement`` of each item of a sample, (Q, L); zeros if there is one item alone."""
    unit_ND = unit_rows(vectors_ND)
    rows = sample_rows(len(unit_ND), SAMPLE)
    agree_QL = np.zeros((len(rows), len(level_sizes)))
    prefixes = [prefix_numbers(codes_NL[:, : level + 1], level_sizes) for level in range(len(level_sizes))]
    nearest = min(NEAREST, len(unit_ND) - 1)
    for start in range(0, len(rows) if nearest else 0, 256):
        part = rows[start : start + 256]
        similar_PN = unit_ND[part] @ unit_ND.T
        similar_PN[np.arange(len(part)), part] = -np.inf
        near_PJ = np.argpartition(-similar_PN, nearest - 1, axis=1)[:, :nearest]
        for level, number_N in enumerate(prefixes):
            agree_QL[start : start + 256, level] = (number_N[near_PJ] == number_N[part, None]).mean(axis=1)
    return agree_QL


def pair_agreement(
    left_P: IntArray, right_P: IntArray, codes_NL: Ints, level_sizes: Sequence[int]
) -> dict[str, list[float]]:
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


def sample_rows(rows: int, most: int) -> Longs:
    """All row numbers, or ``most`` of them drawn by a fixed seed; ascending."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
