"""Truncated singular value decomposition of a sparse matrix: exact if it is in memory, randomised if it is not."""

from __future__ import annotations

from collections.abc import Iterable
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
SUMMED_BYTES = 1 << 29
"""Bytes of a block's part of a product that is added to it in one go."""
SMALLEST = 1e-12
"""Share of the largest eigenvalue below which a direction counts as none."""


def exact_svd(matrix_NN: Sparse, rank: int, seed: int) -> tuple[Floats, Doubles]:
    """The first ``rank`` left singular vectors (N, rank) and singular values (rank,), largest first, by ARPACK."""
    start = np.random.default_rng(seed).standard_normal(matrix_NN.shape[1])
    left_Nk, value_k, _ = cast("Any", svds(matrix_NN.astype(np.float64), k=rank, v0=start))
    order = np.argsort(-value_k, kind="stable")
    return left_Nk[:, order], value_k[order]


def randomised_svd(blocks: Iterable[Block], items: int, rank: int, seed: int) -> tuple[Floats, Doubles]:
    """As ``exact_svd``, nearly, of the square matrix (N, N) of all ``blocks``, which are read 2 · 10 + 2 times.

    The range of (A Aᵀ)^10 A Ω, with Ω Gaussian of rank + 16 columns, is made orthonormal after each product. In memory
    are one block and two dense matrices (N, rank + 16) in single precision.

    Source: Halko, Martinsson & Tropp, "Finding Structure with Randomness" (2011), algorithms 4.4 and 5.1.
    """
    shape = (items, min(rank + OVERSAMPLING, items))
    right_Nw = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    left_Nw = np.empty_like(right_Nw)
    for _ in range(POWER_ITERATIONS):
        _times(blocks, right_Nw, left_Nw)
        orthonormalise(left_Nw)
        _transposed_times(blocks, left_Nw, right_Nw)
        orthonormalise(right_Nw)
    _times(blocks, right_Nw, left_Nw)
    orthonormalise(left_Nw)
    _transposed_times(blocks, left_Nw, right_Nw)
    square_k, vectors_wk = _largest(gram(right_Nw), rank)
    _multiply(left_Nw, vectors_wk)
    return left_Nw[:, :rank], np.sqrt(square_k)


def orthonormalise(tall_Nw: Floats) -> None:
    """Make the columns orthonormal, in place, without a change of what they span; a dependent one becomes zero.

    By the eigenvectors of the Gram matrix in double precision, twice, as rounding leaves an error after the first time.
    """
    for _ in range(2):
        square_w, vectors_ww = _largest(gram(tall_Nw), tall_Nw.shape[1])
        scale_w = np.where(square_w > SMALLEST * square_w[0], 1 / np.sqrt(np.maximum(square_w, 1e-300)), 0)
        _multiply(tall_Nw, vectors_ww * scale_w)


def gram(tall_Nw: Floats) -> Doubles:
    """The products of all columns (w, w)."""
    total_ww = np.zeros((tall_Nw.shape[1],) * 2)
    for start in range(0, len(tall_Nw), ROWS):
        part_Rw = tall_Nw[start : start + ROWS].astype(np.float64)
        total_ww += part_Rw.T @ part_Rw
    return total_ww


def _largest(square_ww: Doubles, rank: int) -> tuple[Doubles, Doubles]:
    """The ``rank`` largest eigenvalues of a symmetric matrix, and their eigenvectors as columns."""
    value_w, vectors_ww = np.linalg.eigh(square_ww)
    return np.maximum(value_w[::-1][:rank], 0), vectors_ww[:, ::-1][:, :rank]


def _multiply(tall_Nw: Floats, by_wk: Doubles) -> None:
    """Write the product (N, k) into the first k columns."""
    for start in range(0, len(tall_Nw), ROWS):
        part_Rw = tall_Nw[start : start + ROWS]
        part_Rw[:, : by_wk.shape[1]] = part_Rw.astype(np.float64) @ by_wk


def _times(blocks: Iterable[Block], right_Nw: Floats, product_Nw: Floats) -> None:
    """Write A · ``right_Nw`` into ``product_Nw``."""
    for block in blocks:
        product_Nw[block.start : block.start + block.rows_RN.shape[0]] = block.rows_RN @ right_Nw


def _transposed_times(blocks: Iterable[Block], left_Nw: Floats, product_Nw: Floats) -> None:
    """Write Aᵀ · ``left_Nw`` into ``product_Nw``."""
    product_Nw[:] = 0
    columns = max(1, SUMMED_BYTES // (4 * len(left_Nw)))
    for block in blocks:
        rows_RN = block.rows_RN
        part_Rw = left_Nw[block.start : block.start + rows_RN.shape[0]]
        for first in range(0, part_Rw.shape[1], columns):
            some = slice(first, first + columns)
            product_Nw[:, some] += rows_RN.T @ part_Rw[:, some]
