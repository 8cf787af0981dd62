"""Rollouts: a pure function of (snapshot, queries, seed), in any process, so that lost work can be repeated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import torch
from torch import Tensor

from genrec.config import Rl
from genrec.inference.served_search import ServedSearch
from genrec.learning.rl.candidates import importance, mixed, tempered_importance, with_target
from genrec.learning.rl.difficulty import hint_masks
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.sampling import sample, stochastic_beam
from genrec.policy.decoding.slates import draw_slates
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.seeds import generator_of
from genrec.sid.trie import Trie
from genrec.types import Group, Query, Snapshot


def generate(
    policy: Policy,
    prompts: Prompts,
    trie: Trie,
    queries: Sequence[Query],
    settings: Rl,
    *,
    version: int,
    seed: int,
    served: ServedSearch | None = None,
) -> list[Group]:
    """One group of ``settings.group`` candidates per query from the policy as it stands, without rewards.

    Where ``settings.generation`` is ``slate``, a candidate is a list of ``settings.slate`` items.

    Candidates carry importance weights where ``settings.generation`` is ``stochastic_beam`` (see ``importance``), or
    ``sample`` at a temperature other than 1 (``tempered_importance``).
    With ``served`` they are the best ones of the search that the run serves with (``learning.rl.served``).
    A query's random numbers depend on ``seed``, ``version``, its ``draw`` and its id: they are the same in any request.
    """
    policy.eval()
    histories, contexts = [query.history for query in queries], [query.context for query in queries]
    tokens_BP, mask_BP = (t.to(policy.device) for t in prompts.encode(histories, contexts))
    if served is not None:
        return _served_groups(policy, (tokens_BP, mask_BP), trie, queries, settings, version, served)
    generators = [generator_of("rollout", seed, version, query.draw, query.id) for query in queries]
    arguments = (policy, tokens_BP, mask_BP, trie, settings.group)
    weights: Iterable[Tensor | None] = repeat(None, len(queries))
    if settings.generation == "slate":
        beams = draw_slates(*arguments, settings.slate, generator=generators)
    elif settings.generation == "beam":
        beams = beam(*arguments, masks=hint_masks(trie, queries, settings, version=version, seed=seed))
    elif settings.generation == "sample":
        samples = sample(*arguments, temperature=settings.temperature, generator=generators)
        beams = samples.beams
        if settings.temperature != 1:
            weights = tempered_importance(samples).cpu()
    else:
        drawn = stochastic_beam(*arguments, generator=generators)
        found = mixed(beam(*arguments), drawn.beams) if settings.generation == "mixed" else drawn.beams
        beams = found.ordered(found.best_first_BW)
        if settings.generation == "stochastic_beam":
            weights = importance(drawn).gather(1, found.best_first_BW).cpu()
    if settings.adds_target:
        beams = with_target(policy, tokens_BP, mask_BP, trie, beams, [query.target for query in queries])
    columns = zip(queries, beams.items_BW.cpu(), beams.codes_BWL.cpu(), beams.logp_BWL.cpu(), weights, strict=True)
    slate = settings.slate if settings.generation == "slate" else 0
    return [Group(q, version, items, codes, logp, torch.empty(0), {}, w, slate) for q, items, codes, logp, w in columns]


def _served_groups(
    policy: Policy,
    inputs: tuple[Tensor, Tensor],
    trie: Trie,
    queries: Sequence[Query],
    settings: Rl,
    version: int,
    served: ServedSearch,
) -> list[Group]:
    """The groups of ``generate`` by the search that the run serves with; ``inputs`` are prompts and their mask."""
    beams, prior = served.beams(policy, *inputs, trie, queries, settings.group)
    if settings.adds_target:
        beams = with_target(policy, *inputs, trie, beams, [query.target for query in queries])
    parts = (beams.items_BW, beams.codes_BWL, beams.logp_BWL, *served.added(beams, prior, trie))
    return [
        Group(query, version, items, codes, logp, torch.empty(0), {}, head_G=head, prior_G=prior_G)
        for query, items, codes, logp, head, prior_G in zip(queries, *(part.cpu() for part in parts), strict=True)
    ]


def chunks(queries: Sequence[Query], size: int) -> list[Sequence[Query]]:
    """``queries`` in parts of ``size``: batch shapes, and so the last bits, do not depend on the number of actors."""
    return [queries[start : start + size] for start in range(0, len(queries), size)]


class LocalRollouts:
    """Rollouts in the learner's process, with its own modules, whose parameters point to a snapshot meanwhile."""

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        trie: Trie,
        settings: Rl,
        seed: int,
        served: ServedSearch | None = None,
    ) -> None:
        self._policy, self._prompts, self._trie = policy, prompts, trie
        self._settings, self._seed, self._served = settings, seed, served

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> list[Group]:
        """Generate at once; the ticket is the list of groups."""
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
                    seed=self._seed,
                    served=self._served,
                )
        return groups

    def collect(self, ticket: list[Group]) -> list[Group]:
        """The groups of ``submit``."""
        return ticket
