"""Collision resolution: after quantizing, items that share a semantic ID are assigned free ones nearby.

1. If a prefix (c_1 … c_{L-1}) has more items than last-level codes, it keeps the nearest ones. The others move to their
   nearest prefix that is not full, which a beam search over the quantizer's levels finds; the beam is widened while all
   the prefixes that it finds are full.
2. In each prefix in which two items share a SID, the items are assigned to the K last-level codes so that the sum of
   squared residual distances is minimal (linear assignment). Items of all other prefixes keep their codes.

The result depends on the vectors and on ``rank_N`` (the order of the item ids), not on the order of the rows. Only
vectors of items that may move are read, about a gigabyte of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from genrec.sid.distributed.vector_stream import Reader
from genrec.sid.prefixes import nearest_prefixes, prefix_codes, prefix_numbers, refuse_full
from genrec.sid.quantizers.base import Quantizer
from genrec.sid.vector_subset import InMemory, VectorSubset, held_in_parts, packs_with_vectors
from genrec.sid.vectors import Floats, Ints, Longs

CHUNK = 4096
"""Rows whose costs are computed together."""
FIRST_WIDTH = 16
"""Prefixes that are searched first; the width is multiplied by 8 while all of them are full."""
CANDIDATES = 32768
"""Prefixes that are searched for at once, over all vectors."""


def resolve(codes_NL: Ints, vectors: Reader | Floats, quantizer: Quantizer, rank_N: Longs | None = None) -> Ints:
    """Distinct codes (N, L) int32, chosen for a low reconstruction error.

    Args:
        codes_NL: the codes that ``quantizer.encode`` returned for the ``vectors`` (N, D), in memory or in files.
        rank_N: distinct numbers (N,) that break ties between equal vectors; row numbers by default.

    Raises:
        InputError: more items than SIDs.
    """
    sizes = quantizer.level_sizes
    refuse_full(len(codes_NL), sizes)
    reader = InMemory(vectors) if isinstance(vectors, np.ndarray) else vectors
    rank_N = np.arange(len(codes_NL)) if rank_N is None else rank_N
    before_N = prefix_numbers(codes_NL[:, :-1], sizes)
    prefix_N = _rebalance_full_prefixes(before_N, reader, quantizer, rank_N)
    last_N = codes_NL[:, -1].astype(np.int64)
    moved = np.unique(prefix_N[prefix_N != before_N])
    packs = _groups(_colliding_rows(prefix_N, last_N, sizes[-1], moved), prefix_N, rank_N)
    for groups, held in packs_with_vectors(reader, packs):
        _assign_last_codes(groups, prefix_N, last_N, held, quantizer)
    return np.concatenate([prefix_codes(prefix_N, sizes[:-1]), last_N[:, None].astype(np.int32)], axis=1)


def _rebalance_full_prefixes(prefix_N: Longs, reader: Reader, quantizer: Quantizer, rank_N: Longs) -> Longs:
    """New prefix numbers (N,), so that no prefix has more items than last-level codes."""
    room = quantizer.level_sizes[-1]
    numbers, counts = np.unique(prefix_N, return_counts=True)
    rows = np.flatnonzero(np.isin(prefix_N, numbers[counts > room]))
    if len(rows) == 0:
        return prefix_N
    cost_R = _own_costs(reader, prefix_N, rows, quantizer)
    order_R = np.lexsort((rank_N[rows], cost_R, prefix_N[rows]))
    start_R = np.searchsorted(prefix_N[rows][order_R], prefix_N[rows][order_R])
    overflow = order_R[np.arange(len(rows)) - start_R >= room]
    overflow = overflow[np.lexsort((rank_N[rows][overflow], cost_R[overflow]))]
    taken = _Taken(numbers, np.minimum(counts, room))
    return _place_overflow(prefix_N.copy(), rows[overflow], reader, quantizer, taken)


class _Taken(dict[int, int]):
    """Items per prefix, by its number: at first those of the prefixes (P,) that are used, ascending."""

    def __init__(self, numbers_P: Longs, counts_P: Longs) -> None:
        super().__init__()
        self._numbers_P, self._counts_P = numbers_P, counts_P

    def __missing__(self, number: int) -> int:
        place = int(np.searchsorted(self._numbers_P, number))
        used = place < len(self._numbers_P) and self._numbers_P[place] == number
        count = int(self._counts_P[place]) if used else 0
        self[number] = count
        return count


def _own_costs(reader: Reader, prefix_N: Longs, rows: Longs, quantizer: Quantizer) -> Floats:
    """Squared error (R,) of each row's own prefix."""
    sizes = quantizer.level_sizes[:-1]
    if not sizes:
        return np.zeros(len(rows), np.float32)
    cost_R = np.empty(len(rows), np.float32)
    start = 0
    for part, held in held_in_parts(reader, rows, CHUNK):
        codes_Pl = prefix_codes(prefix_N[part], sizes)
        costs_PK = _costs(held.of(part), codes_Pl[:, :-1], quantizer)
        cost_R[start : start + len(part)] = np.take_along_axis(costs_PK, codes_Pl[:, -1:], axis=1)[:, 0]
        start += len(part)
    return cost_R


