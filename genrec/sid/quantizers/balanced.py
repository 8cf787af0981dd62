"""Residual k-means with bounds on the cluster sizes."""

from __future__ import annotations

import numpy as np

from genrec.errors import InputError
from genrec.seeds import generator_of, seed_of
from genrec.sid.quantizers.base import BLOCK, Tensors, half_distances, nearest
from genrec.sid.quantizers.kmeans import kmeans
from genrec.sid.quantizers.rqkmeans import RqKmeans
from genrec.sid.vectors import Floats, Ints

POINTS = 256
"""Most vectors per code from which a level's centroids are computed (as many as faiss trains on)."""
CACHED = 2**26
"""Most distances that are kept in memory between updates (256 MiB); more are computed anew each time."""
STEPS, LAST_STEPS = 20, 300
"""Most updates of the penalties: in each k-means iteration, and with the final centroids."""


class BalancedRqKmeans(RqKmeans):
    """RQ-KMeans whose cluster sizes lie between ``sid.balance`` times the mean size at every level.

    Each code k has a penalty p_k, and a residual r gets the code argmin_k |r - c_k|² + p_k. The penalty rises while the
    cluster is larger than the upper bound and falls while it is smaller than the lower bound. The clusters are then
    the cells of a power diagram, as those of the cheapest assignment under capacities are (Aurenhammer, Hoffmann &
    Aronov, "Minkowski-Type Theorems and Least-Squares Clustering", 1998). Balancing follows OneRec (Deng et al. 2025,
    Algorithm 1); unlike an assignment that is solved over all items, penalties also assign codes to items that are
    added later, and to each shard on its own.

    The bounds hold for the vectors that were fitted (``sid.fit_items``); identical vectors always share a cluster.
    """

    def fit(self, vectors_ND: Floats) -> dict[str, float]:
        """Cluster level by level; returns each level's mean squared error, and its smallest and largest cluster.

        Cluster sizes are relative to the mean size.

        Raises:
            InputError: ``sid.balance`` is no pair of bounds around 1, fewer vectors than codes, or vectors not finite.
        """
        low, high = self.settings.balance
        if not 0 <= low <= 1 <= high:
            raise InputError(f"got sid.balance={low, high}, wanted a lower bound in [0, 1] and an upper one >= 1")
        self.check_fit(vectors_ND)
        self.codebooks, self.penalties = [], []
        residual_ND = np.array(vectors_ND, np.float32, order="C")
        measures: dict[str, float] = {}
        for level, codes in enumerate(self.level_sizes):
            codebook_KD, penalty_K = self._balance(residual_ND, codes, level)
            self.codebooks.append(codebook_KD)
            self.penalties.append(penalty_K)
            code_N = nearest(residual_ND, codebook_KD, penalty_K)
            residual_ND -= codebook_KD[code_N]
            share_K = np.bincount(code_N, minlength=codes) * codes / len(code_N)
            measures[f"error_{level + 1}"] = float(np.mean(np.einsum("nd,nd->n", residual_ND, residual_ND)))
            measures[f"smallest_{level + 1}"] = float(share_K.min())
            measures[f"largest_{level + 1}"] = float(share_K.max())
        return measures

    def tensors(self) -> Tensors:
        """The codebooks, and the penalties as ``price_0`` … ``price_{L-1}``, (K,) each."""
        penalties = {f"price_{level}": penalty_K for level, penalty_K in enumerate(self.penalties or [])}
        return {**super().tensors(), **penalties}

    def restore(self, tensors: Tensors) -> None:
        """Take back what ``tensors`` gave."""
        super().restore(tensors)
        self.penalties = [tensors[f"price_{level}"] for level in range(len(self.level_sizes))]

    def _balance(self, residual_ND: Floats, codes: int, level: int) -> tuple[Floats, Floats]:
        """The codebook (K, D) of one level, and its penalties (K,), of which the smallest is 0."""
        codebook_KD = kmeans(
            residual_ND,
            codes,
            iterations=5,
            seed=seed_of("codebook", self.seed, level),
            threads=self.threads,
            device=self.device,
        )
        rows = generator_of("penalties", self.seed, level).permutation(len(residual_ND))[: POINTS * codes]
        sample_ND = residual_ND[np.sort(rows)]
        balancer = BalancePenalties(codes, self.settings.balance)
        for _ in range(self.settings.iterations):
            code_N = balancer.fit(sample_ND, codebook_KD, STEPS)
            codebook_KD = _means(sample_ND, code_N, codebook_KD)
        balancer.fit(residual_ND, codebook_KD, LAST_STEPS)
        return codebook_KD, balancer.penalty_K - balancer.penalty_K.min()


