"""Truncated singular value decomposition of a sparse matrix: exact if it is in memory, randomised if it is not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy.sparse.linalg import svds

from genrec.data.matrix_files import Sparse
from genrec.sid.cooccurrence import Block
from genrec.sid.train_events import Doubles
from genrec.sid.vectors import Floats

OVERSAMPLING, POWER_ITERATIONS = 16, 10
ROWS = 1 << 16
"""Rows of a tall matrix that are worked on at once, in double precision."""
SMALLEST = 1e-12
"""Share of the largest eigenvalue below which a direction counts as none."""


def exact_svd(matrix_NN: Sparse, rank: int, seed: int) -> tuple[Floats, Doubles]:
    """The first ``rank`` left singular vectors (N, rank) and singular values (rank,), largest first, by ARPACK."""
    start = np.random.default_rng(seed).standard_normal(matrix_NN.shape[1])
    left_Nk, value_k, _ = cast("Any", svds(matrix_NN.astype(np.float64), k=rank, v0=start))
    order = np.argsort(-value_k, kind="stable")
    return left_Nk[:, order], value_k[order]


def randomised_svd(blocks: Iterable[Block], items: int, rank: int, seed: int, scratch: Path) -> tuple[Floats, Doubles]:
    """As ``exact_svd``, nearly, of the square matrix (N, N) of all ``blocks``, which are read 2 · 10 + 2 times.

    The range of (A Aᵀ)^10 A Ω, with Ω Gaussian of rank + 16 columns, is made orthonormal after each product. In memory
    are one block and one dense matrix (N, rank + 16) in single precision; a second one is a file in ``scratch``.

    Source: Halko, Martinsson & Tropp, "Finding Structure with Randomness" (2011), algorithms 4.4 and 5.1.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    left = TallFile(scratch / "left.bin", min(rank + OVERSAMPLING, items))
    right_Nw = np.random.default_rng(seed).standard_normal((items, left.width), dtype=np.float32)
    for _ in range(POWER_ITERATIONS):
        _transposed_times(blocks, left, _times(blocks, right_Nw, left), right_Nw)
        _multiply(right_Nw, orthonormaliser(gram(right_Nw)))
    left_basis_ww = _times(blocks, right_Nw, left)
    _transposed_times(blocks, left, left_basis_ww, right_Nw)
    square_k, vectors_wk = _largest(gram(right_Nw), rank)
    del right_Nw
    left_Nk, by_wk = np.empty((items, rank), np.float32), left_basis_ww @ vectors_wk
    for start in range(0, items, ROWS):
        left_Nk[start : start + ROWS] = left.read(start, min(start + ROWS, items)) @ by_wk
    return left_Nk, np.sqrt(square_k)


class TallFile:
    """A matrix (N, ``width``) in single precision whose rows lie in a file, so that it takes no memory."""

    def __init__(self, file: Path, width: int) -> None:
        self._file, self.width = file, width

    def write(self, parts: Iterable[Floats]) -> Doubles:
        """Write all rows, in parts (R, width); returns the products of all columns (width, width)."""
        total_ww = np.zeros((self.width, self.width))
        with self._file.open("wb") as file:
            for part_Rw in parts:
                part_Rw.tofile(file)
                total_ww += gram(part_Rw)
        return total_ww

    def read(self, start: int, stop: int) -> Floats:
        """The rows ``start`` … ``stop`` - 1, (stop - start, width)."""
        row_bytes, count = 4 * self.width, (stop - start) * self.width
        return np.fromfile(self._file, np.float32, count, offset=start * row_bytes).reshape(-1, self.width)


def orthonormaliser(gram_ww: Doubles) -> Doubles:
    """The matrix (w, w) by which a tall one with these products of its columns becomes orthonormal.

    What the columns span stays the same; a direction of which they have nothing becomes zero.
    """
    square_w, vectors_ww = _largest(gram_ww, len(gram_ww))
    scale_w = np.where(square_w > SMALLEST * square_w[0], 1 / np.sqrt(np.maximum(square_w, 1e-300)), 0)
    return vectors_ww * scale_w


def gram(tall_Nw: Floats) -> Doubles:
    """The products of all columns (w, w), in double precision."""
    total_ww = np.zeros((tall_Nw.shape[1],) * 2)
    for start in range(0, len(tall_Nw), ROWS):
        part_Rw = tall_Nw[start : start + ROWS].astype(np.float64)
        total_ww += part_Rw.T @ part_Rw
    return total_ww


def _largest(square_ww: Doubles, rank: int) -> tuple[Doubles, Doubles]:
    """The ``rank`` largest eigenvalues of a symmetric matrix, and their eigenvectors as columns."""
    value_w, vectors_ww = np.linalg.eigh(square_ww)
    return np.maximum(value_w[::-1][:rank], 0), vectors_ww[:, ::-1][:, :rank]


def _multiply(tall_Nw: Floats, by_ww: Doubles) -> None:
    """Write the product (N, w) into the place of the matrix."""
    for start in range(0, len(tall_Nw), ROWS):
        part_Rw = tall_Nw[start : start + ROWS]
        part_Rw[:] = part_Rw.astype(np.float64) @ by_ww


def _times(blocks: Iterable[Block], right_Nw: Floats, product: TallFile) -> Doubles:
    """Write A · ``right_Nw`` into the file; returns the matrix (w, w) that makes it orthonormal."""
    rows = (block.rows_RN[start : start + ROWS] for block in blocks for start in range(0, block.rows_RN.shape[0], ROWS))
    return orthonormaliser(product.write((some_RN @ right_Nw).astype(np.float32, copy=False) for some_RN in rows))


def _transposed_times(blocks: Iterable[Block], left: TallFile, by_ww: Doubles, product_Nw: Floats) -> None:
    """Write Aᵀ · ``left`` · ``by_ww`` into ``product_Nw``."""
    product_Nw[:] = 0
    for block in blocks:
        part_Rw = left.read(block.start, block.start + block.rows_RN.shape[0])
        _multiply(part_Rw, by_ww)
        turned_NR = block.rows_RN.T.tocsr()
        for start in range(0, len(product_Nw), ROWS):
            product_Nw[start : start + ROWS] += turned_NR[start : start + ROWS] @ part_Rw
