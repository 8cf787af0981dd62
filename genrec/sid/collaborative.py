"""Collaborative vectors: factors of what is chosen together in the train log, and stand-ins for them in cold items."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from genrec.config import Sid
from genrec.data.shards import shard_path
from genrec.errors import InputError
from genrec.sid.cooccurrence import Block, BlocksOnDisk, Cooccurrence
from genrec.sid.distributed.vector_stream import Reader
from genrec.sid.singular_vectors import ROWS, exact_svd, randomised_svd
from genrec.sid.train_events import Doubles, TrainEvents
from genrec.sid.vectors import NEIGHBOURS, Floats, Longs, nearest_rows, unit_rows, write_vectors

EXACT_ITEMS = 1 << 17
"""Items up to which the decomposition is exact."""
POOL, COMPARED = 1 << 18, 1 << 14
"""Warm items among which a cold one's neighbours are searched, drawn where there are more; and up to how many of them a
search compares the cold item with each, without an index."""
COLD = 1 << 14
"""Cold items whose neighbours are searched at once."""
LISTS, PROBED = 512, 8
"""Clusters of the index, and how many of them a search looks into."""

NONE_RELATED = "sid.cf_weight > 0, but no two items are bought together more than chance: set sid.cf_weight=0"

Bools = npt.NDArray[np.bool_]
faiss_any: Any = faiss


def write_factors(data: Path, texts: Reader, out: Path, settings: Sid, seed: int) -> None:
    """Write the collaborative vectors of all items to ``out/cf``, from their text vectors and the log in ``data``.

    Raises:
        InputError: as ``factorise`` and ``fill_cold``.
    """
    scratch = out / "ppmi"
    events, dims, window = TrainEvents.read(data), settings.cf_dims, settings.cf_window
    try:
        factors_ND, warm_N = factorise(events, len(texts), dims=dims, window=window, seed=seed, scratch=scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    fill_cold(factors_ND, warm_N, texts, seed)
    for shard, start in enumerate(range(0, len(factors_ND), settings.shard_items)):
        write_vectors(factors_ND[start : start + settings.shard_items], start, shard_path(out / "cf", shard))


def refuse_wide(dims: int, items: int) -> None:
    """Raise InputError if so many items have no ``dims`` factors."""
    if dims > items - 2:
        raise InputError(f"sid.cf_dims={dims} needs more than {dims + 1} items, there are {items}; lower sid.cf_dims")


def factorise(
    events: TrainEvents, items: int, *, dims: int, window: int, seed: int, scratch: Path
) -> tuple[Floats, Bools]:
    """Item factors (N, dims), rows of length 1: U √S of the truncated SVD of the PPMI matrix; and which items are warm.

    A warm item is chosen together with some other one more often than by chance; a cold one has no factors yet.
    Deterministic: draws are by ``seed``, and the sign of each factor is fixed. For up to ``EXACT_ITEMS`` items, and a
    log of few events, the decomposition is exact and the matrix is in memory; else it is randomised, and the matrix is
    in the folder ``scratch``.

    Args:
        items: N; dims: width of the factors, at most N - 2; window: train positions that count as together.

    Raises:
        InputError: no user has two train items, or the catalogue is too small for ``dims``.
    """
    together = Cooccurrence.of(events, items, window)
    if not together.weights_N.any():
        raise InputError("sid.cf_weight > 0, but no user has two train items: set sid.cf_weight=0")
    refuse_wide(dims, items)
    ranges = list(together.ranges())
    if len(ranges) == 1 and items <= EXACT_ITEMS:
        matrix = together.ppmi(ranges[0])
        related_N = np.diff(matrix.indptr) > 0
        if not related_N.any():
            raise InputError(NONE_RELATED)
        left_Nk, value_k = exact_svd(matrix, dims, seed)
    else:
        blocks = BlocksOnDisk(scratch)
        related_N = np.concatenate([blocks.add(Block(rows.start, together.ppmi(rows))) for rows in ranges])
        left_Nk, value_k = randomised_svd(blocks, items, dims, seed, scratch)
    factors_ND, length_N = _unit_factors(left_Nk, value_k)
    return factors_ND, (length_N > 1e-6) & related_N


def _unit_factors(left_Nk: npt.NDArray[np.floating], value_k: Doubles) -> tuple[Floats, Floats]:
    """Rows of U √S at length 1 (N, k), in the place of U where that is in single precision; and their lengths (N,)."""
    largest_k = [np.abs(column_N).argmax() for column_N in left_Nk.T]
    sign_k = np.where(left_Nk[largest_k, np.arange(len(value_k))] < 0, -1, 1)
    factors_Nk = left_Nk if left_Nk.dtype == np.float32 else np.empty(left_Nk.shape, np.float32)
    length_N = np.empty(len(left_Nk), np.float32)
    for start in range(0, len(left_Nk), ROWS):
        part = slice(start, start + ROWS)
        scaled_Rk = np.asarray(left_Nk[part] * (np.sqrt(value_k) * sign_k), np.float32)
        length_N[part] = np.linalg.norm(scaled_Rk, axis=1)
        factors_Nk[part] = unit_rows(scaled_Rk)
    return factors_Nk, length_N


def fill_cold(factors_ND: Floats, warm_N: Bools, texts: Reader, seed: int) -> None:
    """Write into the factors of each cold item the mean of those of the 10 warm items with the nearest texts (cosine).

    They are searched among at most ``POOL`` warm items, drawn by ``seed``; among more than ``COMPARED`` with an index,
    which finds most of them.

    Raises:
        InputError: no item is warm, or a text vector cannot be compared.
    """
    cold, pool = np.flatnonzero(~warm_N), np.flatnonzero(warm_N)
    if len(cold) == 0:
        return
    if len(pool) == 0:
        raise InputError(NONE_RELATED)
    if len(pool) > POOL:
        pool = np.sort(np.random.default_rng(seed).choice(pool, POOL, replace=False))
    nearest = _search(texts.read(pool))
    for start in range(0, len(cold), COLD):
        part = cold[start : start + COLD]
        factors_ND[part] = mean_factors(factors_ND, pool[nearest(texts.read(part))])


def mean_factors(factors_ND: Floats, near_MX: Longs) -> Floats:
    """The mean (M, D) of each row's factors, at length 1."""
    return unit_rows(factors_ND[near_MX].mean(axis=1))


def neighbour_factors(factors_ND: Floats, text_ND: Floats, cold_MD: Floats) -> Floats:
    """Factors (M, D) of M cold items: the mean factors of the 10 items with the nearest texts (by cosine).

    Args:
        factors_ND: factors of the warm items; text_ND: their text vectors (N, D_text).
        cold_MD: text vectors (M, D_text) of the cold items.
    """
    return mean_factors(factors_ND, nearest_rows(text_ND, cold_MD))


def _search(pool_PD: Floats) -> Callable[[Floats], Longs]:
    """A function from vectors (M, D) to the rows (M, 10) of the pool with the largest cosines."""
    if len(pool_PD) <= COMPARED:
        return lambda cold_MD: nearest_rows(pool_PD, cold_MD)
    pool_PD = unit_rows(pool_PD)
    index = faiss_any.index_factory(pool_PD.shape[1], f"IVF{LISTS},Flat", faiss_any.METRIC_INNER_PRODUCT)
    index.train(pool_PD)
    index.add(pool_PD)
    index.nprobe = PROBED

    def search(cold_MD: Floats) -> Longs:
        found_MX = index.search(unit_rows(cold_MD), NEIGHBOURS)[1]
        return np.where(found_MX < 0, found_MX[:, :1], found_MX)

    return search
