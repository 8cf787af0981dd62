"""How many rollout actors feed a learner: the real loop on a virtual clock, with service times that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from genrec.learning.rl.loop import train_async
from genrec.types import Group, Query, Snapshot

ENOUGH = 0.95
"""The learner counts as saturated at this share of the prompts/s that it reaches when it never waits."""


@dataclass(frozen=True)
class Service:
    """Seconds that were measured, of one update.

    ``request_s``: rollout requests, one after the other; they are used again in turn. ``requests``: per update.
    ``learn_s``: the learner's part. ``mail_s``: a new snapshot's way to an actor.
    """

    request_s: Sequence[float]
    requests: int
    learn_s: float
    mail_s: float

    def prompts_per_s(self, prompts: int, actors: int, max_staleness: int, steps: int = 40) -> float:
        """Throughput of ``actors`` that get the requests in turn, as ``RayRollouts`` gives them out."""
        clock = _Clock()
        learner, rollouts = _SimulatedLearner(clock, self.learn_s), _SimulatedActors(clock, self, actors)
        for _ in train_async(learner, rollouts, lambda _: (), steps=steps, max_staleness=max_staleness):
            pass
        return prompts * steps / clock.now

    def saturating(self, prompts: int, counts: Sequence[int], max_staleness: int) -> int:
        """The first of ``counts`` actors at which the learner hardly waits any more; 0 if none is enough."""
        whole = prompts / self.learn_s
        found = (n for n in counts if self.prompts_per_s(prompts, n, max_staleness) >= ENOUGH * whole)
        return next(found, 0)


@dataclass
class _Clock:
    now: float = 0.0


class _SimulatedLearner:
    def __init__(self, clock: _Clock, learn_s: float) -> None:
        self.version = 0
        self._clock, self._learn_s = clock, learn_s

    def snapshot(self) -> Snapshot:
        return Snapshot(self.version, {})

    def update(self, groups: list[Group]) -> dict[str, float]:
        self._clock.now += self._learn_s
        self.version += 1
        return {}


class _SimulatedActors:
    def __init__(self, clock: _Clock, service: Service, actors: int) -> None:
        self._clock, self._service = clock, service
        self._free_A, self._version_A = [0.0] * actors, [-1] * actors
        self._seconds, self._turn = cycle(service.request_s), cycle(range(actors))

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> float:
        """When the last of the update's requests will be answered."""
        return max(self._serve(next(self._turn), policy.version) for _ in range(self._service.requests))

    def collect(self, ticket: float) -> list[Group]:
        self._clock.now = max(self._clock.now, ticket)
        return []

    def _serve(self, actor: int, version: int) -> float:
        mail_s = self._service.mail_s if self._version_A[actor] != version else 0.0
        self._version_A[actor] = version
        self._free_A[actor] = max(self._free_A[actor], self._clock.now) + mail_s + next(self._seconds)
        return self._free_A[actor]
