"""Semantic IDs without collisions: after quantizing, items that share a SID are matched to free ones nearby.

1. A prefix (c1 … c_{L-1}) with more items than last-level codes keeps the nearest ones; its farthest items pass on to
   their next-nearest prefix with room (the nearest found by a beam over the quantizer's levels, widened while all of
   them are full).
2. Every prefix in which two items share a SID is solved whole: a linear assignment of its items to the K last-level
   codes at the least sum of squared residual distances. Items of all other prefixes keep their codes.

The result depends on the vectors and ``rank_N`` (the order of the shop's ids), not on the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from genrec.errors import InputError
from genrec.sid.quantizers.base import Quantizer
from genrec.sid.vectors import Floats, Ints

Longs = npt.NDArray[np.int64]
ROWS = 4096
FIRST_WIDTH = 16
FREE_ROWS = 256


class LevelCosts(Protocol):
    """What assignment asks of a quantizer."""

    level_sizes: tuple[int, ...]

    def level_costs(self, vectors_ND: Floats, prefix_Nl: Ints) -> Floats:
        """Squared error (N, K) if each of the next level's K codes followed each row's prefix of l codes."""
        ...


def resolve(codes_NL: Ints, vectors_ND: Floats, quantizer: Quantizer, rank_N: Longs | None = None) -> Ints:
    """Codes (N, L) int32 in which every row is distinct, at little cost in reconstruction.

    Args:
        codes_NL: what ``quantizer.encode`` gave for ``vectors_ND``.
        rank_N: distinct numbers that break ties between equal vectors; row numbers if left out.

    Raises:
        InputError: more items than SIDs.
    """
    sizes = quantizer.level_sizes
    refuse_full(len(codes_NL), sizes)
    rank_N = np.arange(len(codes_NL)) if rank_N is None else rank_N
    before_N = prefix_numbers(codes_NL[:, :-1], sizes)
    prefix_N = _rebalance_full_prefixes(before_N, vectors_ND, quantizer, rank_N)
    last_N = codes_NL[:, -1].astype(np.int64)
    moved = np.unique(prefix_N[prefix_N != before_N])
    for rows in _groups(_colliding_rows(prefix_N, last_N, sizes[-1], moved), prefix_N, rank_N):
        _assign_last_codes(rows, prefix_N, last_N, vectors_ND, quantizer)
    return np.concatenate([prefix_codes(prefix_N, sizes[:-1]), last_N[:, None].astype(np.int32)], axis=1)


def refuse_full(items: int, level_sizes: Sequence[int]) -> None:
    """Raise InputError when there are more items than SIDs, or too many SIDs (``refuse_many``)."""
    room = math.prod(level_sizes)
    if items > room:
        raise InputError(
            f"{items} items do not fit into {room} semantic IDs ({' x '.join(map(str, level_sizes))}); "
            "raise sid.codebook_size or sid.levels"
        )
    refuse_many(level_sizes)


def refuse_many(level_sizes: Sequence[int]) -> None:
    """Raise InputError when there are more SIDs than a 64-bit number can tell apart."""
    if math.prod(level_sizes) > 2**62:
        raise InputError(
            f"{' x '.join(map(str, level_sizes))} semantic IDs exceed 2^62; lower sid.codebook_size or sid.levels"
        )


def prefix_numbers(codes_Nl: Ints, level_sizes: Sequence[int]) -> Longs:
    """Each row of l codes as one number (mixed radix, so numbers sort as the codes do), (N,) int64."""
    number_N = np.zeros(len(codes_Nl), np.int64)
    for level in range(codes_Nl.shape[1]):
        number_N = number_N * level_sizes[level] + codes_Nl[:, level]
    return number_N


def prefix_codes(number_N: Longs, level_sizes: Sequence[int]) -> Ints:
    """The inverse of ``prefix_numbers``: (N, l) int32."""
    columns: list[Ints] = []
    for size in reversed(level_sizes):
        number_N, code_N = np.divmod(number_N, size)
        columns.append(code_N.astype(np.int32))
    return np.stack(columns[::-1], axis=1) if columns else np.empty((len(number_N), 0), np.int32)


def nearest_prefixes(vectors_MD: Floats, quantizer: LevelCosts, width: int) -> Longs:
    """Numbers (M, W) of the ``width`` prefixes of L-1 codes that fit each vector best, best first.

    A beam search over the levels; ties go to the lower number. A width of at least all prefixes is exhaustive.
    """
    sizes, rows = quantizer.level_sizes[:-1], len(vectors_MD)
    numbers_MW = np.zeros((rows, 1), np.int64)
    for level, size in enumerate(sizes):
        repeated_PD = np.repeat(vectors_MD, numbers_MW.shape[1], axis=0)
        costs_PK = quantizer.level_costs(repeated_PD, prefix_codes(numbers_MW.reshape(-1), sizes[:level]))
        costs_MX = costs_PK.reshape(rows, -1)
        numbers_MX = (numbers_MW[:, :, None] * size + np.arange(size)).reshape(rows, -1)
        if costs_MX.shape[1] > width:
            best_MW = np.argpartition(costs_MX, width - 1, axis=1)[:, :width]
            costs_MX = np.take_along_axis(costs_MX, best_MW, axis=1)
            numbers_MX = np.take_along_axis(numbers_MX, best_MW, axis=1)
        numbers_MW = np.take_along_axis(numbers_MX, np.lexsort((numbers_MX, costs_MX), axis=1), axis=1)
    return numbers_MW


def nearest_free(vectors_MD: Floats, quantizer: LevelCosts, taken_N: Longs) -> Longs:
    """The number of a free SID for each vector, (M,): in this order, each the nearest that nobody has.

    Nearest by the costs of the last level, among the prefixes of a beam that widens while all under it is taken.

    Args:
        taken_N: SIDs that are not free, as ``prefix_numbers`` numbers them. There must be M others.
    """
    taken_N = np.sort(taken_N)
    chosen_M = np.empty(len(vectors_MD), np.int64)
    for start in range(0, len(vectors_MD), FREE_ROWS):
        part = slice(start, start + FREE_ROWS)
        chosen_M[part] = _choose_free(vectors_MD[part], quantizer, taken_N)
        taken_N = np.sort(np.concatenate([taken_N, chosen_M[part]]))
    return chosen_M


def _choose_free(vectors_RD: Floats, quantizer: LevelCosts, taken_N: Longs) -> Longs:
    """``nearest_free`` of a few rows: their candidates are found together, then each row in turn takes its best."""
    total = math.prod(quantizer.level_sizes[:-1])
    numbers_RX, costs_RX = _candidates(vectors_RD, quantizer, taken_N, min(FIRST_WIDTH, total))
    chosen: list[int] = []
    for row in range(len(vectors_RD)):
        numbers_X, costs_X, width = numbers_RX[row], costs_RX[row], FIRST_WIDTH
        while True:
            costs_X = np.where(np.isin(numbers_X, chosen), np.inf, costs_X)
            best = int(costs_X.argmin())
            if np.isfinite(costs_X[best]) or width >= total:
                break
            width *= 8
            wider = _candidates(vectors_RD[row : row + 1], quantizer, taken_N, min(width, total))
            numbers_X, costs_X = wider[0][0], wider[1][0]
        chosen.append(int(numbers_X[best]))
    return np.array(chosen, np.int64)


def _candidates(vectors_RD: Floats, quantizer: LevelCosts, taken_N: Longs, width: int) -> tuple[Longs, Floats]:
    """SIDs under each row's ``width`` nearest prefixes, (R, width · K), and what each costs; inf at taken ones."""
    sizes, rows = quantizer.level_sizes, len(vectors_RD)
    prefix_RW = nearest_prefixes(vectors_RD, quantizer, width)
    numbers_RX = (prefix_RW[..., None] * sizes[-1] + np.arange(sizes[-1])).reshape(rows, -1)
    repeated_PD = np.repeat(vectors_RD, prefix_RW.shape[1], axis=0)
    costs_PK = quantizer.level_costs(repeated_PD, prefix_codes(prefix_RW.reshape(-1), sizes[:-1]))
    at_RX = np.searchsorted(taken_N, numbers_RX).clip(max=len(taken_N) - 1)
    return numbers_RX, np.where(taken_N[at_RX] == numbers_RX, np.inf, costs_PK.reshape(rows, -1))


