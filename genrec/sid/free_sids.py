"""The search for the nearest free semantic ID, by which new items enter a catalogue whose SIDs do not change."""

from __future__ import annotations

import math

import numpy as np

from genrec.sid.prefixes import LevelCosts, nearest_prefixes, prefix_codes
from genrec.sid.vectors import Floats, Longs

FIRST_WIDTH = 16
"""Prefixes that are searched first; the width is multiplied by 8 while all their SIDs are taken."""
CHUNK = 256
"""Rows whose candidates are computed together."""


def nearest_free(vectors_MD: Floats, quantizer: LevelCosts, taken_N: Longs) -> Longs:
    """The number (M,) int64 of a free SID for each vector (M, D): in row order, each gets the nearest that is left.

    Nearest means of the lowest cost at the last level, among the SIDs below the prefixes that a beam search finds.

    Args:
        taken_N: numbers (N,) of the SIDs that are not free (``prefix_numbers``); at least M SIDs must be free.
    """
    taken_N = np.sort(taken_N)
    chosen_M = np.empty(len(vectors_MD), np.int64)
    for start in range(0, len(vectors_MD), CHUNK):
        part = slice(start, start + CHUNK)
        chosen_M[part] = _choose_free(vectors_MD[part], quantizer, taken_N)
        taken_N = np.sort(np.concatenate([taken_N, chosen_M[part]]))
    return chosen_M


def _choose_free(vectors_RD: Floats, quantizer: LevelCosts, taken_N: Longs) -> Longs:
    """``nearest_free`` of a few rows: find all their candidates, then let each row in turn take its best."""
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
    """The SIDs below each row's ``width`` nearest prefixes, (R, width · K), and their costs, inf for taken ones."""
    sizes, rows = quantizer.level_sizes, len(vectors_RD)
    prefix_RW = nearest_prefixes(vectors_RD, quantizer, width)
    numbers_RX = (prefix_RW[..., None] * sizes[-1] + np.arange(sizes[-1])).reshape(rows, -1)
    repeated_PD = np.repeat(vectors_RD, prefix_RW.shape[1], axis=0)
    costs_PK = quantizer.level_costs(repeated_PD, prefix_codes(prefix_RW.reshape(-1), sizes[:-1]))
    at_RX = np.searchsorted(taken_N, numbers_RX).clip(max=len(taken_N) - 1)
    return numbers_RX, np.where(taken_N[at_RX] == numbers_RX, np.inf, costs_PK.reshape(rows, -1))
