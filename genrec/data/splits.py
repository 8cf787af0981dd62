"""The split of each event, (E,) int8: the target of a query of train (1), valid (2) or test (3), or no target (0).

A user's first event is never a target, because a query has a history. Events are sorted by user; ``starts_V`` holds
the U + 1 offsets of the users' events, so user u has the events ``starts_V[u] … starts_V[u + 1] - 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrec.errors import InputError

Codes = NDArray[np.int8]
Ints = NDArray[np.int64]


def leave_one_out(starts_V: Ints) -> Codes:
    """The last event is test, the second last valid, and the others except the first are train.

    A user with two events has one train query; a user with one event has none.
    Source: Kang & McAuley, "Self-Attentive Sequential Recommendation" (2018).
    """
    first, length = starts_V[:-1], np.diff(starts_V)
    codes = np.ones(int(starts_V[-1]), np.int8)
    long = length >= 3
    codes[starts_V[1:][long] - 1] = 3
    codes[starts_V[1:][long] - 2] = 2
    codes[first] = 0
    return codes


def given(codes_E: Codes, starts_V: Ints) -> Codes:
    """The codes (E,) from the log, with each user's first event set to 0.

    Raises:
        InputError: a user has a train target after a valid or test target, or valid after test, so that the model
            would learn from the future of its test.
    """
    codes = codes_E.copy()
    codes[starts_V[:-1]] = 0
    users = np.repeat(np.arange(len(starts_V) - 1), np.diff(starts_V))
    highest = np.maximum.accumulate(users * 4 + codes) - users * 4
    back = (codes > 0) & (codes < highest)
    if back.any():
        names = ("", "train", "valid", "test")
        where = int(np.flatnonzero(back)[0])
        raise InputError(
            f"{int(back.sum())} events out of order: a user has a {names[codes[where]]} target after a "
            f"{names[highest[where]]} target; split=given needs train before valid before test within each user"
        )
    return codes


@dataclass(frozen=True)
class Cut:
    """A point in the order of all samples: (time, rank of the user, position in the user's history)."""

    time: int
    user: int
    position: int

    def before(self, time_E: Ints, user_E: Ints, position_E: Ints) -> NDArray[np.bool_]:
        """Which samples are before the cut, (E,) bool."""
        tied = (time_E == self.time) & ((user_E < self.user) | ((user_E == self.user) & (position_E < self.position)))
        return (time_E < self.time) | tied


@dataclass(frozen=True)
class Samples:
    """The samples of one bucket, (E,) each: the keys by which samples are ordered over all users.

    ``time`` is in epoch seconds, ``user`` ranks users by their first row in the log, and ``position`` numbers a user's
    events from 0. Samples of equal time are ordered by user and position, as in MiniOneRec's stable sort.
    """

    time: Ints
    user: Ints
    position: Ints


def cut_points(read: Callable[[], Iterable[Samples]], shares: Sequence[float] = (0.8, 0.9)) -> tuple[Cut | None, ...]:
    """The cuts that have int(total · share) samples before them; None if no sample is after the cut.

    ``read`` yields the samples bucket by bucket. It is called twice: for the times of all samples, which are held in
    memory, and then for the samples whose time is that of a cut.
    """
    time = np.concatenate([np.zeros(0, np.int64), *(bucket.time for bucket in read())])
    ranks = [int(len(time) * share) for share in shares]
    times = [int(np.partition(time, rank)[rank]) if rank < len(time) else -1 for rank in ranks]
    ties: list[list[NDArray[np.int64]]] = [[] for _ in shares]
    for bucket in read():
        for tied, at in zip(ties, times, strict=True):
            here = bucket.time == at
            tied.append(np.stack([bucket.user[here], bucket.position[here]]))
    cuts: list[Cut | None] = []
    for tied, at, rank in zip(ties, times, ranks, strict=True):
        user, event = np.concatenate(tied, axis=1) if tied else np.zeros((2, 0), np.int64)
        nth = rank - int((time < at).sum())
        row = np.lexsort((event, user))[nth] if at >= 0 else -1
        cuts.append(Cut(at, int(user[row]), int(event[row])) if at >= 0 else None)
    return tuple(cuts)


def chronological(samples_E: Samples, starts_V: Ints, cuts: Sequence[Cut | None]) -> Codes:
    """Train before the first cut, valid before the second, then test; each user's first event is 0."""
    codes = np.ones(len(samples_E.time), np.int8)
    for cut in cuts:
        if cut is not None:
            codes += ~cut.before(samples_E.time, samples_E.user, samples_E.position)
    codes[starts_V[:-1]] = 0
    return codes


def hash_ids(ids_Q: Ints) -> NDArray[np.uint64]:
    """Hashes (Q,) uint64 of query ids (Q,): the splitmix64 finaliser, a bijection.

    Source: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    mixed = ids_Q.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_limit(ids: Sequence[Ints], count: int) -> int | None:
    """The largest hash among the ``count`` ids with the smallest hashes; None if ``count`` is 0 or covers all ids."""
    total = sum(len(part) for part in ids)
    if count == 0 or total <= count:
        return None
    return int(np.partition(hash_ids(np.concatenate(ids)), count - 1)[count - 1])
