"""Statistics over all buckets, computed before they are written: numbering, counts, and checks that data is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genrec.config import Data, Filters
from genrec.data.sequences import Numbering, Users, count_repeats
from genrec.data.splits import Codes, Ints, hash_limit
from genrec.data.tables import SPLIT_CODES, SPLITS
from genrec.errors import InputError

NEVER = np.iinfo(np.int64).max
"""The time at which an item was first seen, if that is not known."""


@dataclass
class LogStatistics:
    """Counts over all buckets, and the numbers of each bucket's first user and event.

    ``repeats`` are targets whose item occurs earlier; ``unknown_first`` are users whose first event is a target in the
    log; ``targets`` counts queries per split; ``first_seen_N`` is each item's earliest known time, or ``NEVER``.
    """

    users: int = 0
    events: int = 0
    repeats: int = 0
    unknown_first: int = 0
    starts: list[tuple[int, int]] = field(default_factory=list)
    targets: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    limits: dict[str, int | None] = field(default_factory=dict)
    first_seen_N: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def numbering(self) -> tuple[Numbering, ...]:
        """The numbering of each bucket: users and events are numbered consecutively over the buckets."""
        return tuple(Numbering(user, event, self.limits) for user, event in self.starts)


def count_users(buckets: Iterable[tuple[Users, Codes]], items: int, eval_queries: int) -> LogStatistics:
    """Count in one pass over the buckets' users and split codes (E,).

    Memory: one bucket, and 8 bytes per evaluation query.
    """
    log = LogStatistics(first_seen_N=np.full(items, NEVER))
    ids: dict[str, list[Ints]] = {"valid": [], "test": []}
    for users, codes in buckets:
        numbers = Numbering(log.users, log.events, {}).ids(users)
        log.starts.append((log.users, log.events))
        log.users += len(users.user_ids)
        log.events += len(codes)
        log.repeats += count_repeats(users, codes)
        log.unknown_first += int((users.split_E[users.starts_V[:-1]] > 0).sum())
        known = users.known_E >= 0
        np.minimum.at(log.first_seen_N, users.item_E[known], users.known_E[known])
        for split in SPLITS:
            log.targets[split] += int((codes == SPLIT_CODES[split]).sum())
        for split, found in ids.items():
            found.append(numbers[codes == SPLIT_CODES[split]])
    log.limits = {split: hash_limit(found, eval_queries) for split, found in ids.items()}
    return log


def refuse_nothing_left(counts: Mapping[str, Any], left: Mapping[str, int], events: int, data: Data) -> None:
    """Raise InputError if no interaction is left; the message gives the number after each filter."""
    if events:
        return
    steps = [f"{counts['rows']:,} in the log", f"{counts['rows'] - counts['unknown']:,} with an item of the catalogue"]
    after = counts["rows"] - counts["unknown"] - counts["outside_window"]
    steps.append(f"{after:,} inside start … end")
    steps.append(f"{counts['kept']:,} with an item whose title is kept (title_words, require_title)")
    steps += [f"{number:,} after {name}" for name, number in left.items()]
    if left:
        steps.append(f"{events:,} after user_core={data.filters.user_core}, item_core={data.filters.item_core}")
    raise InputError("no interactions are left after the filters: " + " → ".join(steps) + "; loosen data.filters")


def refuse_missing_splits(log: LogStatistics, data: Data, whole_histories: bool) -> None:
    """Raise InputError if a split has no queries, or first events are missing from a log of rows with histories."""
    filtered = data.filters != Filters()
    if whole_histories and log.unknown_first and not filtered:
        raise InputError(
            f"{log.unknown_first} users have no row with a history of one item, so their first events are unknown: "
            "these files do not hold all rows of their users (every row of train, valid and test is needed)"
        )
    empty = [split for split in SPLITS if not log.targets[split]]
    if empty:
        raise InputError(
            f"split={data.split} leaves no {' and no '.join(empty)} queries from {log.users} users with "
            f"{log.events} events; leave_one_out needs users with at least four events, chronological ten samples, "
            "given rows of every split that are not their user's first"
        )


def statistics(
    log: LogStatistics, written: Mapping[str, int], counts: Mapping[str, Any], left: Mapping[str, int], items: int
) -> dict[str, Any]:
    """The contents of ``stats.json``: sizes, queries per split, repeats, and the interactions after each filter."""
    targets = sum(log.targets.values())
    return {
        "users": log.users,
        "items": items,
        "interactions": log.events,
        **written,
        "repeat_share": round(log.repeats / targets, 4),
        "events_per_user": round(log.events / log.users, 2),
        "log": {name: value for name, value in counts.items() if isinstance(value, int)},
        "interactions_after": {**left, "k_core": log.events},
    }
