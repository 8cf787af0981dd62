"""What reward terms may look up: facts of train rows and the catalogue, never of validation or test."""

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

T = TypeVar("T")

UNKNOWN = "unknown"
"""The type of an event for which the log has none."""


class FutureItems:
    """For each train query, its target and the same user's later train targets, with their event types.

    Validation and test targets are not train targets, so no term can read them.

    Args:
        queries: the train queries, columns ``id``, ``user``, ``target`` and ``event``.
    """

    def __init__(self, queries: pa.Table) -> None:
        ids_Q, users_Q = queries["id"].to_numpy(), queries["user"].to_numpy()
        order_Q = np.lexsort((ids_Q, users_Q))
        self._items_Q = queries["target"].to_numpy()[order_Q]
        self._ends_Q = np.searchsorted(users_Q[order_Q], users_Q[order_Q], side="right")
        self._position = dict(zip(ids_Q[order_Q].tolist(), range(len(order_Q)), strict=True))
        self._events = queries["event"].take(pa.array(order_Q)).fill_null(UNKNOWN)

    @property
    def event_types(self) -> set[str]:
        """The event types in the log, with ``UNKNOWN`` if it has events without one."""
        return set(self._events.unique().to_pylist())

    def items(self, query: int, count: int) -> list[int]:
        """The target of the query with this id and the targets after it, at most ``count``, in order of time.

        Raises:
            InputError: no train query has this id.
        """
        return self._items_Q[self._range(query, count)].tolist()

    def events(self, query: int, count: int) -> list[str]:
        """The event types of ``items``."""
        rows = self._range(query, count)
        return self._events.slice(rows.start, rows.stop - rows.start).to_pylist()

    def _range(self, query: int, count: int) -> slice:
        if query not in self._position:
            raise InputError(f"got query {query}, wanted the id of a train query: future items exist for those alone")
        start = self._position[query]
        return slice(start, min(start + count, int(self._ends_Q[start])))


@dataclass(frozen=True)
class RewardContext:
    """What the terms may look up. A field that was not loaded is None; a term that needs it raises InputError.

    ``codes_NL``: SIDs. ``categories``: the leaf category of each item, '' if none. ``counts_N``: train events per item.
    ``vectors_ND``: item vectors of length 1. ``neighbours``: a function of a user, a history (oldest first) and G
    candidate items to collaborative scores in [0, 1], (G,). ``buckets``: masks (N,) of the items in each popularity
    bucket. ``value_N``: what multiplies the value of an event on each item.
    """

    codes_NL: Tensor
    categories: Sequence[str]
    settings: RewardSettings = field(default_factory=RewardSettings)
    counts_N: Tensor | None = None
    future_items: FutureItems | None = None
    vectors_ND: Tensor | None = None
    neighbours: Callable[[int, Sequence[int], Tensor], Tensor] | None = None
    buckets: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    value_N: Tensor | None = None


Term = Callable[[Group, RewardContext], Tensor]
"""(group, context) → reward per candidate, (G,), in rank order. Those of empty candidates (item -1) are set to 0."""


def require(value: T | None, name: str) -> T:
    """``value``, or an InputError that names what was not loaded."""
    if value is None:
        raise InputError(f"{name} were not loaded; give the term a weight in the config before the run starts")
    return value
