"""Hierarchical k-means: a tree of clusters, in which the meaning of a code depends on the codes before it."""

from __future__ import annotations

import numpy as np

from genrec.seeds import seed_of
from genrec.sid.quantizers.base import BLOCK, Quantizer, Tensors, half_distances, nearest
from genrec.sid.quantizers.kmeans import kmeans
from genrec.sid.vectors import Floats, Ints, Longs

FEW = 4
"""Clusters with more vectors per code than this are given to k-means without counting their distinct vectors."""


class Hierarchical(Quantizer):
    """The structured ids of DSI (Tay et al., "Transformer Memory as a Differentiable Search Index", 2022, section 3.2).

    Items are clustered, then the items of each cluster again, for L levels. If a cluster has at most K distinct
    vectors, each of them is a child. So a cluster may have fewer than K children. Its unused codes stand for the
    cluster itself and cost as much as its farthest child, so ``encode`` never returns them, but collision resolution
    may assign them.

    Level l has one centroid per cluster, ``centroids[l]`` (n_l, D), and ``first[l]`` (n_{l-1} + 1,) is the number of
    the first child of each cluster of the level before. A level has at most N centroids, so the memory is at most L
    times that of the fitted vectors.
    """

    def fit(self, vectors_ND: Floats) -> dict[str, float]:
        """Cluster vectors (N, D) level by level; returns each level's mean squared error and number of clusters."""
        self.check_fit(vectors_ND)
        self._centroids: list[Floats] = []
        self._first: list[Longs] = []
        self._mean_1D = vectors_ND.mean(axis=0, keepdims=True)
        node_N, nodes = np.zeros(len(vectors_ND), np.int64), 1
        measures: dict[str, float] = {}
        for level, codes in enumerate(self.level_sizes):
            rows, first = [np.empty((0, vectors_ND.shape[1]), np.float32)], np.zeros(nodes + 1, np.int64)
            child_N = np.empty_like(node_N)
            order = np.argsort(node_N, kind="stable")
            bounds = np.searchsorted(node_N[order], np.arange(nodes + 1))
            for node in range(nodes):
                members = order[bounds[node] : bounds[node + 1]]
                children_CD, code_M = self._split(vectors_ND[members], codes, level)
                rows.append(children_CD)
                child_N[members] = first[node] + code_M
                first[node + 1] = first[node] + len(children_CD)
            self._centroids.append(np.concatenate(rows))
            self._first.append(first)
            node_N, nodes = child_N, int(first[-1])
            error_N = np.square(vectors_ND - self._centroids[-1][node_N]).sum(axis=1)
            measures |= {f"error_{level + 1}": float(error_N.mean()), f"clusters_{level + 1}": float(nodes)}
        return measures

    def encode(self, vectors_ND: Floats) -> Ints:
        """Codes (N, L) int32 of vectors (N, D): at each level the cluster's nearest child, the lowest of equals."""
        self.check(vectors_ND)
        codes_NL = np.zeros((len(vectors_ND), len(self.level_sizes)), np.int32)
        node_N = np.zeros(len(vectors_ND), np.int64)
        for level in range(len(self.level_sizes)):
            for node, rows in _by_value(node_N):
                low, high = self._children(level, node)
                codes_NL[rows, level] = nearest(vectors_ND[rows], self._centroids[level][low:high])
                node_N[rows] = low + codes_NL[rows, level]
        return codes_NL

    def decode(self, codes_Nl: Ints) -> Floats:
        """The centroid (N, D) of the deepest cluster that the codes (N, l) lead to."""
        level_N, node_N = self._walk(codes_Nl)
        return self._centroids_of(level_N, node_N)

    def level_costs(self, vectors_ND: Floats, prefix_Nl: Ints) -> Floats:
        """Squared distance (N, K) to each child's centroid; a code without child costs as much as the farthest."""
        level, size = prefix_Nl.shape[1], self.level_sizes[prefix_Nl.shape[1]]
        level_N, node_N = self._walk(prefix_Nl)
        own_N = np.square(vectors_ND - self._centroids_of(level_N, node_N)).sum(axis=1)
        costs_NK = np.repeat(own_N[:, None], size, axis=1)
        known = np.flatnonzero(level_N == level)
        for node, inside in _by_value(node_N[known]):
            rows = known[inside]
            low, high = self._children(level, node)
            members_MD = vectors_ND[rows]
            square_M1 = np.einsum("md,md->m", members_MD, members_MD)[:, None]
            near_MC = np.maximum(2 * half_distances(members_MD, self._centroids[level][low:high]) + square_M1, 0)
            costs_NK[rows] = np.maximum(own_N[rows], near_MC.max(axis=1))[:, None]
            costs_NK[rows, : high - low] = near_MC
        return costs_NK

    def tensors(self) -> Tensors:
        """``centroids_l``, ``first_l`` of each level, and the mean of all vectors (1, D)."""
        levels = range(len(self.level_sizes))
        centroids = {f"centroids_{level}": self._centroids[level] for level in levels}
        return {**centroids, **{f"first_{level}": self._first[level] for level in levels}, "mean": self._mean_1D}

    def restore(self, tensors: Tensors) -> None:
        """Set the learned arrays to what ``tensors`` returned."""
        self._mean_1D = tensors["mean"]
        self._centroids = [tensors[f"centroids_{level}"] for level in range(len(self.level_sizes))]
        self._first = [tensors[f"first_{level}"] for level in range(len(self.level_sizes))]

    @property
    def width(self) -> int:
        """D, the dimensions of the vectors it was fitted on."""
        return self._mean_1D.shape[1]

    def _split(self, vectors_MD: Floats, codes: int, level: int) -> tuple[Floats, Ints]:
        if len(vectors_MD) <= FEW * codes:
            distinct_UD, which_M = np.unique(vectors_MD, axis=0, return_inverse=True)
            if len(distinct_UD) <= codes:
                return distinct_UD, which_M.reshape(-1).astype(np.int32)
        settings = self.settings
        rows_KD = kmeans(
            vectors_MD,
            codes,
            iterations=settings.iterations,
            seed=seed_of("codebook", self.seed, level),
            threads=self.threads,
            device=self.device if len(vectors_MD) > BLOCK else "cpu",
        )
        code_M = nearest(vectors_MD, rows_KD)
        used, code_M = np.unique(code_M, return_inverse=True)
        return rows_KD[used], code_M.astype(np.int32)

    def _children(self, level: int, node: int) -> tuple[int, int]:
        return int(self._first[level][node]), int(self._first[level][node + 1])

    def _walk(self, codes_Nl: Ints) -> tuple[Longs, Longs]:
        """The depth (N,) of the deepest existing cluster on each row's path, and that cluster's number (N,)."""
        level_N = np.zeros(len(codes_Nl), np.int64)
        node_N = np.zeros(len(codes_Nl), np.int64)
        for level in range(codes_Nl.shape[1]):
            on = np.flatnonzero(level_N == level)
            child_M = self._first[level][node_N[on]] + codes_Nl[on, level]
            exists_M = child_M < self._first[level][node_N[on] + 1]
            level_N[on[exists_M]] = level + 1
            node_N[on[exists_M]] = child_M[exists_M]
        return level_N, node_N

    def _centroids_of(self, level_N: Longs, node_N: Longs) -> Floats:
        centroid_ND = np.repeat(self._mean_1D, len(level_N), axis=0)
        for level, centroids_nD in enumerate(self._centroids, 1):
            rows = np.flatnonzero(level_N == level)
            centroid_ND[rows] = centroids_nD[node_N[rows]]
        return centroid_ND


def _by_value(value_N: Longs) -> list[tuple[int, Longs]]:
    """Each value and the rows that have it."""
    order = np.argsort(value_N, kind="stable")
    values, start = np.unique(value_N[order], return_index=True)
    return list(zip(values.tolist(), np.split(order, start[1:]), strict=True))
