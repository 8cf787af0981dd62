"""Residual k-means over a stream of vectors that several workers share."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.config import Sid
from genrec.seeds import seed_of
from genrec.sid.distributed.collectives import CheckpointTimer, ProcessGroup, broadcast, scan_statistics, sum_all
from genrec.sid.distributed.vector_stream import Stream
from genrec.sid.quantizers.base import nearest
from genrec.sid.quantizers.kmeans import kmeans
from genrec.sid.vectors import Floats

LOG = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""A level ends when a pass lowers its error by less than this fraction."""
INITIAL_ITERATIONS = 10
"""k-means iterations on the sample, which give a level its first codebook."""
SPLIT = 1 / 1024
"""How far the two halves of a split code move apart, relative to its entries (as in faiss)."""
DISTANCES = 2**25
"""Distances that are held in memory at once (128 MiB)."""


class ResidualLloyd:
    """Lloyd's algorithm level by level: each pass sums, per code, the residuals of the vectors nearest to it.

    A level starts from k-means on a sample of all vectors. In a pass every rank reads its part of the vectors,
    subtracts the codebooks of the levels before, and adds up counts and sums per code. The totals over all ranks give
    the next codebook; they are in double precision, so that the number of ranks changes the result by rounding errors
    only. An empty code takes half the vectors of the largest one. A rank holds one block of vectors, the sample and the
    codebooks in memory.

    Source: Lloyd, "Least squares quantization in PCM" (1982); with summed statistics: Zhao, Ma & He, "Parallel K-Means
    Clustering Based on MapReduce" (2009).
    """

    def __init__(self, stream: Stream, group: ProcessGroup, settings: Sid, *, seed: int, threads: int) -> None:
        self._stream, self._group, self._settings = stream, group, settings
        self._seed, self._threads = seed, threads
        self.codebooks: list[Floats] = []
        self.errors: list[float] = []
        self._codebook_KD: Tensor | None = None
        self._passes, self._last_error = 0, float("inf")

    def run(self) -> None:
        """Fill ``codebooks`` (K, D) and ``errors`` (mean squared, after each level), from the newest checkpoint if any.

        Raises:
            InputError: on every rank, for vectors that cannot be quantized.
        """
        sizes = self._settings.level_sizes
        sample_ND = scan_statistics(self._stream, self._group, max(sizes), self._seed).sample_ND
        with self._group.latest() as directory:
            if directory is not None:
                self._read(directory)
        timer = CheckpointTimer(self._group)
        for level, codes in enumerate(sizes):
            if level == len(self.codebooks):
                self._fit_level(codes, sample_ND, timer)
            sample_ND = sample_ND - self.codebooks[level][nearest(sample_ND, self.codebooks[level])]

    def _fit_level(self, codes: int, sample_ND: Floats, timer: CheckpointTimer) -> None:
        """Fit the next level; ``sample_ND`` (n, D) holds the sample's residuals after the levels before."""
        level, codebook_KD = len(self.codebooks), self._codebook_KD
        if codebook_KD is None:
            codebook_KD = self._initial_codebook(codes, sample_ND, level)
        while True:
            count_K, sum_KD, error = self._pass(codebook_KD)
            if self._passes == self._settings.iterations or error >= (1 - TOLERANCE) * self._last_error:
                break
            codebook_KD = _updated(codebook_KD, count_K, sum_KD)
            self._codebook_KD, self._passes, self._last_error = codebook_KD, self._passes + 1, error
            if timer.due():
                self._log(f"level {level + 1}: pass {self._passes}, mean squared error {error:.5g}")
                self._group.save(self._write, {"level": level, "passes": self._passes})
        self._log(f"level {level + 1}: {self._passes + 1} passes, mean squared error {error:.5g}")
        self.codebooks.append(codebook_KD.cpu().numpy())
        self.errors.append(error)
        self._codebook_KD, self._passes, self._last_error = None, 0, float("inf")

    def _initial_codebook(self, codes: int, sample_ND: Floats, level: int) -> Tensor:
        rows_KD = np.zeros((codes, sample_ND.shape[1]), np.float32)
        if self._group.rank == 0:
            rows_KD = kmeans(
                sample_ND,
                codes,
                iterations=INITIAL_ITERATIONS,
                seed=seed_of("codebook", self._seed, level),
                threads=self._threads,
            )
        return broadcast(self._group, torch.from_numpy(rows_KD)).to(self._group.device)

    def _pass(self, codebook_KD: Tensor) -> tuple[Tensor, Tensor, float]:
        """Over all vectors: the count per nearest code (K,), the sum of their residuals (K, D), and the mean error."""
        device = self._group.device
        earlier = [torch.from_numpy(book_KD).to(device) for book_KD in self.codebooks]
        count_K = torch.zeros(len(codebook_KD), dtype=torch.float64, device=device)
        sum_KD = torch.zeros(codebook_KD.shape, dtype=torch.float64, device=device)
        error_1 = torch.zeros(1, dtype=torch.float64, device=device)
        for _, rows_BD in self._stream.blocks():
            residual_BD = torch.from_numpy(rows_BD).to(device)
            for book_KD in earlier:
                residual_BD = residual_BD - book_KD[_nearest(residual_BD, book_KD)]
            code_B = _nearest(residual_BD, codebook_KD)
            count_K += torch.bincount(code_B, minlength=len(codebook_KD))
            sum_KD.index_add_(0, code_B, residual_BD.double())
            error_1 += (residual_BD - codebook_KD[code_B]).double().square().sum()
        count_K, sum_KD, error_1 = sum_all(self._group, [count_K, sum_KD, error_1])
        return count_K, sum_KD, error_1.item() / len(self._stream)

    def _log(self, text: str) -> None:
        if self._group.rank == 0:
            LOG.info(text)

    def _write(self, directory: Path) -> None:
        assert self._codebook_KD is not None
        books = {f"codebook_{level}": torch.from_numpy(book_KD) for level, book_KD in enumerate(self.codebooks)}
        numbers = torch.tensor([self._passes, self._last_error, *self.errors], dtype=torch.float64)
        save_file(books | {"now": self._codebook_KD.cpu(), "numbers": numbers}, directory / "kmeans.safetensors")

    def _read(self, directory: Path) -> None:
        tensors = load_file(directory / "kmeans.safetensors")
        passes, self._last_error, *self.errors = tensors["numbers"].tolist()
        self._passes, self._codebook_KD = int(passes), tensors["now"].to(self._group.device)
        self.codebooks = [tensors[f"codebook_{level}"].numpy() for level in range(len(self.errors))]


def _nearest(residual_BD: Tensor, codebook_KD: Tensor) -> Tensor:
    half_K = 0.5 * codebook_KD.square().sum(1)
    parts = residual_BD.split(max(1, DISTANCES // len(codebook_KD)))
    return torch.cat([(half_K - part_bD @ codebook_KD.T).argmin(dim=1) for part_bD in parts])


def _updated(codebook_KD: Tensor, count_K: Tensor, sum_KD: Tensor) -> Tensor:
    """The means (K, D) of each code's vectors; an empty code splits the largest one, whose count is then halved."""
    means_KD = torch.where(count_K[:, None] > 0, sum_KD / count_K[:, None].clamp(min=1), codebook_KD.double()).float()
    counts = count_K.tolist()
    for code in [code for code, count in enumerate(counts) if count == 0]:
        largest = int(np.argmax(counts))
        means_KD[code] = means_KD[largest] * (1 + SPLIT)
        means_KD[largest] = means_KD[largest] * (1 - SPLIT)
        counts[code] = counts[largest] = counts[largest] / 2
    return means_KD
