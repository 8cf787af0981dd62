"""What reward terms may look up, all of it from train rows and the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
from torch import Tensor

from genrec.config import RewardSettings
from genrec.errors import InputError
from genrec.types import Group

Known = TypeVar("Known")

UNKNOWN = "unknown"
"""The type of an event that the log gives none."""


class FutureItems:
    """For each train query, its target and the train targets of the same user after it, with their event types.

    Validation and test targets are no train targets, so nothing of them is seen.
    """

    def __init__(self, queries: pa.Table) -> None:
        ids_Q, users_Q = queries["id"].to_numpy(), queries["user"].to_numpy()
        order_Q = np.lexsort((ids_Q, users_Q))
        self._items_Q = queries["target"].to_numpy()[order_Q]
        self._ends_Q = np.searchsorted(users_Q[order_Q], users_Q[order_Q], side="right")
        self._place = dict(zip(ids_Q[order_Q].tolist(), range(len(order_Q)), strict=True))
        self._events = queries["event"].take(pa.array(order_Q)).fill_null(UNKNOWN)

    @property
    def event_types(self) -> set[str]:
        """The types that occur, ``UNKNOWN`` among them where the log has events without one."""
        return set(self._events.unique().to_pylist())

    def items(self, query: int, count: int) -> list[int]:
        """The target of the query with this id and what follows it, at most ``count`` items in order of time."""
        return self._items_Q[self._part(query, count)].tolist()

    def events(self, query: int, count: int) -> list[str]:
        """The event types of ``items``."""
        part = self._part(query, count)
        return self._events.slice(part.start, part.stop - part.start).to_pylist()

    def _part(self, query: int, count: int) -> slice:
        if query not in self._place:
            raise InputError(f"query {query} is no training query; rewards of the future are known for those alone")
        start = self._place[query]
        return slice(start, min(start + count, int(self._ends_Q[start])))


@dataclass(frozen=True)
class RewardContext:
    """What the terms may look up. What was not loaded is None, and a term that asks for it is refused.

    ``codes_NL`` SIDs; ``categories`` the leaf category of each item, '' if none; ``counts_N`` train events per item;
    ``vectors_ND`` item vectors of length 1; ``neighbours`` maps a user, a history (oldest first) and candidate
    items to collaborative scores in [0, 1], (G,); ``buckets`` has the items of each popularity bucket as a mask (N,).
    """

    codes_NL: Tensor
    categories: Sequence[str]
    settings: RewardSettings = field(default_factory=RewardSettings)
    counts_N: Tensor | None = None
    ahead: FutureItems | None = None
    vectors_ND: Tensor | None = None
    neighbours: Callable[[int, Sequence[int], Tensor], Tensor] | None = None
    buckets: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


Term = Callable[[Group, RewardContext], Tensor]
"""(group, knowledge) → reward per candidate, (G,), in rank order. Empty candidates (item -1) are never paid."""


def require(value: Known | None, what: str) -> Known:
    """The value, or a refusal that says what was not loaded."""
    if value is None:
        raise InputError(f"{what} were not loaded; give the term a weight in the config before the run starts")
    return value