def _costs(vectors_RD: Floats, prefix_Rl: Ints, quantizer: Quantizer) -> Floats:
    """``quantizer.level_costs``, with exactly equal results for equal rows (matrix products do not guarantee that)."""
    first_U, which_R = _distinct(vectors_RD, prefix_Rl)
    return quantizer.level_costs(vectors_RD[first_U], prefix_Rl[first_U])[which_R]


def _distinct(*parts_R: npt.NDArray[Any]) -> tuple[Longs, Longs]:
    """Distinct rows: the first row of each (U,), and the index among these of every row (R,).

    Rows are compared by a 64-bit hash; if two different rows have the same hash, by all their bytes.
    """
    bits_RX = np.concatenate([np.ascontiguousarray(part).view(np.uint32) for part in parts_R], axis=1)
    weights_X = np.random.default_rng(0).integers(2**63, size=bits_RX.shape[1], dtype=np.uint64)
    weights_X = weights_X * np.uint64(2) + np.uint64(1)
    hash_R = np.einsum("rx,x->r", bits_RX, weights_X, dtype=np.uint64, casting="safe")
    _, first_U, which_R = np.unique(hash_R, return_index=True, return_inverse=True)
    if not np.array_equal(bits_RX[first_U[which_R]], bits_RX):
        _, first_U, which_R = np.unique(bits_RX, axis=0, return_index=True, return_inverse=True)
    return first_U, which_R


def _place_overflow(prefix_N: Longs, rows: Longs, reader: Reader, quantizer: Quantizer, taken: _Taken) -> Longs:
    """Give each of ``rows``, in this order, its nearest prefix that is not full; ``taken`` counts items per prefix.

    Writes into ``prefix_N`` (N,) and ``taken``.
    """
    total = math.prod(quantizer.level_sizes[:-1])
    width = min(FIRST_WIDTH, total)
    while len(rows):
        remaining: list[int] = []
        for part, held in held_in_parts(reader, rows, CHUNK):
            vectors_PD = held.of(part)
            first_U, which_P = _distinct(vectors_PD)
            candidates = _candidate_lists(vectors_PD[first_U], quantizer, width)
            remaining += _take_first_with_room(
                part, which_P, candidates, room=quantizer.level_sizes[-1], prefix_N=prefix_N, taken=taken
            )
        rows, width = np.array(remaining, np.int64), min(width * 8, total)
    return prefix_N


def _candidate_lists(vectors_UD: Floats, quantizer: Quantizer, width: int) -> list[list[int]]:
    batch = max(1, CANDIDATES // width)
    return [
        numbers
        for start in range(0, len(vectors_UD), batch)
        for numbers in nearest_prefixes(vectors_UD[start : start + batch], quantizer, width).tolist()
    ]


def _take_first_with_room(
    rows: Longs,
    which_P: Longs,
    candidates: list[list[int]],
    *,
    room: int,
    prefix_N: Longs,
    taken: _Taken,
) -> list[int]:
    """Give each row the first prefix of its list that is not full; returns the rows whose lists are all full.

    Row i has the list ``candidates[which_P[i]]``. Rows with equal vectors share a list, and the position in it, because
    a full prefix stays full: thousands of equal vectors take one walk along their list.
    """
    remaining: list[int] = []
    positions = [0] * len(candidates)
    for row, which in zip(rows.tolist(), which_P.tolist(), strict=True):
        numbers, position = candidates[which], positions[which]
        while position < len(numbers) and taken[numbers[position]] >= room:
            position += 1
        positions[which] = position
        if position == len(numbers):
            remaining.append(row)
        else:
            prefix_N[row] = numbers[position]
            taken[numbers[position]] = taken[numbers[position]] + 1
    return remaining


def _colliding_rows(prefix_N: Longs, last_N: Longs, codes: int, moved: Longs) -> Longs:
    """The rows of all prefixes in which items share a SID, and of those that got items of other prefixes."""
    sids, counts = np.unique(prefix_N * codes + last_N, return_counts=True)
    wanted = np.union1d(sids[counts > 1] // codes, moved)
    return np.flatnonzero(np.isin(prefix_N, wanted))


def _groups(rows: Longs, prefix_N: Longs, rank_N: Longs) -> list[list[Longs]]:
    """The rows of each prefix, by rank; prefixes are packed into lists of about ``CHUNK`` rows."""
    rows = rows[np.lexsort((rank_N[rows], prefix_N[rows]))]
    borders = np.flatnonzero(np.diff(prefix_N[rows])) + 1
    packs: list[list[Longs]] = []
    filled = CHUNK
    for group in np.split(rows, borders) if len(rows) else []:
        if filled + len(group) > CHUNK:
            packs.append([])
            filled = 0
        packs[-1].append(group)
        filled += len(group)
    return packs


def _assign_last_codes(
    groups: Sequence[Longs], prefix_N: Longs, last_N: Longs, held: VectorSubset, quantizer: Quantizer
) -> None:
    """Write into ``last_N`` (N,) the last codes of the rows of each group (one prefix) at the least total cost."""
    rows = np.concatenate(groups)
    prefix_Rl = prefix_codes(prefix_N[rows], quantizer.level_sizes[:-1])
    costs_RK = _costs(held.of(rows), prefix_Rl, quantizer).astype(np.float64)
    start = 0
    for group in groups:
        _, code = linear_sum_assignment(costs_RK[start : start + len(group)])
        last_N[group] = code
        start += len(group)
