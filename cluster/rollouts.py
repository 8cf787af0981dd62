"""Rollout actors: each request carries its snapshot, so an actor is stateless and lost work is replayed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from cluster.jobs import Job
from genrec.types import Group, Query, Snapshot

RETRIES = 3
"""How often Ray replaces a dead actor and replays its calls."""


@dataclass(frozen=True)
class RayTicket:
    """References to the groups of each request, in order."""

    parts: list[Any]


class RolloutWorker:
    """Generates groups for the snapshots that come with the requests; runs as a Ray actor."""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job.config.compute.rollout_threads)
        self._policy, self._prompts, catalog = job.build()
        device = "cuda" if job.config.compute.rollout_gpus and torch.cuda.is_available() else "cpu"
        self._policy.to(device)
        self._trie = catalog.trie.to(device)
        self._settings, self._seed = job.config.learning.grpo, job.config.seed
        self._digest = ""

    def generate(self, snapshot: Snapshot, queries: Sequence[Query]) -> list[Group]:
        """Groups of ``queries`` under ``snapshot``."""
        from genrec.errors import InputError
        from genrec.learning.rollout import generate
        from genrec.policy.model import digest

        if self._digest != snapshot.digest:
            self._policy.adopt(snapshot.tensors)
            self._digest = digest({n: p.detach().cpu() for n, p in self._policy.trainable().items()})
            if self._digest != snapshot.digest:
                raise InputError(
                    f"the rollout actor adopted version {snapshot.version}, but its weights differ from it"
                )
        version, seed = snapshot.version, self._seed + snapshot.version
        return generate(self._policy, self._prompts, self._trie, queries, self._settings, version=version, seed=seed)


class RayRollouts:
    """Sends fixed chunks of queries to actors in turn; the snapshot goes to the object store once per version."""

    def __init__(self, job: Job, actors: int) -> None:
        import ray

        compute = job.config.compute
        make = ray.remote(RolloutWorker).options(
            num_cpus=compute.rollout_cpus,
            num_gpus=compute.rollout_gpus,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
            # An actor made inside a trial would otherwise wait for room in the trial's placement group.
            scheduling_strategy="DEFAULT",
        )
        self.actors = [make.remote(job) for _ in range(actors)]
        self._chunk = job.config.learning.grpo.rollout_chunk
        self._turn = cycle(self.actors)
        self._sent: tuple[int, Any] | None = None

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> RayTicket:
        """Ask for groups; returns at once."""
        import ray

        from genrec.learning.rollout import chunks

        if self._sent is None or self._sent[0] != policy.version:
            self._sent = (policy.version, ray.put(policy))
        sent = self._sent[1]
        return RayTicket([next(self._turn).generate.remote(sent, part) for part in chunks(queries, self._chunk)])

    def collect(self, ticket: RayTicket) -> list[Group]:
        """Wait for the groups of ``ticket``, in the order of its queries."""
        import ray

        return [group for part in ray.get(ticket.parts) for group in part]
