"""What is known of all users together before they are written: numbers, counts, and whether anything is left."""

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


@dataclass
class LogStatistics:
    """Counts over all buckets, and what numbers each bucket starts with."""

    users: int = 0
    events: int = 0
    repeats: int = 0
    unpreceded: int = 0
    starts: list[tuple[int, int]] = field(default_factory=list)
    targets: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    limits: dict[str, int | None] = field(default_factory=dict)
    first_seen_N: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def numbering(self) -> tuple[Numbering, ...]:
        """Each bucket's share of the numbers: users and events count on from bucket to bucket."""
        return tuple(Numbering(user, event, self.limits) for user, event in self.starts)


def count_users(buckets: Iterable[tuple[Users, Codes]], items: int, eval_queries: int) -> LogStatistics:
    """Look at every bucket's users and split codes once. Memory: one bucket, and 8 bytes per evaluation query.

    ``unpreceded`` counts users whose first event the log calls a target; ``first_seen_N`` is the earliest known
    time of each item, ``NEVER`` where there is none.
    """
    survey = LogStatistics(first_seen_N=np.full(items, NEVER))
    ids: dict[str, list[Ints]] = {"valid": [], "test": []}
    for users, codes in buckets:
        numbers = Numbering(survey.users, survey.events, {}).ids(users)
        survey.starts.append((survey.users, survey.events))
        survey.users += len(users.user_ids)
        survey.events += len(codes)
        survey.repeats += count_repeats(users, codes)
        survey.unpreceded += int((users.split_E[users.starts_V[:-1]] > 0).sum())
        known = users.known_E >= 0
        np.minimum.at(survey.first_seen_N, users.item_E[known], users.known_E[known])
        for split in SPLITS:
            survey.targets[split] += int((codes == SPLIT_CODES[split]).sum())
        for split, found in ids.items():
            found.append(numbers[codes == SPLIT_CODES[split]])
    survey.limits = {split: hash_limit(found, eval_queries) for split, found in ids.items()}
    return survey


def refuse_nothing_left(counts: Mapping[str, Any], left: Mapping[str, int], events: int, data: Data) -> None:
    """Raise InputError that tells what each filter left, if no interaction is."""
    if events:
        return
    steps = [f"{counts['rows']:,} in the log", f"{counts['rows'] - counts['unknown']:,} with an item of the catalogue"]
    after = counts["rows"] - counts["unknown"] - counts["outside_window"]
    steps.append(f"{after:,} inside start … end")
    steps.append(f"{counts['kept']:,} with a title that fits (title_words, require_title)")
    steps += [f"{number:,} after {name}" for name, number in left.items()]
    if left:
        steps.append(f"{events:,} after user_core={data.filters.user_core}, item_core={data.filters.item_core}")
    raise InputError("no interactions are left after the filters: " + " → ".join(steps) + "; loosen data.filters")


def refuse_missing_splits(survey: LogStatistics, data: Data, whole_histories: bool) -> None:
    """Raise InputError if a split has no query, or a target of rows with histories lost its history."""
    filtered = data.filters != Filters()
    if whole_histories and survey.unpreceded and not filtered:
        raise InputError(
            f"{survey.unpreceded} users have no row with a history of one item, so their first events are unknown: "
            "these files do not hold all rows of their users (every row of train, valid and test is needed)"
        )
    empty = [split for split in SPLITS if not survey.targets[split]]
    if empty:
        raise InputError(
            f"split={data.split} leaves no {' and no '.join(empty)} queries from {survey.users} users with "
            f"{survey.events} events; leave_one_out needs users with at least four events, chronological ten samples, "
            "given rows of every split that are not their user's first"
        )


def statistics(
    survey: LogStatistics, written: Mapping[str, int], counts: Mapping[str, Any], left: Mapping[str, int], items: int
) -> dict[str, Any]:
    """The contents of ``stats.json``: sizes, queries by split, repeats, and interactions left after each filter."""
    targets = sum(survey.targets.values())
    return {
        "users": survey.users,
        "items": items,
        "interactions": survey.events,
        **written,
        "repeat_share": round(survey.repeats / targets, 4),
        "events_per_user": round(survey.events / survey.users, 2),
        "log": {name: value for name, value in counts.items() if isinstance(value, int)},
        "interactions_after": {**left, "k_core": survey.events},
    }
