"""How many rollout actors keep a learner busy: the real training loop on a simulated clock, with measured times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from cluster.rollout_pool import AHEAD
from genrec.learning.rl.loop import train_async
from genrec.types import Group, Query, Snapshot

SATURATED = 0.95
"""The learner counts as saturated at this share of the prompts/s that it reaches when it never waits."""


@dataclass(frozen=True)
class Service:
    """Measured seconds of one update.

    ``request_s``: of single rollout requests, used in turn, again from the start when all are used; ``requests``: how
    many an update makes; ``learn_s``: the learner's part; ``transfer_s``: to send an actor a new snapshot.
    """

    request_s: Sequence[float]
    requests: int
    learn_s: float
    transfer_s: float

    def prompts_per_s(self, prompts: int, actors: int, max_staleness: int, steps: int = 40) -> float:
        """Throughput with ``actors`` of the same speed."""
        clock = _Clock()
        learner, rollouts = _SimulatedLearner(clock, self.learn_s), _SimulatedActors(clock, self, actors)
        for _ in train_async(learner, rollouts, lambda _: (), steps=steps, max_staleness=max_staleness):
            pass
        return prompts * steps / clock.now

    def saturating(self, prompts: int, counts: Sequence[int], max_staleness: int) -> int:
        """The first of ``counts`` actors that saturate the learner; 0 if none does."""
        most = prompts / self.learn_s
        found = (n for n in counts if self.prompts_per_s(prompts, n, max_staleness) >= SATURATED * most)
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
    """Requests in their order, each to the least busy actor that has room: what ``cluster.rollout_pool`` does."""

    def __init__(self, clock: _Clock, service: Service, actors: int) -> None:
        self._clock, self._service, self._handed_out = clock, service, 0.0
        self._open: list[list[float]] = [[] for _ in range(actors)]
        """When what each actor holds will be answered."""
        self._version_A, self._seconds = [-1] * actors, cycle(service.request_s)

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> float:
        """When the last of the update's requests will be answered."""
        return max(self._serve(policy.version) for _ in range(self._service.requests))

    def collect(self, ticket: float) -> list[Group]:
        self._clock.now = max(self._clock.now, ticket)
        return []

    def _serve(self, version: int) -> float:
        now = max(self._clock.now, self._handed_out)
        if all(len(self._held(actor, now)) == AHEAD for actor in range(len(self._open))):
            now = min(min(answered_at) for answered_at in self._open)
        self._handed_out = now
        actor = min(range(len(self._open)), key=lambda actor: len(self._held(actor, now)))
        transfer_s = self._service.transfer_s if self._version_A[actor] != version else 0.0
        self._version_A[actor] = version
        answered_at = max([now, *self._open[actor]]) + transfer_s + next(self._seconds)
        self._open[actor].append(answered_at)
        return answered_at

    def _held(self, actor: int, now: float) -> list[float]:
        self._open[actor] = [answered_at for answered_at in self._open[actor] if answered_at > now]
        return self._open[actor]
