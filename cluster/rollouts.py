"""Rollout actors: each request carries its snapshot, so an actor is stateless and lost work is replayed exactly.

An actor that dies is started again, where there is room; the requests it had not answered go to the others at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.resources import cap_memory
from cluster.train import RunSpec
from genrec.types import Group, Query, Snapshot

if TYPE_CHECKING:
    from genrec.evaluation.validate import Validator

REST_S = 30.0
"""Seconds for which an actor that failed gets requests last: it is being started again, or its node is gone."""
PATIENCE_S = 600.0
"""How long a request that keeps failing is sent again: time for a new actor, an end for a request that kills actors."""


@dataclass
class Request:
    """A call of a rollout actor: the method and its arguments, the actor it was last sent to, and its future answer."""

    method: str
    arguments: tuple[Any, ...]
    actor: int
    answer: Any


@dataclass(frozen=True)
class RayTicket:
    """The requests, in order."""

    requests: list[Request]


class RolloutWorker:
    """Generates groups for the snapshots that come with the requests; runs as a Ray actor."""

    def __init__(self, spec: RunSpec) -> None:
        import torch

        from cluster.telemetry import UtilisationGauge

        torch.set_num_threads(spec.config.compute.rollout_threads)
        self._busy = UtilisationGauge()
        self._policy, self._prompts, catalog = spec.build()
        gpus = spec.config.compute.rollout_gpus
        device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
        cap_memory(gpus)
        self._policy.to(device)
        self._trie = catalog.trie.to(device)
        self._settings, self._seed = spec.config.learning.rl, spec.config.seed
        self._digest: str | None = None

    def generate(self, snapshot: Snapshot, queries: Sequence[Query]) -> list[Group]:
        """Groups of ``queries`` under ``snapshot``."""
        from genrec.learning.rl.rollout import generate

        version, seed = snapshot.version, self._seed + snapshot.version
        where = (self._policy, self._prompts, self._trie)
        with self._busy:
            self._adopt(snapshot)
            return generate(*where, queries, self._settings, version=version, seed=seed)

    def ranks(self, snapshot: Snapshot, queries: Sequence[Query], width: int) -> Any:
        """Ranks (Q,) of the targets of ``queries`` under ``snapshot``."""
        from genrec.evaluation.validate import target_ranks

        with self._busy:
            self._adopt(snapshot)
            return target_ranks(self._policy, self._prompts, self._trie, queries, width)

    def _adopt(self, snapshot: Snapshot) -> None:
        """Load a snapshot unless it is loaded; every tensor must be bound, and its bytes must arrive unchanged.

        Raises:
            InputError: the snapshot is not of this policy, or its weights changed on the way.
        """
        from genrec.errors import InputError

        if self._digest == snapshot.digest:
            return
        self._digest = None
        self._policy.adopt(snapshot.tensors)
        own = {name: tensor.detach().cpu() for name, tensor in self._policy.trainable().items()}
        found = Snapshot(snapshot.version, own).digest
        if found != snapshot.digest:
            raise InputError(
                f"the rollout actor loaded version {snapshot.version} with digest {found[:12]}, the learner sent "
                f"{snapshot.digest[:12]}: the weights changed on the way; policy.dtype must be the same on both sides"
            )
        self._digest = snapshot.digest


class RayRollouts:
    """Sends fixed chunks of queries to the least busy actors; the snapshot goes to the object store once per version.

    Which actor answers does not change the answer: results depend neither on the number of actors nor on their speed.
    """

    def __init__(self, spec: RunSpec, actors: int) -> None:
        import ray

        compute = spec.config.compute
        make = ray.remote(RolloutWorker).options(
            num_cpus=compute.rollout_cpus,
            num_gpus=compute.rollout_gpus,
            max_restarts=-1,
            # An actor made inside a trial would otherwise wait for room in the trial's placement group.
            scheduling_strategy="DEFAULT",
        )
        self.actors = [make.remote(spec) for _ in range(actors)]
        self._open: list[list[Any]] = [[] for _ in self.actors]
        self._failed_at = [-REST_S] * actors
        self._chunk = spec.config.learning.rl.rollout_chunk
        self._last_put: tuple[Snapshot, Any] | None = None

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> RayTicket:
        """Request groups; returns at once."""
        from genrec.learning.rl.rollout import chunks

        sent = self.put(policy)
        return RayTicket([self._send("generate", (sent, part)) for part in chunks(queries, self._chunk)])

    def collect(self, ticket: RayTicket) -> list[Group]:
        """Wait for the groups of ``ticket``, in the order of its queries."""
        return [group for part in self.fetched(ticket) for group in part]

    def validator(self, validator: Validator) -> RemoteValidator:
        """Validation of snapshots on one of these actors, while the others generate."""
        return RemoteValidator(self, validator)

    def ranks(self, snapshot: Snapshot, requests: Sequence[Sequence[Query]], width: int) -> RayTicket:
        """Request the targets' ranks of ``requests`` from the least busy actor; returns at once."""
        index, sent = self.least_busy(), self.put(snapshot)
        return RayTicket([self._send("ranks", (sent, part, width), index) for part in requests])

    def fetched(self, ticket: RayTicket) -> list[Any]:
        """Wait for all answers. Requests of dead actors and lost nodes are sent to the others.

        Raises:
            InputError: an actor refused its input; a second try would not help.
            ray.exceptions.RayActorError: no actor could be built, or a request failed for ``PATIENCE_S``.
        """
        return [self._answer(request) for request in ticket.requests]

    def _send(self, method: str, arguments: tuple[Any, ...], actor: int | None = None) -> Request:
        index = self.least_busy() if actor is None else actor
        answer = getattr(self.actors[index], method).remote(*arguments)
        self._open[index].append(answer)
        return Request(method, arguments, index, answer)

    def _answer(self, request: Request) -> Any:
        import ray
        from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

        from genrec.errors import InputError

        began, wait_s = time.monotonic(), 0.5
        while True:
            try:
                return ray.get(request.answer)
            except RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from None
                raise
            except (RayActorError, ObjectLostError) as error:
                now = time.monotonic()
                if getattr(error, "actor_init_failed", False) or now - began > PATIENCE_S:
                    raise
                self._failed_at[request.actor] = now
                if all(now - failed_at < REST_S for failed_at in self._failed_at):
                    time.sleep(wait_s)
                    wait_s = min(2 * wait_s, REST_S / 6)
                request = self._send(request.method, request.arguments)

    def put(self, snapshot: Snapshot) -> Any:
        """The snapshot's reference in the object store; it is put there once."""
        import ray

        if self._last_put is None or self._last_put[0] is not snapshot:
            self._last_put = (snapshot, ray.put(snapshot))
        return self._last_put[1]

    def least_busy(self) -> int:
        """The number of the actor with the fewest open requests, of those that did not fail lately."""
        import ray

        for waiting in self._open:
            if waiting:
                waiting[:] = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)[1]
        now = time.monotonic()
        failed = [now - failed_at < REST_S for failed_at in self._failed_at]
        return min(range(len(self._open)), key=lambda index: (failed[index], len(self._open[index])))


class RemoteValidator:
    """Validates snapshots on a rollout actor while the learner goes on (``SnapshotValidator`` protocol)."""

    is_synchronous = False

    def __init__(self, rollouts: RayRollouts, validator: Validator) -> None:
        self._rollouts, self._validator = rollouts, validator

    def submit(self, snapshot: Snapshot) -> RayTicket:
        """Request the ranks of this worker's share; returns at once."""
        return self._rollouts.ranks(snapshot, self._validator.requests, self._validator.width)

    def collect(self, ticket: RayTicket) -> Mapping[str, Any]:
        """Metrics per query, of all workers' shares."""
        return self._validator.values(self._rollouts.fetched(ticket))
