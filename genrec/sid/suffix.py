"""Collisions resolved by one more level, which numbers the items of each SID (TIGER's extra digit)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.sid.prefixes import prefix_numbers, refuse_full
from genrec.sid.quantizers.base import Quantizer
from genrec.sid.vectors import Floats, Ints, Longs


def add_suffix(codes_NL: Ints, level_sizes: Sequence[int], rank_N: Longs | None = None) -> tuple[Ints, tuple[int, ...]]:
    """Codes (N, L + 1) whose last digit makes the SIDs (N, L) distinct, and the level sizes with it.

    Of the items with one SID the first by ``rank_N`` (N,) (row numbers by default) gets digit 0, the next 1, and so on.
    The new level is as large as the level before, or as the largest group of items if that is larger.
    Source: Rajput et al., "TIGER" (2023), section 3.1, "Handling collisions".

    Raises:
        InputError: more than 2^62 SIDs.
    """
    rank_N = np.arange(len(codes_NL)) if rank_N is None else rank_N
    number_N = prefix_numbers(codes_NL, level_sizes)
    order = np.lexsort((rank_N, number_N))
    ordered_N = number_N[order]
    digit_N = np.empty(len(codes_NL), np.int32)
    digit_N[order] = np.arange(len(order)) - np.searchsorted(ordered_N, ordered_N)
    sizes = (*level_sizes, max(level_sizes[-1], int(digit_N.max()) + 1))
    refuse_full(len(codes_NL), sizes)
    return np.concatenate([codes_NL, digit_N[:, None]], axis=1), sizes


class Suffixed:
    """The costs of a quantizer with the extra level: every digit costs as much as its SID."""

    def __init__(self, quantizer: Quantizer, digits: int) -> None:
        self._quantizer = quantizer
        self.level_sizes = (*quantizer.level_sizes, digits)

    def level_costs(self, vectors_ND: Floats, prefix_Nl: Ints) -> Floats:
        """Squared error (N, K) if each of the next level's K codes followed each row's prefix (N, l)."""
        if prefix_Nl.shape[1] < len(self._quantizer.level_sizes):
            return self._quantizer.level_costs(vectors_ND, prefix_Nl)
        costs_NK = self._quantizer.level_costs(vectors_ND, prefix_Nl[:, :-1])
        own_N1 = np.take_along_axis(costs_NK, prefix_Nl[:, -1:].astype(np.int64), axis=1)
        return np.repeat(own_N1, self.level_sizes[-1], axis=1)
