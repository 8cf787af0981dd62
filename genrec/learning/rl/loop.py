"""The loop of asynchronous reinforcement learning."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from genrec.types import Group, Query, Rollouts, Snapshot

Callback = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Gets each update's measurements, and returns further figures for the line of progress."""


def no_callback(record: Mapping[str, float]) -> Mapping[str, float]:
    """Does nothing."""
    return {}


class Learner(Protocol):
    """Something that turns groups into the next version of a policy."""

    @property
    def version(self) -> int:
        """Updates made so far."""
        ...

    def snapshot(self) -> Snapshot:
        """The policy as it stands."""
        ...

    def update(self, groups: list[Group]) -> dict[str, float]:
        """One optimizer step; raises ``version`` by one and returns its measurements."""
        ...


def train_async(
    learner: Learner,
    rollouts: Rollouts,
    queries: Callable[[int], Sequence[Query]],
    *,
    steps: int,
    max_staleness: int,
) -> Iterator[dict[str, float]]:
    """Update ``learner`` up to version ``steps``, yielding each update's measurements.

    A FIFO window of ``max_staleness + 1`` batches bounds staleness by construction: a batch is used at most
    ``max_staleness`` versions after the snapshot that generated it. 0 is synchronous GRPO.

    Args:
        queries: the queries of a step.
    """
    window: deque[Any] = deque()
    for step in range(learner.version, steps):
        while len(window) <= max_staleness and step + len(window) < steps:
            window.append(rollouts.submit(queries(step + len(window)), learner.snapshot()))
        yield learner.update(rollouts.collect(window.popleft()))
