"""Which query an event is the target of: 0 none, 1 train, 2 valid, 3 test. E events sorted by user, U users.

A user's first event is never a target: a query has a history. ``starts_V`` holds the U + 1 bounds of the users'
events, so user u owns events ``starts_V[u] … starts_V[u + 1] - 1``.
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
    """Last event test, second last valid, the others but the first train (Kang & McAuley 2018).

    A user with two events gives one train query; with one, none.
    """
    first, length = starts_V[:-1], np.diff(starts_V)
    codes = np.ones(int(starts_V[-1]), np.int8)
    long = length >= 3
    codes[starts_V[1:][long] - 1] = 3
    codes[starts_V[1:][long] - 2] = 2
    codes[first] = 0
    return codes


def given(codes_E: Codes, starts_V: Ints) -> Codes:
    """The log's own split, where a user's first event becomes context.

    Raises InputError if a user's split goes back in time (a train target after a test target): the model would
    learn from the future of its test.
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
            f"{names[highest[where]]} target; split=given wants train before valid before test within each user"
        )
    return codes


@dataclass(frozen=True)
class Cut:
    """A point in the order of all samples: (time, rank of the user, place in the user's history)."""

    time: int
    user: int
    place: int

    def before(self, time_E: Ints, user_E: Ints, place_E: Ints) -> NDArray[np.bool_]:
        """Samples that come before the cut."""
        tied = (time_E == self.time) & ((user_E < self.user) | ((user_E == self.user) & (place_E < self.place)))
        return (time_E < self.time) | tied


@dataclass(frozen=True)
class Samples:
    """The samples of one bucket, every event but a user's first: what their global order depends on.

    ``user`` ranks users by their first appearance in the log's files, ``place`` counts a user's events: ties in
    time stay in that order, as in MiniOneRec's stable sort.
    """

    time: Ints
    user: Ints
    place: Ints


def cut_points(read: Callable[[], Iterable[Samples]], shares: Sequence[float] = (0.8, 0.9)) -> tuple[Cut | None, ...]:
    """Where all samples, sorted by time, are cut at these shares (int(total x share) samples come before).

    ``read`` yields the samples bucket by bucket and is called once for the times, which alone are gathered, and
    once for the samples whose time is a cut's. None: nothing comes after the cut.
    """
    time = np.concatenate([np.zeros(0, np.int64), *(bucket.time for bucket in read())])
    places = [int(len(time) * share) for share in shares]
    times = [int(np.partition(time, place)[place]) if place < len(time) else -1 for place in places]
    ties: list[list[NDArray[np.int64]]] = [[] for _ in shares]
    for bucket in read():
        for tied, at in zip(ties, times, strict=True):
            here = bucket.time == at
            tied.append(np.stack([bucket.user[here], bucket.place[here]]))
    cuts: list[Cut | None] = []
    for tied, at, place in zip(ties, times, places, strict=True):
        user, event = np.concatenate(tied, axis=1) if tied else np.zeros((2, 0), np.int64)
        nth = place - int((time < at).sum())
        row = np.lexsort((event, user))[nth] if at >= 0 else -1
        cuts.append(Cut(at, int(user[row]), int(event[row])) if at >= 0 else None)
    return tuple(cuts)


def chronological(samples_E: Samples, starts_V: Ints, cuts: Sequence[Cut | None]) -> Codes:
    """Codes by the global order: before the first cut train, before the second valid, then test."""
    codes = np.ones(len(samples_E.time), np.int8)
    for cut in cuts:
        if cut is not None:
            codes += ~cut.before(samples_E.time, samples_E.user, samples_E.place)
    codes[starts_V[:-1]] = 0
    return codes


def hash_ids(ids_Q: Ints) -> NDArray[np.uint64]:
    """A fixed random-looking order of query ids: the splitmix64 finaliser, a bijection (Steele et al. 2014)."""
    mixed = ids_Q.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_limit(ids: Sequence[Ints], count: int) -> int | None:
    """The hash below or at which ``count`` of the ids lie; None if all do, or ``count`` is 0 (no cap)."""
    total = sum(len(part) for part in ids)
    if count == 0 or total <= count:
        return None
    return int(np.partition(hash_ids(np.concatenate(ids)), count - 1)[count - 1])