def _rebalance_full_prefixes(prefix_N: Longs, vectors_ND: Floats, quantizer: Quantizer, rank_N: Longs) -> Longs:
    """Prefix numbers in which none has more items than last-level codes."""
    room = quantizer.level_sizes[-1]
    numbers, counts = np.unique(prefix_N, return_counts=True)
    rows = np.flatnonzero(np.isin(prefix_N, numbers[counts > room]))
    if len(rows) == 0:
        return prefix_N
    cost_R = _own_costs(vectors_ND, prefix_N, rows, quantizer)
    order_R = np.lexsort((rank_N[rows], cost_R, prefix_N[rows]))
    start_R = np.searchsorted(prefix_N[rows][order_R], prefix_N[rows][order_R])
    passed_on = order_R[np.arange(len(rows)) - start_R >= room]
    passed_on = passed_on[np.lexsort((rank_N[rows][passed_on], cost_R[passed_on]))]
    taken = dict(zip(numbers.tolist(), np.minimum(counts, room).tolist(), strict=True))
    return _place_overflow(prefix_N.copy(), rows[passed_on], vectors_ND, quantizer, taken)


def _own_costs(vectors_ND: Floats, prefix_N: Longs, rows: Longs, quantizer: Quantizer) -> Floats:
    sizes = quantizer.level_sizes[:-1]
    if not sizes:
        return np.zeros(len(rows), np.float32)
    cost_R = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        codes_Pl = prefix_codes(prefix_N[part], sizes)
        costs_PK = _costs(vectors_ND[part], codes_Pl[:, :-1], quantizer)
        cost_R[start : start + ROWS] = np.take_along_axis(costs_PK, codes_Pl[:, -1:], axis=1)[:, 0]
    return cost_R


