"""Product quantization: each level quantizes one slice of the vector, optionally after a rotation."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from genrec.errors import InputError
from genrec.seeds import seed_of
from genrec.sid.quantizers.base import BLOCK, Quantizer, Tensors, half_distances, nearest
from genrec.sid.quantizers.kmeans import kmeans
from genrec.sid.vectors import Floats, Ints

faiss_any: Any = faiss


class ProductKmeans(Quantizer):
    """PQ (Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search", 2011), k-means by faiss.

    Code l is the nearest of K centroids to the l-th of L slices of the vector; the first D mod L slices are one
    dimension wider. Levels do not refine each other: a prefix determines the first slices and leaves the others at
    their mean.
    """

    def fit(self, vectors_ND: Floats) -> dict[str, float]:
        """Cluster each slice of vectors (N, D); returns the mean squared error of each slice.

        Raises:
            InputError: fewer dimensions than slices, fewer vectors than codes, or vectors that are not finite.
        """
        self.check_fit(vectors_ND)
        if vectors_ND.shape[1] < len(self.level_sizes):
            raise InputError(
                f"vectors of {vectors_ND.shape[1]} dimensions cannot be cut into {len(self.level_sizes)} slices; "
                "lower sid.levels"
            )
        self._rotation_DD = self._learn_rotation(vectors_ND)
        rotated_ND = self._rotated(vectors_ND)
        self._mean_D = rotated_ND.mean(axis=0)
        self._codebooks: list[Floats] = []
        measures: dict[str, float] = {}
        for level, (codes, part) in enumerate(zip(self.level_sizes, self._slices(), strict=True)):
            part_Nd = np.ascontiguousarray(rotated_ND[:, part])
            rows_Kd = kmeans(
                part_Nd,
                codes,
                iterations=self.settings.iterations,
                seed=seed_of("codebook", self.seed, level),
                threads=self.threads,
                device=self.device,
            )
            self._codebooks.append(rows_Kd)
            error_Nd = part_Nd - rows_Kd[nearest(part_Nd, rows_Kd)]
            measures[f"error_{level + 1}"] = float(np.mean(np.einsum("nd,nd->n", error_Nd, error_Nd)))
        return measures

    def encode(self, vectors_ND: Floats) -> Ints:
        """Codes (N, L) int32 of vectors (N, D): the nearest centroid of each slice, the lowest of equals."""
        self.check(vectors_ND)
        codes_NL = np.empty((len(vectors_ND), len(self._codebooks)), np.int32)
        for start in range(0, len(vectors_ND), BLOCK):
            rotated_BD = self._rotated(vectors_ND[start : start + BLOCK])
            for level, part in enumerate(self._slices()):
                codes_NL[start : start + BLOCK, level] = nearest(rotated_BD[:, part], self._codebooks[level])
        return codes_NL

    def decode(self, codes_Nl: Ints) -> Floats:
        """The vectors (N, D) of codes (N, l): centroids in the first l slices, the mean in the others, rotated back."""
        rotated_ND = np.tile(self._mean_D, (len(codes_Nl), 1))
        for level, part in zip(range(codes_Nl.shape[1]), self._slices(), strict=False):
            rotated_ND[:, part] = self._codebooks[level][codes_Nl[:, level]]
        return rotated_ND if self._rotation_DD is None else rotated_ND @ self._rotation_DD.T

    def level_costs(self, vectors_ND: Floats, prefix_Nl: Ints) -> Floats:
        """Squared error (N, K) of the first l + 1 slices; that of later slices is the same for all codes."""
        rotated_ND = self._rotated(vectors_ND)
        level = prefix_Nl.shape[1]
        part = self._slices()[level]
        residual_Nd = rotated_ND[:, : part.stop].copy()
        for before, earlier in zip(range(level), self._slices(), strict=False):
            residual_Nd[:, earlier] -= self._codebooks[before][prefix_Nl[:, before]]
        square_N1 = np.einsum("nd,nd->n", residual_Nd, residual_Nd)[:, None]
        return np.maximum(2 * half_distances(residual_Nd[:, part], self._codebooks[level]) + square_N1, 0)

    def tensors(self) -> Tensors:
        """``codebook_0`` … ``codebook_{L-1}``, (K, d) each, the mean (D,), and the rotation (D, D) if there is one."""
        books = {f"codebook_{level}": book_Kd for level, book_Kd in enumerate(self._codebooks)}
        rotation = {} if self._rotation_DD is None else {"rotation": self._rotation_DD}
        return {**books, **rotation, "mean": self._mean_D}

    def restore(self, tensors: Tensors) -> None:
        """Set the learned arrays to what ``tensors`` returned."""
        self._codebooks = [tensors[f"codebook_{level}"] for level in range(len(self.level_sizes))]
        self._mean_D, self._rotation_DD = tensors["mean"], tensors.get("rotation")

    @property
    def width(self) -> int:
        """D, the dimensions of the vectors it was fitted on."""
        return len(self._mean_D)

    def _learn_rotation(self, vectors_ND: Floats) -> Floats | None:
        return None

    def _rotated(self, vectors_ND: Floats) -> Floats:
        return vectors_ND if self._rotation_DD is None else vectors_ND @ self._rotation_DD

    def _slices(self) -> list[slice]:
        levels = len(self.level_sizes)
        widths = [self.width // levels + (level < self.width % levels) for level in range(levels)]
        ends = np.cumsum(widths).tolist()
        return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


class OptimizedProductKmeans(ProductKmeans):
    """OPQ: PQ after a learned rotation (Ge et al., "Optimized Product Quantization", 2013), by faiss.

    faiss needs slices of equal width; if L does not divide D, the last D mod L dimensions are not rotated.
    """

    def _learn_rotation(self, vectors_ND: Floats) -> Floats | None:
        levels, width = len(self.level_sizes), vectors_ND.shape[1]
        even = width - width % levels
        rotation_DD = np.eye(width, dtype=np.float32)
        faiss_any.omp_set_num_threads(self.threads)
        trainer = faiss_any.OPQMatrix(even, levels)
        bits = min(8, int(np.log2(min(self.level_sizes))))
        trainer.pq = inner = faiss_any.ProductQuantizer(even, levels, max(bits, 1))
        trainer.niter, inner.cp.seed, inner.cp.min_points_per_centroid = (
            self.settings.iterations,
            seed_of("rotation", self.seed) % 2**31,
            1,
        )
        # faiss writes a product of (D, D) into a buffer of (N, D): with fewer vectors than dimensions, beyond its end.
        copies = -(-even // len(vectors_ND))
        trainer.train(np.ascontiguousarray(np.tile(vectors_ND[:, :even], (copies, 1)), np.float32))
        learned_DD = faiss_any.vector_to_array(trainer.A).reshape(even, even).T
        if np.isfinite(learned_DD).all():
            rotation_DD[:even, :even] = learned_DD
        return rotation_DD
