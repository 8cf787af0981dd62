"""The vectors that are quantized: text vectors, collaborative vectors from the train log, or both concatenated."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from scipy import sparse  # pyright: ignore[reportUnknownVariableType]
from scipy.sparse.linalg import svds

from genrec.config import Sid
from genrec.data.tables import SPLIT_CODES
from genrec.errors import InputError
from genrec.sid.distributed.vector_stream import Reader
from genrec.sid.vectors import Floats, Longs, VectorFiles, check_vectors, nearest_rows, unit_rows

BLOCK = 65536
"""Items that are read at once, so that all vectors are in memory once, not three times."""
TRAIN = (SPLIT_CODES["first"], SPLIT_CODES["train"])


def fuse(text_ND: Floats | None, cf_ND: Floats | None, text_weight: float, cf_weight: float) -> Floats:
    """Concatenate w_text · text / |text| and w_cf · cf / |cf|, (N, D_text + D_cf); a part of weight 0 is left out.

    So |x - y|² = w_text² |x_text - y_text|² + w_cf² |x_cf - y_cf|² for unit vectors of the parts.

    Raises:
        InputError: no part has a weight above 0.
    """
    parts = ((text_ND, text_weight), (cf_ND, cf_weight))
    used = [unit_rows(part, weight) for part, weight in parts if part is not None and weight > 0]
    if not used:
        raise InputError("sid.text_weight and sid.cf_weight are both 0: nothing is left to quantize; raise one of them")
    return used[0] if len(used) == 1 else np.concatenate(used, axis=1)


class FusedFiles:
    """Text vectors, collaborative vectors (``out/cf``, if they are used), or both concatenated, read by item row."""

    def __init__(self, vectors: Path, out: Path, settings: Sid) -> None:
        self._texts, self._weights = VectorFiles(vectors), (settings.text_weight, settings.cf_weight)
        self._factors = VectorFiles(out / "cf") if settings.cf_weight > 0 else None

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def width(self) -> int:
        """D_text + D_cf; a part of weight 0 is left out."""
        return (self._texts.width if self._weights[0] > 0 else 0) + (self._factors.width if self._factors else 0)

    def read(self, rows: range | Longs) -> Floats:
        """The vectors (n, D) float32 of the items ``rows`` (ascending).

        Raises:
            InputError: the files were changed, or a text vector is not finite or all zeros.
        """
        row_n = np.asarray(rows)
        inputs_nD = np.empty((len(row_n), self.width), np.float32)
        after = int(row_n[-1]) + 1 if len(row_n) else 0
        for start in range(int(row_n[0]) if len(row_n) else 0, after, BLOCK):
            stop = min(start + BLOCK, after)
            low, high = np.searchsorted(row_n, (start, stop))
            if low < high:
                text_BD = self._texts.read(start, stop)
                check_vectors(text_BD, start)
                inside = row_n[low:high] - start
                cf_BD = self._factors.read(start, stop)[inside] if self._factors else None
                inputs_nD[low:high] = fuse(text_BD[inside], cf_BD, *self._weights)
        return inputs_nD


class TitleFiles:
    """Hashed title words (``out/titles``), which the quantizer ``title`` takes as vectors, read by item row."""

    def __init__(self, out: Path) -> None:
        self._words = VectorFiles(out / "titles")

    def __len__(self) -> int:
        return len(self._words)

    @property
    def width(self) -> int:
        """L, one word per level."""
        return self._words.width

    def read(self, rows: range | Longs) -> Floats:
        """The hashed words (n, L) of the items ``rows``."""
        return self._words.read()[np.asarray(rows)]


def open_inputs(vectors: Path, out: Path, settings: Sid) -> Reader:
    """A reader of the vectors that are quantized under these settings."""
    return TitleFiles(out) if settings.quantizer == "title" else FusedFiles(vectors, out, settings)


def train_pairs(sequences: pa.Table, window: int) -> tuple[Any, Any, Any]:
    """Pairs of items at most ``window`` train positions apart in one user's sequence, and their weight 1 / distance.

    Targets of validation and test are removed first, so they have no influence.
    Returns three arrays (P,): left item, right item, weight.
    """
    lists = sequences["items"].combine_chunks()
    train = np.isin(sequences["split"].combine_chunks().flatten().to_numpy(), TRAIN)
    users = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())[train]
    items = lists.flatten().to_numpy()[train]
    left, right, weight = [], [], []
    for gap in range(1, window + 1):
        same = users[:-gap] == users[gap:]
        left.append(items[:-gap][same])
        right.append(items[gap:][same])
        weight.append(np.full(int(same.sum()), 1 / gap))
    return np.concatenate(left), np.concatenate(right), np.concatenate(weight)


def collaborative_vectors(
    sequences: pa.Table, items: int, *, dims: int, window: int, seed: int, text_ND: Floats | None = None
) -> Floats:
    """Item factors (N, dims) from co-occurrence in the train log: U √S of the truncated SVD of the PPMI matrix.

    PPMI_ij = max(log(p_ij / (p_i q_j)), 0), with context probabilities q_j ∝ p_j^0.75. Deterministic: the start vector
    is drawn by ``seed``, and the sign of each factor is fixed.

    Source: Levy & Goldberg, "Neural Word Embedding as Implicit Matrix Factorization" (2014).

    Args:
        sequences: the sequence table; only positions that are context or train targets are used.
        items: N; dims: width of the factors, at most N - 2; window: positions that count as together.
        text_ND: text vectors. A cold item (without train pair) gets the mean factors of the warm items with the nearest
            texts; without ``text_ND``, the mean of all warm items.

    Returns:
        (N, dims) float32, rows of length 1.

    Raises:
        InputError: there is no train pair, or the catalogue is too small for ``dims``.
    """
    left, right, weight = train_pairs(sequences, window)
    if len(left) == 0:
        raise InputError("sid.cf_weight > 0, but no user has two train items: set sid.cf_weight=0")
    if dims > items - 2:
        raise InputError(f"sid.cf_dims={dims} needs more than {dims + 1} items, there are {items}; lower sid.cf_dims")
    counts = sparse.coo_matrix((weight, (left, right)), shape=(items, items)).tocsr()
    ppmi = _ppmi(counts + counts.T)
    start = np.random.default_rng(seed).standard_normal(items)
    u, s, _ = cast("Any", svds(ppmi.astype(np.float64), k=dims, v0=start))
    order = np.argsort(-s, kind="stable")
    factors_ND = u[:, order] * np.sqrt(s[order])
    factors_ND *= np.where(factors_ND[np.abs(factors_ND).argmax(axis=0), np.arange(dims)] < 0, -1, 1)
    factors_ND = np.asarray(factors_ND, np.float32)
    warm_N = (np.linalg.norm(factors_ND, axis=1) > 1e-6) & (np.diff(ppmi.indptr) > 0)
    return _with_cold_items(unit_rows(factors_ND), warm_N, text_ND)


def _ppmi(counts: Any) -> Any:
    counts = counts.tocoo()
    total = counts.data.sum()
    row_N = np.asarray(counts.sum(axis=1)).ravel()
    smooth_N = row_N**0.75
    expected = row_N[counts.row] * (smooth_N / smooth_N.sum())[counts.col]
    value = np.maximum(np.log(counts.data * total / (expected * total)), 0)
    ppmi = sparse.coo_matrix((value, (counts.row, counts.col)), shape=counts.shape).tocsr()
    ppmi.eliminate_zeros()
    return ppmi


def _with_cold_items(factors_ND: Floats, warm_N: Any, text_ND: Floats | None) -> Floats:
    cold, warm = np.flatnonzero(~warm_N), np.flatnonzero(warm_N)
    if len(cold) == 0:
        return factors_ND
    if len(warm) == 0:
        raise InputError("sid.cf_weight > 0, but no two items are bought together more than chance: sid.cf_weight=0")
    if text_ND is None:
        factors_ND[cold] = unit_rows(factors_ND[warm].mean(axis=0, keepdims=True))
        return factors_ND
    factors_ND[cold] = neighbour_factors(factors_ND[warm], text_ND[warm], text_ND[cold])
    return factors_ND


def neighbour_factors(factors_ND: Floats, text_ND: Floats, cold_MD: Floats) -> Floats:
    """Factors (M, D) of M cold items: the mean factors of the 10 items with the nearest texts (by cosine).

    Args:
        factors_ND: factors of the warm items; text_ND: their text vectors (N, D_text).
        cold_MD: text vectors (M, D_text) of the cold items.
    """
    return unit_rows(factors_ND[nearest_rows(text_ND, cold_MD)].mean(axis=1))
