"""Residual k-means over a stream of vectors that several workers share."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.config import Sid
from genrec.sid.distributed.collectives import CheckpointTimer, ProcessGroup, scan_statistics, share, sum_all
from genrec.sid.distributed.vector_stream import Stream
from genrec.sid.quantizers.base import nearest
from genrec.sid.quantizers.kmeans import kmeans
from genrec.sid.vectors import Floats

LOG = logging.getLogger(__name__)

ENOUGH = 1e-4
"""A level ends when a pass lowers its error by a smaller share than this."""
FIRST = 10
"""Iterations of the k-means on the sample that a level starts from."""
APART = 1 / 1024
"""How far the two halves of a split code move apart, relative to its entries (as in faiss)."""
SCORES = 2**25
"""Distances that are held at once (128 MiB)."""


class ResidualLloyd:
    """Lloyd's algorithm level by level: each pass sums, per code, the residuals of the vectors nearest to it.

    A level starts from k-means on a sample of all vectors. In a pass every worker reads its own share of the vectors,
    takes the codebooks so far off them, and adds up counts and sums; added over the workers they give the next
    codebook, in double precision, so the number of workers hardly matters. Codes that run empty take half of the
    largest. A worker holds one block of vectors, the sample and the codebooks.

    Source: Lloyd, "Least squares quantization in PCM" (1982); with summed statistics: Zhao, Ma & He, "Parallel K-Means
    Clustering Based on MapReduce" (2009).
    """

    def __init__(self, stream: Stream, workers: ProcessGroup, settings: Sid, *, seed: int, threads: int) -> None:
        self._stream, self._workers, self._settings = stream, workers, settings
        self._seed, self._threads = seed, threads
        self.codebooks: list[Floats] = []
        self.errors: list[float] = []
        self._now_KD: Tensor | None = None
        self._passes, self._before = 0, float("inf")

    def run(self) -> None:
        """Fill ``codebooks`` (K, D) and ``errors`` (mean squared, after each level); goes on from a checkpoint.

        Raises:
            InputError: vectors that cannot be quantized, on every worker.
        """
        sizes = self._settings.level_sizes
        sample_ND = scan_statistics(self._stream, self._workers, max(sizes), self._seed).sample_ND
        with self._workers.latest() as directory:
            if directory is not None:
                self._read(directory)
        pace = CheckpointTimer(self._workers)
        for level, codes in enumerate(sizes):
            if level == len(self.codebooks):
                self._settle(codes, sample_ND, pace)
            sample_ND = sample_ND - self.codebooks[level][nearest(sample_ND, self.codebooks[level])]

    def _settle(self, codes: int, sample_ND: Floats, pace: CheckpointTimer) -> None:
        """Make one level; ``sample_ND`` is what the levels before left of the sample."""
        level, now_KD = len(self.codebooks), self._now_KD
        if now_KD is None:
            now_KD = self._first(codes, sample_ND, level)
        while True:
            count_K, sum_KD, error = self._pass(now_KD)
            if self._passes == self._settings.iterations or error >= (1 - ENOUGH) * self._before:
                break
            now_KD = _moved(now_KD, count_K, sum_KD)
            self._now_KD, self._passes, self._before = now_KD, self._passes + 1, error
            if pace.due():
                self._say(f"level {level + 1}: pass {self._passes}, mean squared error {error:.5g}")
                self._workers.save(self._write, {"level": level, "passes": self._passes})
        self._say(f"level {level + 1}: {self._passes + 1} passes, mean squared error {error:.5g}")
        self.codebooks.append(now_KD.cpu().numpy())
        self.errors.append(error)
        self._now_KD, self._passes, self._before = None, 0, float("inf")

    def _first(self, codes: int, sample_ND: Floats, level: int) -> Tensor:
        rows_KD = np.zeros((codes, sample_ND.shape[1]), np.float32)
        if self._workers.rank == 0:
            rows_KD = kmeans(sample_ND, codes, iterations=FIRST, seed=self._seed + level, threads=self._threads)
        return share(self._workers, torch.from_numpy(rows_KD)).to(self._workers.device)

    def _pass(self, now_KD: Tensor) -> tuple[Tensor, Tensor, float]:
        """Over all vectors: how many are nearest to each code (K,), the sum of their residuals (K, D), mean error."""
        device = self._workers.device
        done = [torch.from_numpy(book_KD).to(device) for book_KD in self.codebooks]
        count_K = torch.zeros(len(now_KD), dtype=torch.float64, device=device)
        sum_KD = torch.zeros(now_KD.shape, dtype=torch.float64, device=device)
        error_1 = torch.zeros(1, dtype=torch.float64, device=device)
        for _, rows_BD in self._stream.blocks():
            left_BD = torch.from_numpy(rows_BD).to(device)
            for book_KD in done:
                left_BD = left_BD - book_KD[_nearest(left_BD, book_KD)]
            code_B = _nearest(left_BD, now_KD)
            count_K += torch.bincount(code_B, minlength=len(now_KD))
            sum_KD.index_add_(0, code_B, left_BD.double())
            error_1 += (left_BD - now_KD[code_B]).double().square().sum()
        count_K, sum_KD, error_1 = sum_all(self._workers, [count_K, sum_KD, error_1])
        return count_K, sum_KD, error_1.item() / len(self._stream)

    def _say(self, text: str) -> None:
        if self._workers.rank == 0:
            LOG.info(text)

    def _write(self, directory: Path) -> None:
        assert self._now_KD is not None
        books = {f"codebook_{level}": torch.from_numpy(book_KD) for level, book_KD in enumerate(self.codebooks)}
        numbers = torch.tensor([self._passes, self._before, *self.errors], dtype=torch.float64)
        save_file(books | {"now": self._now_KD.cpu(), "numbers": numbers}, directory / "kmeans.safetensors")

    def _read(self, directory: Path) -> None:
        tensors = load_file(directory / "kmeans.safetensors")
        passes, self._before, *self.errors = tensors["numbers"].tolist()
        self._passes, self._now_KD = int(passes), tensors["now"].to(self._workers.device)
        self.codebooks = [tensors[f"codebook_{level}"].numpy() for level in range(len(self.errors))]


def _nearest(left_BD: Tensor, codebook_KD: Tensor) -> Tensor:
    half_K = 0.5 * codebook_KD.square().sum(1)
    parts = left_BD.split(max(1, SCORES // len(codebook_KD)))
    return torch.cat([(half_K - part_bD @ codebook_KD.T).argmin(dim=1) for part_bD in parts])


def _moved(now_KD: Tensor, count_K: Tensor, sum_KD: Tensor) -> Tensor:
    """Each code at the mean of its vectors; an empty one beside the code that has most, which then counts half."""
    means_KD = torch.where(count_K[:, None] > 0, sum_KD / count_K[:, None].clamp(min=1), now_KD.double()).float()
    counts = count_K.tolist()
    for code in [code for code, count in enumerate(counts) if count == 0]:
        largest = int(np.argmax(counts))
        means_KD[code] = means_KD[largest] * (1 + APART)
        means_KD[largest] = means_KD[largest] * (1 - APART)
        counts[code] = counts[largest] = counts[largest] / 2
    return means_KD
