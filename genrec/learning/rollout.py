"""Rollouts: a pure function of (snapshot, queries, seed), here or on an actor, so that lost work can be replayed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genrec.config import Grpo
from genrec.policy.decode import beam, sample
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.trie import Trie
from genrec.types import Group, Query, Snapshot


def generate(
    policy: Policy, prompts: Prompts, trie: Trie, queries: Sequence[Query], settings: Grpo, *, version: int, seed: int
) -> list[Group]:
    """One group of G candidates per query from the policy as it stands, without rewards."""
    policy.eval()
    tokens_BP, mask_BP = (t.to(policy.device) for t in prompts.encode([query.history for query in queries]))
    if settings.generation == "beam":
        beams = beam(policy, tokens_BP, mask_BP, trie, settings.group)
    else:
        generator = torch.Generator(policy.device).manual_seed(seed * 1_000_003 + queries[0].id)
        heat = settings.temperature
        beams = sample(policy, tokens_BP, mask_BP, trie, settings.group, temperature=heat, generator=generator)
    columns = zip(queries, beams.items_BW.cpu(), beams.codes_BWL.cpu(), beams.logp_BWL.cpu(), strict=True)
    return [Group(query, version, items, codes, logp, torch.empty(0), {}) for query, items, codes, logp in columns]


def chunks(queries: Sequence[Query], size: int) -> list[Sequence[Query]]:
    """Requests of a fixed size: batch shapes, and so the last bits, do not depend on how many actors there are."""
    return [queries[start : start + size] for start in range(0, len(queries), size)]


class LocalRollouts:
    """Rollouts in the learner's own process, with its own modules: snapshots are lent by exchanging pointers."""

    def __init__(self, policy: Policy, prompts: Prompts, trie: Trie, settings: Grpo, seed: int) -> None:
        self._policy, self._prompts, self._trie = policy, prompts, trie
        self._settings, self._seed = settings, seed

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> list[Group]:
        """Generate at once; the ticket is the result."""
        groups: list[Group] = []
        with self._policy.using(policy.tensors):
            for part in chunks(queries, self._settings.rollout_chunk):
                groups += generate(
                    self._policy,
                    self._prompts,
                    self._trie,
                    part,
                    self._settings,
                    version=policy.version,
                    seed=self._seed + policy.version,
                )
        return groups

    def collect(self, ticket: list[Group]) -> list[Group]:
        """The groups of ``submit``."""
        return ticket
