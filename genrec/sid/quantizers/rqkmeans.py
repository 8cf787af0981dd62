"""Residual k-means: each level clusters the residuals of the levels before."""

from __future__ import annotations

import numpy as np
import torch

from genrec.config import Sid
from genrec.errors import InputError
from genrec.seeds import seed_of
from genrec.sid.distributed.collectives import ProcessGroup
from genrec.sid.distributed.lloyd import ResidualLloyd
from genrec.sid.distributed.vector_stream import Stream
from genrec.sid.quantizers.base import ResidualQuantizer, nearest
from genrec.sid.quantizers.kmeans import kmeans
from genrec.sid.vectors import Floats


class RqKmeans(ResidualQuantizer):
    """RQ-KMeans (Deng et al., "OneRec", 2025) without balancing, by faiss."""

    def fit(self, vectors_ND: Floats) -> dict[str, float]:
        """Cluster vectors (N, D) level by level; returns the mean squared error after each level."""
        self.check_fit(vectors_ND)
        self.codebooks = []
        residual_ND = np.array(vectors_ND, np.float32, order="C")
        errors: dict[str, float] = {}
        for level, codes in enumerate(self.level_sizes):
            self.codebooks.append(self._cluster(residual_ND, codes, level))
            residual_ND -= self.codebooks[-1][nearest(residual_ND, self.codebooks[-1])]
            errors[f"error_{level + 1}"] = float(np.mean(np.einsum("nd,nd->n", residual_ND, residual_ND)))
        return errors

    def _fit_parallel(self, stream: Stream, group: ProcessGroup) -> dict[str, float]:
        """Fit by Lloyd's algorithm over all ranks' vectors; see ``ResidualLloyd``."""
        torch.set_num_threads(self.threads)
        lloyd = ResidualLloyd(stream, group, self.settings, seed=self.seed, threads=self.threads)
        lloyd.run()
        self.codebooks = lloyd.codebooks
        return {f"error_{level}": error for level, error in enumerate(lloyd.errors, 1)}

    def _cluster(self, residual_ND: Floats, codes: int, level: int) -> Floats:
        settings = self.settings
        return kmeans(
            residual_ND,
            codes,
            iterations=settings.iterations,
            seed=seed_of("codebook", self.seed, level),
            threads=self.threads,
            device=self.device,
        )


class Vq(RqKmeans):
    """Vector quantization: one level of k-means, so ``sid.levels`` is 1.

    k-means needs at least as many items as codes, so items share codes: set ``sid.collisions=suffix``.
    """

    def __init__(self, settings: Sid, *, seed: int = 0, threads: int = 1, device: str = "auto") -> None:
        super().__init__(settings, seed=seed, threads=threads, device=device)
        if settings.levels != 1:
            raise InputError(f"sid.quantizer=vq has one level, got sid.levels={settings.levels}; set sid.levels=1")
