"""The few things done with sparse (rows, N) score matrices. scipy carries no types, so they are named here once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Sparse: TypeAlias = Any
"""A ``scipy.sparse.csr_matrix``."""

IndexArray = NDArray[np.integer]


def csr(values_E: NDArray[Any], rows_E: IndexArray, columns_E: IndexArray, shape: tuple[int, int]) -> Sparse:
    """A CSR matrix from its entries; entries at the same place are added."""
    return sparse.csr_matrix((values_E, (rows_E, columns_E)), shape=shape)


def row_of_entry(matrix: Sparse) -> NDArray[np.int64]:
    """The row of each stored entry, in the order of ``matrix.data``."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def at(matrix: Sparse, rows_E: IndexArray, columns_E: IndexArray) -> NDArray[np.float64]:
    """The values at the given places, zeros included."""
    if not len(rows_E):
        return np.zeros(0)
    return np.asarray(matrix[rows_E, columns_E], dtype=np.float64).reshape(-1)


def keep_largest(matrix: Sparse, k: int) -> Sparse:
    """The matrix with only the k largest entries of each row."""
    if int(np.diff(matrix.indptr).max(initial=0)) <= k:
        return matrix
    kept_RK = top_columns(matrix, k)
    rows_E, places_E = np.nonzero(kept_RK >= 0)
    columns_E = kept_RK[rows_E, places_E]
    return csr(at(matrix, rows_E, columns_E), rows_E, columns_E, matrix.shape)


def top_columns(matrix: Sparse, k: int) -> NDArray[np.int64]:
    """Columns of the k largest stored entries of each row, (rows, k), largest first, padded with -1.

    Ties go to the lower column. Rows are cut before they are sorted: much faster than one sort of all entries.
    """
    matrix.sort_indices()
    top_RK = np.full((matrix.shape[0], k), -1, dtype=np.int64)
    for row, (start, end) in enumerate(pairwise(matrix.indptr)):
        values_E = matrix.data[start:end]
        kept_E = np.arange(len(values_E))
        if len(values_E) > k:
            border = np.partition(values_E, len(values_E) - k)[len(values_E) - k]
            kept_E = np.flatnonzero(values_E >= border)
        order_E = np.argsort(-values_E[kept_E], kind="stable")[:k]
        top_RK[row, : len(order_E)] = matrix.indices[start:end][kept_E[order_E]]
    return top_RK


def mask_seen_items(scores: Sparse, recent_QH: np.ndarray) -> Sparse:
    """Item scores (Q, N) with the items of each query's own history set to 0."""
    struck = scores.tolil(copy=True)
    query_QH = np.broadcast_to(np.arange(len(recent_QH))[:, None], recent_QH.shape)
    struck[query_QH[recent_QH >= 0], recent_QH[recent_QH >= 0]] = 0.0
    result = struck.tocsr()
    result.eliminate_zeros()
    return result
