"""Semantic IDs and their prefixes as numbers, and the search for the prefixes nearest to a vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from genrec.errors import InputError
from genrec.sid.vectors import Floats, Ints, Longs


class LevelCosts(Protocol):
    """The part of a quantizer that the search for codes uses."""

    level_sizes: tuple[int, ...]

    def level_costs(self, vectors_ND: Floats, prefix_Nl: Ints) -> Floats:
        """Squared error (N, K) if each of the next level's K codes followed each row's prefix (N, l)."""
        ...


def refuse_full(items: int, level_sizes: Sequence[int]) -> None:
    """Raise InputError if there are more items than SIDs, or more than 2^62 SIDs."""
    room = math.prod(level_sizes)
    if items > room:
        raise InputError(
            f"{items} items do not fit into {room} semantic IDs ({' x '.join(map(str, level_sizes))}); "
            "raise sid.codebook_size or sid.levels"
        )
    refuse_many(level_sizes)


def refuse_many(level_sizes: Sequence[int]) -> None:
    """Raise InputError if there are more than 2^62 SIDs, so that their numbers would not fit into 64 bits."""
    if math.prod(level_sizes) > 2**62:
        raise InputError(
            f"{' x '.join(map(str, level_sizes))} semantic IDs exceed 2^62; lower sid.codebook_size or sid.levels"
        )


def prefix_numbers(codes_Nl: Ints, level_sizes: Sequence[int]) -> Longs:
    """Each row of codes (N, l) as one number, (N,) int64, in mixed radix: numbers sort as their codes do."""
    number_N = np.zeros(len(codes_Nl), np.int64)
    for level in range(codes_Nl.shape[1]):
        number_N = number_N * level_sizes[level] + codes_Nl[:, level]
    return number_N


def prefix_codes(number_N: Longs, level_sizes: Sequence[int]) -> Ints:
    """The codes (N, l) int32 of numbers (N,): the inverse of ``prefix_numbers``."""
    columns: list[Ints] = []
    for size in reversed(level_sizes):
        number_N, code_N = np.divmod(number_N, size)
        columns.append(code_N.astype(np.int32))
    return np.stack(columns[::-1], axis=1) if columns else np.empty((len(number_N), 0), np.int32)


def nearest_prefixes(vectors_MD: Floats, quantizer: LevelCosts, width: int) -> Longs:
    """Numbers (M, W) int64 of the ``width`` prefixes of L - 1 codes with the lowest costs for each vector, best first.

    A beam search over the levels, in which the lower number wins a tie. It is exact if ``width`` is at least the number
    of prefixes.
    """
    sizes, rows = quantizer.level_sizes[:-1], len(vectors_MD)
    numbers_MW = np.zeros((rows, 1), np.int64)
    for level, size in enumerate(sizes):
        repeated_PD = np.repeat(vectors_MD, numbers_MW.shape[1], axis=0)
        costs_PK = quantizer.level_costs(repeated_PD, prefix_codes(numbers_MW.reshape(-1), sizes[:level]))
        costs_MX = costs_PK.reshape(rows, -1)
        numbers_MX = (numbers_MW[:, :, None] * size + np.arange(size)).reshape(rows, -1)
        if costs_MX.shape[1] > width:
            best_MW = _lowest(costs_MX, numbers_MX, width)
            costs_MX = np.take_along_axis(costs_MX, best_MW, axis=1)
            numbers_MX = np.take_along_axis(numbers_MX, best_MW, axis=1)
        numbers_MW = np.take_along_axis(numbers_MX, np.lexsort((numbers_MX, costs_MX), axis=1), axis=1)
    return numbers_MW


def _lowest(costs_MX: Floats, numbers_MX: Longs, width: int) -> Longs:
    """The columns (M, width) of the lowest costs, in any order; of equal ones those with the lower numbers."""
    best_MW = np.argpartition(costs_MX, width - 1, axis=1)[:, :width]
    limit_M1 = np.take_along_axis(costs_MX, best_MW, axis=1).max(axis=1, keepdims=True)
    tied = np.flatnonzero((costs_MX <= limit_M1).sum(axis=1) > width)
    if len(tied):
        best_MW[tied] = np.lexsort((numbers_MX[tied], costs_MX[tied]), axis=1)[:, :width]
    return best_MW
