"""Residual k-means whose clusters are neither crowded nor empty."""

from __future__ import annotations

import numpy as np

from genrec.errors import InputError
from genrec.sid.quantizers.base import BLOCK, Tensors, half_distances, nearest
from genrec.sid.quantizers.kmeans import kmeans
from genrec.sid.quantizers.rqkmeans import RqKmeans
from genrec.sid.vectors import Floats, Ints

POINTS = 256
"""Vectors per code that a level is balanced on, at most (as many as faiss trains on)."""
CACHED = 2**26
"""Distances that are kept between price steps (256 MiB); above that they are computed again."""
STEPS, LAST_STEPS = 20, 300


class BalancedRqKmeans(RqKmeans):
    """RQ-KMeans whose cluster sizes lie within ``sid.balance`` mean sizes at every level.

    Each code carries a price that is added to its squared distances: it rises while the cluster is above the upper
    bound and falls while it is below the lower one. The clusters are then the cells of a power diagram, which is what
    the cheapest assignment under capacities is (Aurenhammer, Hoffmann & Aronov, "Minkowski-Type Theorems and
    Least-Squares Clustering", 1998); the idea of balancing is OneRec's (Deng et al. 2025, Algorithm 1). Unlike an
    assignment solved over all items, prices also place an item that comes later, and each shard on its own.

    The bounds hold for the vectors that were fitted (``sid.fit_items``); identical vectors cannot be parted.
    """

    def fit(self, vectors_ND: Floats) -> dict[str, float]:
        """Cluster level by level; returns error, and smallest and largest cluster in mean sizes, after each level."""
        low, high = self.settings.balance
        if not 0 <= low <= 1 <= high:
            raise InputError(f"sid.balance={low, high}: a lower bound in [0, 1] and an upper one >= 1 were expected")
        self.check_fit(vectors_ND)
        self.codebooks, self.penalties = [], []
        left_ND = np.array(vectors_ND, np.float32, order="C")
        measures: dict[str, float] = {}
        for level, codes in enumerate(self.level_sizes):
            codebook_KD, price_K = self._balance(left_ND, codes, level)
            self.codebooks.append(codebook_KD)
            self.penalties.append(price_K)
            code_N = nearest(left_ND, codebook_KD, price_K)
            left_ND -= codebook_KD[code_N]
            share_K = np.bincount(code_N, minlength=codes) * codes / len(code_N)
            measures[f"error_{level + 1}"] = float(np.mean(np.einsum("nd,nd->n", left_ND, left_ND)))
            measures[f"smallest_{level + 1}"] = float(share_K.min())
            measures[f"largest_{level + 1}"] = float(share_K.max())
        return measures

    def tensors(self) -> Tensors:
        """Codebooks, and ``price_0`` … ``price_{L-1}``, (K,) each."""
        penalties = {f"price_{level}": price_K for level, price_K in enumerate(self.penalties or [])}
        return {**super().tensors(), **penalties}

    def restore(self, tensors: Tensors) -> None:
        """Take back what ``tensors`` gave."""
        super().restore(tensors)
        self.penalties = [tensors[f"price_{level}"] for level in range(len(self.level_sizes))]

    def _balance(self, left_ND: Floats, codes: int, level: int) -> tuple[Floats, Floats]:
        codebook_KD = kmeans(
            left_ND, codes, iterations=5, seed=self.seed + level, threads=self.threads, device=self.device
        )
        rows = np.random.default_rng(self.seed + level).permutation(len(left_ND))[: POINTS * codes]
        sample_ND = left_ND[np.sort(rows)]
        pricing = BalancePenalties(codes, self.settings.balance)
        for _ in range(self.settings.iterations):
            code_N = pricing.fit(sample_ND, codebook_KD, STEPS)
            codebook_KD = _means(sample_ND, code_N, codebook_KD)
        pricing.fit(left_ND, codebook_KD, LAST_STEPS)
        return codebook_KD, pricing.price_K - pricing.price_K.min()


class BalancePenalties:
    """Prices (K,) of codes, moved until every cluster has between ``low`` and ``high`` mean sizes.

    Each price keeps a step of its own that grows while it moves one way and halves when it turns (Riedmiller & Braun,
    "RPROP", 1993): prices are a concave maximum, so each one's direction is known and only its size is searched.
    """

    def __init__(self, codes: int, balance: tuple[float, float]) -> None:
        self.price_K = np.zeros(codes, np.float32)
        self._balance = balance

    def fit(self, left_ND: Floats, codebook_KD: Floats, steps: int) -> Ints:
        """Move the prices at most ``steps`` times; returns the code of each vector, (N,)."""
        mean = len(left_ND) / len(codebook_KD)
        low, high = np.floor(self._balance[0] * mean), np.ceil(self._balance[1] * mean)
        costs = _PenalisedCosts(left_ND, codebook_KD)
        step_K = np.full(len(codebook_KD), 0.02 * costs.scale, np.float32)
        way_K = np.zeros(len(codebook_KD), np.float32)
        code_N = costs.cheapest(self.price_K)
        best, best_price_K, best_code_N = np.inf, self.price_K, code_N
        for _ in range(steps):
            count_K = np.bincount(code_N, minlength=len(codebook_KD))
            excess_K = np.maximum(count_K - high, 0) - np.maximum(low - count_K, 0)
            missed = float(np.abs(excess_K).sum())
            if missed < best:
                best, best_price_K, best_code_N = missed, self.price_K, code_N
            if missed == 0:
                break
            turn_K = np.sign(excess_K).astype(np.float32)
            step_K *= np.where(turn_K * way_K > 0, 1.3, np.where(turn_K * way_K < 0, 0.4, 1)).astype(np.float32)
            way_K = np.where(turn_K == 0, way_K, turn_K)
            self.price_K = self.price_K + turn_K * step_K
            code_N = costs.cheapest(self.price_K)
        self.price_K = best_price_K
        return best_code_N


class _PenalisedCosts:
    """Half the squared distances of vectors to codes, in blocks, kept where they are few enough."""

    def __init__(self, left_ND: Floats, codebook_KD: Floats) -> None:
        self._left_ND, self._codebook_KD = left_ND, codebook_KD
        few = len(left_ND) * len(codebook_KD) <= CACHED
        self._kept = [self._block(start) for start in range(0, len(left_ND), BLOCK)] if few else None
        self.scale = float(np.mean(np.einsum("nd,nd->n", left_ND, left_ND)))

    def cheapest(self, price_K: Floats) -> Ints:
        """The code of each vector, (N,), under these prices."""
        starts = range(0, len(self._left_ND), BLOCK)
        blocks = self._kept if self._kept is not None else (self._block(start) for start in starts)
        return np.concatenate([(half_BK + 0.5 * price_K).argmin(axis=1) for half_BK in blocks]).astype(np.int32)

    def _block(self, start: int) -> Floats:
        return half_distances(self._left_ND[start : start + BLOCK], self._codebook_KD)


def _means(left_ND: Floats, code_N: Ints, codebook_KD: Floats) -> Floats:
    """The mean of each cluster's vectors; an empty cluster keeps its row."""
    order = np.argsort(code_N, kind="stable")
    used, start = np.unique(code_N[order], return_index=True)
    sums_UD = np.add.reduceat(left_ND[order], start, axis=0)
    moved_KD = codebook_KD.copy()
    moved_KD[used] = sums_UD / np.diff([*start, len(order)])[:, None]
    return moved_KD
