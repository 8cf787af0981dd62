"""Functions on sparse matrices (rows, N) of scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from genrec.data.matrix_files import Sparse

IndexArray = NDArray[np.integer]


def csr(values_E: NDArray[Any], rows_E: IndexArray, columns_E: IndexArray, shape: tuple[int, int]) -> Sparse:
    """A CSR matrix from E entries; entries with the same row and column are added."""
    return sparse.csr_matrix((values_E, (rows_E, columns_E)), shape=shape)


def row_of_entry(matrix: Sparse) -> NDArray[np.int64]:
    """The row (E,) of each stored entry, in the order of ``matrix.data``."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def values_at(matrix: Sparse, rows_E: IndexArray, columns_E: IndexArray) -> NDArray[np.float64]:
    """The values (E,) at the given rows and columns, zeros included."""
    if not len(rows_E):
        return np.zeros(0)
    return np.asarray(matrix[rows_E, columns_E], dtype=np.float64).reshape(-1)


def stacked_on_disk(blocks: Iterable[Sparse], columns: int) -> Sparse:
    """The rows (R, ``columns``) of all blocks, one after the other, in memory a block at a time.

    The entries lie in two temporary files, which are gone when nothing holds the matrix any more. A product with it
    reads from them what it needs.
    """
    with TemporaryFile() as values, TemporaryFile() as indices:
        lengths = list[NDArray[np.int64]]()
        for block in blocks:
            values.write(block.data.astype(np.float64, copy=False).data)
            indices.write(block.indices.astype(np.int32, copy=False).data)
            lengths.append(np.diff(block.indptr))
        ends_R = np.cumsum(np.concatenate([[0], *lengths]))
        data_E, indices_E = (_mapped(file, kind) for file, kind in ((values, np.float64), (indices, np.int32)))
    few = ends_R[-1] <= np.iinfo(np.int32).max
    return sparse.csr_matrix(
        (data_E, indices_E, ends_R.astype(np.int32 if few else np.int64)), (len(ends_R) - 1, columns)
    )


def _mapped(file: IO[bytes], kind: type[np.generic]) -> NDArray[Any]:
    """All that was written to a file, as an array that stays on the disk."""
    file.flush()
    size = file.tell()
    return np.asarray(np.memmap(file, dtype=kind, mode="r")) if size else np.zeros(0, kind)


def keep_largest(matrix: Sparse, k: int) -> Sparse:
    """The matrix with only the k largest entries of each row; ties go to the lower column."""
    (long_R,) = (np.diff(matrix.indptr) > k).nonzero()
    if not len(long_R):
        return matrix
    matrix.sort_indices()
    kept_E = np.ones(len(matrix.data), dtype=np.bool_)
    for start, end in zip(matrix.indptr[long_R], matrix.indptr[long_R + 1], strict=True):
        kept_E[start:end] = _largest(matrix.data[start:end], k)
    ends_R = np.append(0, np.cumsum(kept_E))[matrix.indptr]
    return sparse.csr_matrix((matrix.data[kept_E], matrix.indices[kept_E], ends_R), shape=matrix.shape)


def _largest(values_E: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """Which (E,) are the k largest of more than k values; of equal ones the first."""
    border = np.partition(values_E, len(values_E) - k)[len(values_E) - k]
    kept_E = values_E > border
    (tied,) = (values_E == border).nonzero()
    kept_E[tied[: k - int(kept_E.sum())]] = True
    return kept_E


def top_columns(matrix: Sparse, k: int) -> NDArray[np.int64]:
    """Columns of the k largest stored entries of each row, (rows, k), largest first, padded with -1.

    Ties go to the lower column. Each row is cut to its k largest entries before it is sorted, which is much faster than
    sorting all entries.
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


def distinct_pairs(recent_QH: IndexArray, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each query and item of its history (Q, H), padded with -1, once: both (pairs,), in order."""
    query_QH = np.broadcast_to(np.arange(len(recent_QH))[:, None], recent_QH.shape)
    keys = np.unique(query_QH[recent_QH >= 0] * n_items + recent_QH[recent_QH >= 0])
    return keys // n_items, keys % n_items


def mask_seen_items(scores: Sparse, recent_QH: IndexArray) -> Sparse:
    """The scores (Q, N) without those of the items in each query's own history (rows, padded with -1)."""
    masked = scores.tolil(copy=True)
    query_QH = np.broadcast_to(np.arange(len(recent_QH))[:, None], recent_QH.shape)
    masked[query_QH[recent_QH >= 0], recent_QH[recent_QH >= 0]] = 0.0
    result = masked.tocsr()
    result.eliminate_zeros()
    return result


def mask_columns(scores: Sparse, columns: Sequence[int]) -> Sparse:
    """The scores (Q, N) without those of these columns."""
    if not columns:
        return scores
    masked = scores.copy()
    masked.data[np.isin(masked.indices, columns)] = 0.0
    masked.eliminate_zeros()
    return masked