def _costs(vectors_RD: Floats, prefix_Rl: Ints, quantizer: Quantizer) -> Floats:
    """``quantizer.level_costs``, with exactly equal rows for equal inputs (matrix products do not promise that)."""
    first_U, which_R = _distinct(vectors_RD, prefix_Rl)
    return quantizer.level_costs(vectors_RD[first_U], prefix_Rl[first_U])[which_R]


def _distinct(*parts_R: npt.NDArray[Any]) -> tuple[Longs, Longs]:
    """Rows that differ: the first row of each kind (U,), and the kind of each row (R,).

    Rows are told apart by a 64-bit sum; where two unlike rows share one, byte by byte.
    """
    bits_RX = np.concatenate([np.ascontiguousarray(part).view(np.uint32) for part in parts_R], axis=1)
    weights_X = np.random.default_rng(0).integers(2**63, size=bits_RX.shape[1], dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    sums_R = np.einsum("rx,x->r", bits_RX, weights_X, dtype=np.uint64, casting="safe")
    _, first_U, which_R = np.unique(sums_R, return_index=True, return_inverse=True)
    if not np.array_equal(bits_RX[first_U[which_R]], bits_RX):
        _, first_U, which_R = np.unique(bits_RX, axis=0, return_index=True, return_inverse=True)
    return first_U, which_R


def _place_overflow(
    prefix_N: Longs, rows: Longs, vectors_ND: Floats, quantizer: Quantizer, taken: dict[int, int]
) -> Longs:
    """Give each of ``rows``, in this order, its nearest prefix with room; ``taken`` counts items per prefix.

    Equal vectors share one list of candidates and one position in it (prefixes only fill up), so thousands of them
    cost no more than one walk along the list.
    """
    room, total = quantizer.level_sizes[-1], math.prod(quantizer.level_sizes[:-1])
    width = min(FIRST_WIDTH, total)
    while len(rows):
        stuck: list[int] = []
        batch = max(1, 32768 // width)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            first_U, which_P = _distinct(vectors_ND[part])
            unique_UD = vectors_ND[part][first_U]
            lists = [
                number
                for u in range(0, len(unique_UD), batch)
                for number in nearest_prefixes(unique_UD[u : u + batch], quantizer, width).tolist()
            ]
            at = [0] * len(lists)
            for row, which in zip(part.tolist(), which_P.tolist(), strict=True):
                candidates, position = lists[which], at[which]
                while position < width and taken.get(candidates[position], 0) >= room:
                    position += 1
                at[which] = position
                if position == width:
                    stuck.append(row)
                else:
                    prefix_N[row] = candidates[position]
                    taken[candidates[position]] = taken.get(candidates[position], 0) + 1
        rows, width = np.array(stuck, np.int64), min(width * 8, total)
    return prefix_N


def _colliding_rows(prefix_N: Longs, last_N: Longs, codes: int, moved: Longs) -> Longs:
    """Rows of all prefixes in which a SID is shared, and of those that took in another prefix's items."""
    sids, counts = np.unique(prefix_N * codes + last_N, return_counts=True)
    wanted = np.union1d(sids[counts > 1] // codes, moved)
    return np.flatnonzero(np.isin(prefix_N, wanted))


def _groups(rows: Longs, prefix_N: Longs, rank_N: Longs) -> list[list[Longs]]:
    """The rows by prefix, each prefix in order of rank; prefixes packed into lists of about ``ROWS`` rows."""
    rows = rows[np.lexsort((rank_N[rows], prefix_N[rows]))]
    borders = np.flatnonzero(np.diff(prefix_N[rows])) + 1
    packs: list[list[Longs]] = []
    filled = ROWS
    for group in np.split(rows, borders) if len(rows) else []:
        if filled + len(group) > ROWS:
            packs.append([])
            filled = 0
        packs[-1].append(group)
        filled += len(group)
    return packs


def _assign_last_codes(
    groups: list[Longs], prefix_N: Longs, last_N: Longs, vectors_ND: Floats, quantizer: Quantizer
) -> None:
    rows = np.concatenate(groups)
    prefix_Rl = prefix_codes(prefix_N[rows], quantizer.level_sizes[:-1])
    costs_RK = _costs(vectors_ND[rows], prefix_Rl, quantizer).astype(np.float64)
    start = 0
    for group in groups:
        _, code = linear_sum_assignment(costs_RK[start : start + len(group)])
        last_N[group] = code
        start += len(group)
