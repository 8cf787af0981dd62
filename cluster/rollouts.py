"""Rollout actors: each request carries its snapshot, so an actor is stateless and lost work is replayed exactly.

An actor that dies is started again, where there is room; the requests it had not answered go to the others at once.
One that hangs, so that it answers nothing for ``compute.rollout_timeout_s``, is killed and is then one that died. A run
begins with the actors for which there is room, and takes in the others when they come (``rollout_pool``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.node_files import NodeFiles, files_in_work
from cluster.resources import cap_memory
from cluster.rollout_pool import RolloutPool
from cluster.train import RunSpec
from genrec.errors import InputError
from genrec.types import Group, Query, Snapshot

if TYPE_CHECKING:
    from accelerate import Accelerator

    from genrec.evaluation.validate import Search, Validator


@dataclass(frozen=True)
class RayTicket:
    """The answers that will come, in the order of their requests."""

    answers: list[Future[Any]]


class RolloutWorker:
    """Generates groups for the snapshots that come with the requests; runs as a Ray actor."""

    def __init__(self, spec: RunSpec, files: NodeFiles | None = None) -> None:
        import torch

        if files is not None:
            files.arrive()

        from cluster.telemetry import UtilisationGauge

        torch.set_num_threads(spec.config.compute.rollout_threads)
        self._busy = UtilisationGauge()
        self._policy, self._prompts, catalog = spec.build()
        gpus = spec.config.compute.rollout_gpus
        device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
        cap_memory(gpus)
        self._policy.to(device)
        self._trie, self._served = catalog.trie.to(device), spec.serving(catalog)
        self._settings, self._seed = spec.config.learning.rl, spec.config.seed
        self._digest: str | None = None

    def generate(self, snapshot: Snapshot, queries: Sequence[Query]) -> list[Group]:
        """Groups of ``queries`` under ``snapshot``."""
        from genrec.learning.rl.rollout import generate

        where = (self._policy, self._prompts, self._trie)
        with self._busy:
            self._adopt(snapshot)
            own: dict[str, Any] = {"version": snapshot.version, "seed": self._seed, "served": self._served}
            return generate(*where, queries, self._settings, **own)

    def rankings(self, snapshot: Snapshot, queries: Sequence[Query], search: Search) -> Any:
        """The items that ``search`` finds for ``queries`` under ``snapshot``, (Q, width)."""
        from genrec.evaluation.validate import ranked_items

        with self._busy:
            self._adopt(snapshot)
            return ranked_items(self._policy, self._prompts, self._trie, queries, search, self._served)

    def _adopt(self, snapshot: Snapshot) -> None:
        """Load a snapshot unless it is loaded; every tensor must be bound, and its bytes must arrive unchanged.

        Raises:
            InputError: the snapshot is not of this policy, or its weights changed on the way.
        """
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


def start_actors(spec: RunSpec, count: int) -> list[Any]:
    """Handles of ``count`` new rollout actors; they live as long as the process that started them has their handles."""
    import ray

    compute = spec.config.compute
    make = ray.remote(RolloutWorker).options(
        num_cpus=compute.rollout_cpus,
        num_gpus=compute.rollout_gpus,
        resources=compute.rollout_resources,
        max_restarts=-1,
        # A node that is lost takes few of them. Also, an actor made inside a trial would without a strategy of its own
        # wait for room in the trial's placement group.
        scheduling_strategy="SPREAD",
    )
    return [make.remote(spec, files_in_work()) for _ in range(count)]


def shared_actors(spec: RunSpec, accelerator: Accelerator) -> list[Any]:
    """The run's rollout actors, which rank 0 starts and every learner uses; each learner's list begins elsewhere.

    All learners call this at once.
    """
    from accelerate.utils import broadcast_object_list

    count = spec.config.compute.rollout_actors
    found: list[Any] = start_actors(spec, count) if accelerator.is_main_process else [None] * count
    broadcast_object_list(found)
    first = accelerator.process_index * count // accelerator.num_processes
    return [*found[first:], *found[:first]]


class RayRollouts:
    """Sends fixed chunks of queries to the actors as they have room; a snapshot goes to the object store once.

    Which actor answers does not change the answer: results depend neither on the number of actors nor on their speed.

    Args:
        actors: their handles; learners may share them.
    """

    def __init__(self, spec: RunSpec, actors: Sequence[Any]) -> None:
        self._pool = RolloutPool(actors, spec.config.compute.rollout_timeout_s)
        self._chunk = spec.config.learning.rl.rollout_chunk
        self._last_put: tuple[Snapshot, Any] | None = None

    @property
    def actors(self) -> Sequence[Any]:
        """The handles of all actors, also of those that are not up."""
        return self._pool.actors

    @property
    def up(self) -> int:
        """The number of actors that were up at the last look."""
        return self._pool.up

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> RayTicket:
        """Request groups; returns at once."""
        from genrec.learning.rl.rollout import chunks

        sent = self.put(policy)
        return RayTicket([self._pool.send("generate", (sent, part)) for part in chunks(queries, self._chunk)])

    def collect(self, ticket: RayTicket) -> list[Group]:
        """Wait for the groups of ``ticket``, in the order of its queries."""
        return [group for part in self.fetched(ticket) for group in part]

    def validator(self, validator: Validator) -> RemoteValidator:
        """Validation of snapshots on these actors, between the batches that they generate."""
        return RemoteValidator(self, validator)

    def rankings(self, snapshot: Snapshot, requests: Sequence[Sequence[Query]], search: Search) -> RayTicket:
        """Request the items found for ``requests``, each from the least busy actor; returns at once."""
        sent = self.put(snapshot)
        return RayTicket([self._pool.send("rankings", (sent, part, search)) for part in requests])

    def fetched(self, ticket: RayTicket) -> list[Any]:
        """Wait for all answers. Requests of dead or hanging actors and of lost nodes go to the others.

        Raises:
            InputError, ray.exceptions.RayActorError: as ``RolloutPool.send`` says.
        """
        return [answer.result() for answer in ticket.answers]

    def put(self, snapshot: Snapshot) -> Any:
        """The snapshot's reference in the object store; it is put there once."""
        import ray

        if self._last_put is None or self._last_put[0] is not snapshot:
            self._last_put = (snapshot, ray.put(snapshot))
        return self._last_put[1]


class RemoteValidator:
    """Validates snapshots on the rollout actors while the learners go on (``SnapshotValidator`` protocol)."""

    is_synchronous = False

    def __init__(self, rollouts: RayRollouts, validator: Validator) -> None:
        self._rollouts, self._validator = rollouts, validator

    def submit(self, snapshot: Snapshot) -> RayTicket:
        """Request the rankings of this worker's share; returns at once."""
        return self._rollouts.rankings(snapshot, self._validator.requests, self._validator.search)

    def collect(self, ticket: RayTicket) -> Mapping[str, Any]:
        """Metrics per query, of all workers' shares."""
        return self._validator.values(self._rollouts.fetched(ticket))