class BalancePenalties:
    """Penalties (K,) of codes, searched until every cluster has between low and high mean sizes.

    Args:
        balance: (low, high).

    Each penalty has its own step size, which is multiplied by 1.3 while the direction stays the same, and by 0.4 when
    it changes (RPROP: Riedmiller & Braun, 1993). The best penalties maximise a concave function, so the direction of
    each is known from its cluster's size.
    """

    def __init__(self, codes: int, balance: tuple[float, float]) -> None:
        self.penalty_K = np.zeros(codes, np.float32)
        self._balance = balance

    def fit(self, residual_ND: Floats, codebook_KD: Floats, steps: int) -> Ints:
        """Update the penalties at most ``steps`` times; returns the code (N,) of each residual (N, D)."""
        mean = len(residual_ND) / len(codebook_KD)
        low, high = np.floor(self._balance[0] * mean), np.ceil(self._balance[1] * mean)
        costs = _PenalisedCosts(residual_ND, codebook_KD)
        step_K = np.full(len(codebook_KD), 0.02 * costs.scale, np.float32)
        direction_K = np.zeros(len(codebook_KD), np.float32)
        code_N = costs.cheapest(self.penalty_K)
        best, best_penalty_K, best_code_N = np.inf, self.penalty_K, code_N
        for _ in range(steps):
            count_K = np.bincount(code_N, minlength=len(codebook_KD))
            excess_K = np.maximum(count_K - high, 0) - np.maximum(low - count_K, 0)
            total = float(np.abs(excess_K).sum())
            if total < best:
                best, best_penalty_K, best_code_N = total, self.penalty_K, code_N
            if total == 0:
                break
            sign_K = np.sign(excess_K).astype(np.float32)
            step_K *= np.where(sign_K * direction_K > 0, 1.3, np.where(sign_K * direction_K < 0, 0.4, 1)).astype(
                np.float32
            )
            direction_K = np.where(sign_K == 0, direction_K, sign_K)
            self.penalty_K = self.penalty_K + sign_K * step_K
            code_N = costs.cheapest(self.penalty_K)
        self.penalty_K = best_penalty_K
        return best_code_N


class _PenalisedCosts:
    """Half the squared distances of vectors to codes, block by block; cached if there are few enough."""

    def __init__(self, residual_ND: Floats, codebook_KD: Floats) -> None:
        self._residual_ND, self._codebook_KD = residual_ND, codebook_KD
        few = len(residual_ND) * len(codebook_KD) <= CACHED
        self._cached = [self._block(start) for start in range(0, len(residual_ND), BLOCK)] if few else None
        self.scale = float(np.mean(np.einsum("nd,nd->n", residual_ND, residual_ND)))

    def cheapest(self, penalty_K: Floats) -> Ints:
        """The code (N,) of each vector under the penalties (K,)."""
        starts = range(0, len(self._residual_ND), BLOCK)
        blocks = self._cached if self._cached is not None else (self._block(start) for start in starts)
        return np.concatenate([(half_BK + 0.5 * penalty_K).argmin(axis=1) for half_BK in blocks]).astype(np.int32)

    def _block(self, start: int) -> Floats:
        return half_distances(self._residual_ND[start : start + BLOCK], self._codebook_KD)


def _means(residual_ND: Floats, code_N: Ints, codebook_KD: Floats) -> Floats:
    """The mean of each cluster's vectors; an empty cluster keeps its row."""
    order = np.argsort(code_N, kind="stable")
    used, start = np.unique(code_N[order], return_index=True)
    sums_UD = np.add.reduceat(residual_ND[order], start, axis=0)
    moved_KD = codebook_KD.copy()
    moved_KD[used] = sums_UD / np.diff([*start, len(order)])[:, None]
    return moved_KD
