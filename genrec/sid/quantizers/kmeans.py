"""k-means by faiss; a fixed seed and number of threads give the same result in every run."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from genrec.seeds import seed_of
from genrec.sid.vectors import Floats

faiss_any: Any = faiss


def kmeans(vectors_ND: Floats, codes: int, *, iterations: int, seed: int, threads: int, device: str = "cpu") -> Floats:
    """Centroids (codes, D) float32 of vectors (N, D); faiss trains on at most 256 vectors per code, drawn by ``seed``.

    ``device`` 'auto' or 'cuda' uses all GPUs that faiss can see. faiss refills empty clusters from large ones.
    """
    faiss_any.omp_set_num_threads(threads)
    gpu = device != "cpu" and faiss_any.get_num_gpus() > 0
    trainer = faiss_any.Kmeans(
        vectors_ND.shape[1],
        codes,
        niter=iterations,
        seed=seed_of("k-means", seed) % 2**31,
        gpu=gpu,
        min_points_per_centroid=1,
    )
    trainer.train(np.ascontiguousarray(vectors_ND, np.float32))
    return np.asarray(trainer.centroids, np.float32).reshape(codes, -1)
