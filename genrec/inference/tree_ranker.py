"""Requests to items and probabilities: one tree search for a whole batch, then the run's prior.

Requests of a batch may differ in history, number of items and constraint; each gets the answer that it would get alone,
up to the rounding of larger matrix products.

Shapes: B requests, H items of a history, W candidates of a request, N items of the catalogue, L levels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genrec.baselines.sparse import Sparse, mask_columns, mask_seen_items, row_of_entry
from genrec.baselines.train_log import newest_first
from genrec.inference.batch import make_node_prior, without_seen
from genrec.inference.catalog_view import CatalogView
from genrec.inference.prior import RankedItems, normalise, policy_share
from genrec.inference.request import BEAM_GROUPS, RowRequest
from genrec.inference.run_record import RunRecord
from genrec.metrics import IntArray
from genrec.policy.decoding.beam import Beams, Pick, beam, head_log_probabilities
from genrec.policy.decoding.node_prior import NodePrior, item_log_prior
from genrec.policy.decoding.prompt_cache import Prefilled, PromptCache, prefill
from genrec.policy.decoding.sampling import BeamGroups
from genrec.policy.decoding.score import score as score_sids
from genrec.policy.model import Policy

Ranked = list[tuple[int, float]]
"""Item rows with their probabilities, best first."""

OnPart = Callable[[str, float], None]
"""Is told the name of each part of an answer and the seconds that it took."""

PARTS = ("prompt", "prefill", "prior", "search", "rank")


def ignore_part(name: str, seconds: float) -> None:
    """Nobody wants to know."""


class SearchedBatch(NamedTuple):
    """What a search found for B requests: the candidates, item scores (B, N) of ItemKNN, and those as a node prior."""

    candidates: RankedItems
    scores: Sparse | None
    node_prior: NodePrior | None


class TreeRanker:
    """Ranks items for requests, as the run was evaluated; safe to share among threads.

    Args:
        run: whose prior, masks and widths count.
        policy: of the run; ``on_part`` may be set at any time.
    """

    def __init__(self, run: RunRecord, policy: Policy) -> None:
        self._run, self._policy = run, policy
        cache_bytes = run.config.decode.prompt_cache_mb * 2**20
        self._prompt_cache = PromptCache(policy, cache_bytes) if cache_bytes else None
        self.on_part: OnPart = ignore_part

    def rank(self, view: CatalogView, asked: Sequence[RowRequest]) -> list[Ranked]:
        """The most probable items of each request: ``k`` of them, or all that may be chosen from for a diverse list.

        Requests without the prior, and those whose beams are driven apart, have a search of their own.
        """
        groups: dict[tuple[bool, float, int], list[int]] = {}
        for place, one in enumerate(asked):
            groups.setdefault((one.prior, one.spread, one.width if one.spread else 0), []).append(place)
        ranked: dict[int, Ranked] = {}
        for places in groups.values():
            ranked.update(zip(places, self._rank_alike(view, [asked[place] for place in places]), strict=True))
        return [ranked[place] for place in range(len(asked))]

    def _rank_alike(self, view: CatalogView, asked: Sequence[RowRequest]) -> list[Ranked]:
        found = self._find(view, asked)
        with self._part("rank"):
            row_BN = self._probabilities(view, asked, found)
            return [_best(row_BN[index], one) for index, one in enumerate(asked)]

    @torch.no_grad()
    def score(self, view: CatalogView, asked: RowRequest, rows: Sequence[int]) -> list[float]:
        """log p of each item of ``rows``: ``rank`` gives an item that it finds exp of that.

        -inf for items that cannot be recommended to this request.
        """
        found = self._find(view, [asked])
        steps_GL, log_head_G = self.steps(view, asked, rows)
        items_1G = np.array([rows])
        prior_1G = self._leaf_prior(view, found.node_prior, torch.tensor(items_1G)).numpy()
        head_1G = None if log_head_G is None else log_head_G[None].cpu().numpy()
        logp_1G = steps_GL.sum(-1)[None].cpu().numpy() + prior_1G
        given = RankedItems(items_1G, logp_1G, head_1G)
        policy_G = given.weighed(self._run.prior.head_weight)[0].astype(np.float64) - self._log_total(found)
        if found.scores is not None and found.node_prior is None:
            weight, prior = self._run.prior.weight, self._shares(found.scores, [asked])
            share_G = np.asarray(prior[np.zeros(len(rows), int), rows]).reshape(-1)
            with np.errstate(divide="ignore"):
                policy_G = np.log(policy_share(weight) * np.exp(policy_G) + weight * share_G)
        seen = set(asked.rows) if self._run.mask_seen else set[int]()
        hidden = [row in seen or not _allows(asked, row) for row in rows]
        return np.where(hidden, -np.inf, policy_G).tolist()

    @torch.no_grad()
    def steps(self, view: CatalogView, asked: RowRequest, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """log p (G, L) of each code of the items ``rows`` by the policy, and (G,) of the items by its item head.

        -inf at items that were removed. The head's are None where the search makes no use of it.
        """
        tokens_1P, mask_1P = self._encode(view, [asked])
        codes_1GL = view.catalog.codes_NL[torch.tensor(rows)][None].to(self._policy.device)
        scores = score_sids(self._policy, tokens_1P, mask_1P, codes_1GL, view.trie)
        logp_GL = scores.logp_BGL[0]
        present_G = view.trie.path(codes_1GL)[0, :, -1] >= 0
        logp_GL = logp_GL.masked_fill(~present_G[:, None], -torch.inf)
        if not self._run.prior.head_weight:
            return logp_GL, None
        logp_1N = head_log_probabilities(self._policy, scores.hidden[0][:, 0], tokens_1P)
        return logp_GL, logp_1N[0, torch.tensor(rows, device=logp_1N.device)]

    def _find(self, view: CatalogView, asked: Sequence[RowRequest]) -> SearchedBatch:
        longest = max(len(one.rows) for one in asked)
        prior, recent_BH = self._run.prior, newest_first([one.rows for one in asked], longest)
        with self._part("prompt"):
            tokens_BP, mask_BP = self._encode(view, asked)
        with self._part("prior"):
            scores = self._prior_scores(view, recent_BH) if asked[0].prior else None
            node_prior = None
            if scores is not None and prior.kind == "itemknn_nodes":
                node_prior = make_node_prior(view.trie, view.catalog.codes_NL, scores, prior.weight)
        with self._part("prefill"):
            prefilled = self._prefill(tokens_BP, mask_BP)
        with self._part("search"):
            masks, widths = view.masks.masks([one.allowed_N for one in asked]), [one.width for one in asked]
            search = partial(
                beam,
                self._policy,
                tokens_BP,
                mask_BP,
                view.trie,
                widths,
                masks=masks,
                prior=node_prior,
                head_weight=prior.head_weight,
            )
            apart = _beams_apart(view, asked[0])
            beams = search(prefilled=prefilled.copy() if apart else prefilled, pick_from=apart)
            candidates = self._candidates(view, beams, node_prior)
            if apart and bool((beams.items_BW < 0).any()):
                candidates = _filled(
                    candidates, self._candidates(view, search(prefilled=prefilled), node_prior), widths
                )
        if self._run.mask_seen:
            candidates = without_seen(candidates, recent_BH, candidates.items_QK.shape[1])
            candidates = _cut(candidates, [one.width - len(one.rows) for one in asked])
        return SearchedBatch(candidates, scores, node_prior)

    def _probabilities(self, view: CatalogView, asked: Sequence[RowRequest], found: SearchedBatch) -> Sparse:
        """Sparse probabilities (B, N) of the candidates, prior included."""
        prior = self._run.prior
        probabilities = found.candidates.fused(prior.head_weight).probabilities(len(view.ids))
        if found.node_prior is not None:
            total_E = np.bincount(row_of_entry(probabilities), probabilities.data, len(asked))
            probabilities.data /= np.where(total_E > 0, total_E, 1.0)[row_of_entry(probabilities)]
        elif found.scores is not None:
            mixed = prior.weight * self._shares(found.scores, asked)
            probabilities = policy_share(prior.weight) * probabilities + mixed
        return probabilities.tocsr()

    def _shares(self, scores: Sparse, asked: Sequence[RowRequest]) -> Sparse:
        """p_prior (B, N) of the items that each request allows."""
        return normalise(_only_allowed(scores, asked), self._run.prior.power)

    def _candidates(self, view: CatalogView, beams: Beams, node_prior: NodePrior | None) -> RankedItems:
        """The candidates (B, W) with log p_policy(item), plus weight · log p_prior(item) under a node prior."""
        logp_BW = beams.logp_BW + self._leaf_prior(view, node_prior, beams.items_BW)
        head_BW = None if beams.head_BW is None else beams.head_BW.cpu().numpy()
        return RankedItems(beams.items_BW.cpu().numpy(), logp_BW.cpu().numpy(), head_BW)

    def _leaf_prior(self, view: CatalogView, node_prior: NodePrior | None, items_BW: Tensor) -> Tensor:
        """weight · log p_prior of items (B, W), on their device; 0 without a node prior, any number at no item."""
        if node_prior is None:
            return torch.zeros(items_BW.shape, device=items_BW.device)
        codes_BWL = view.catalog.codes_NL[items_BW.clamp(min=0).cpu()]
        return item_log_prior(node_prior, view.trie, codes_BWL).to(items_BW.device)

    def _log_total(self, found: SearchedBatch) -> float:
        """log of the total that the shares of one request's candidates are of; 0 where there are no shares."""
        weight = self._run.prior.head_weight
        if found.node_prior is None and not weight:
            return 0.0
        total = float(np.logaddexp.reduce(found.candidates.weighed(weight)[0].astype(np.float64)))
        return total if np.isfinite(total) else 0.0

    def _encode(self, view: CatalogView, asked: Sequence[RowRequest]) -> tuple[Tensor, Tensor]:
        tokens_BP, mask_BP = view.prompts.encode([one.rows for one in asked], [one.context for one in asked])
        return tokens_BP.to(self._policy.device), mask_BP.to(self._policy.device)

    @torch.no_grad()
    def _prefill(self, tokens_BP: Tensor, mask_BP: Tensor) -> Prefilled:
        if self._prompt_cache is None:
            return prefill(self._policy, tokens_BP, mask_BP)
        return self._prompt_cache.prefill(tokens_BP, mask_BP)

    def _prior_scores(self, view: CatalogView, recent_BH: IntArray) -> Sparse | None:
        """ItemKNN's scores (B, N) over the view's catalogue; None where the run has no prior."""
        if view.knn is None:
            return None
        scores = mask_columns(view.knn.scores(recent_BH), view.catalog.removed)
        return mask_seen_items(scores, recent_BH) if self._run.mask_seen else scores

    @contextmanager
    def _part(self, name: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self.on_part(name, time.perf_counter() - start)


def _beams_apart(view: CatalogView, asked: RowRequest) -> Pick | None:
    """The choice of a diverse beam search, where one is asked for."""
    return BeamGroups(BEAM_GROUPS, asked.width, asked.spread, view.trie.depth) if asked.spread else None


def _filled(apart: RankedItems, plain: RankedItems, widths: Sequence[int]) -> RankedItems:
    """The candidates of a diverse search, then the best others, ``widths[b]`` of request b in all.

    Groups that follow the same prefixes to their ends find the same few items.
    """
    known_BW = (plain.items_QK[:, :, None] == apart.items_QK[:, None]).any(-1)
    is_new_BW = ~known_BW & (plain.items_QK >= 0)
    missing_B1 = np.array(widths)[:, None] - (apart.items_QK >= 0).sum(1, keepdims=True)
    kept_BW = is_new_BW & (is_new_BW.cumsum(1) <= missing_B1)
    head_BW = None
    if apart.head_QK is not None and plain.head_QK is not None:
        head_BW = np.concatenate([apart.head_QK, plain.head_QK], axis=1)
    return RankedItems(
        np.concatenate([apart.items_QK, np.where(kept_BW, plain.items_QK, -1)], axis=1),
        np.concatenate([apart.logp_QK, np.where(kept_BW, plain.logp_QK, -np.inf)], axis=1),
        head_BW,
    )


def _cut(candidates: RankedItems, widths: Sequence[int]) -> RankedItems:
    """The first ``widths[b]`` candidates of each request b; empty ones in place of the others."""
    beyond_BW = np.arange(candidates.items_QK.shape[1]) >= np.array(widths)[:, None]
    items_BW = np.where(beyond_BW, -1, candidates.items_QK)
    return RankedItems(items_BW, np.where(beyond_BW, -np.inf, candidates.logp_QK), candidates.head_QK)


def _allows(asked: RowRequest, row: int) -> bool:
    return asked.allowed_N is None or bool(asked.allowed_N[row])


def _only_allowed(scores: Sparse, asked: Sequence[RowRequest]) -> Sparse:
    """The scores (B, N) of items that each request allows."""
    if all(one.allowed_N is None for one in asked):
        return scores
    kept = scores.copy()
    for one, start, end in zip(asked, kept.indptr, kept.indptr[1:], strict=False):
        if one.allowed_N is not None:
            kept.data[start:end] *= one.allowed_N.numpy()[kept.indices[start:end]]
    kept.eliminate_zeros()
    return kept


def _best(row_1N: Sparse, asked: RowRequest) -> Ranked:
    kept = asked.k if asked.diversity is None or asked.spread else asked.width
    best = np.argsort(-row_1N.data, kind="stable")[:kept]
    return [(int(row_1N.indices[i]), float(row_1N.data[i])) for i in best]
