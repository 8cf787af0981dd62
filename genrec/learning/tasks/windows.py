"""Sliding windows over users' sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

SHORTEST = 2
"""Items of a sequence that has a window."""


def sliding_windows(sequences: Sequence[Sequence[int]], size: int, stride: int) -> list[Sequence[int]]:
    """Every window of ``size`` items at every ``stride``-th place, and one at the end, of all ``sequences``.

    A sequence that is shorter than ``size`` is one window.
    """
    found = (sequence[start : start + size] for sequence in sequences for start in _starts(len(sequence), size, stride))
    return list(found)


def _starts(length: int, size: int, stride: int) -> Iterator[int]:
    if length < SHORTEST:
        return
    last = max(length - size, 0)
    yield from range(0, last, stride)
    yield last
