"""Tree decoding: beam search and sampling over the catalogue's trie, one forward per level.

The prompt runs once and its KV cache stays at batch size B. At each level the tokens of the W beams are appended as one
sequence of W nodes under a tree mask, so nothing is reordered or copied per beam: at most P + (L - 1)·W tokens per
query. Probabilities are those of the trie-renormalised policy: a softmax over the codes that exist under the beam's
prefix. A node with one item under it needs no forward pass, since the rest of its SID has probability 1; and a node
that several beams share (as independent samples may) is appended once.

Shapes: B queries, P prompt tokens, W beams, K codes of a level, L levels, D hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.policy.decoding.node_prior import HeadPrior, NodePrior, Prior
from genrec.policy.decoding.prompt_cache import Prefilled, prefill
from genrec.policy.decoding.tree import MergedNodes, merge_nodes, node_mask
from genrec.policy.decoding.trie_masks import LeafMasks
from genrec.policy.model import Policy
from genrec.sid.trie import CompleteTrie, Trie

HEAD_WEIGHT = 4.0
"""Weight of a policy's item head in a search that nothing tuned: near the best on three logs (1 is not)."""

Scale = Literal["trie", "vocabulary"]
"""Over what a step's softmax runs: the codes that exist under the prefix, or the whole vocabulary."""


@dataclass(frozen=True)
class Frontier:
    """The state of a search before it chooses the codes of ``level``.

    ``nodes_BW``: the trie node of each beam, -1 at empty beams; ``hidden_BWD``: the state that the next code is
    predicted from, undefined at empty beams and where every further step has probability 1; ``total_BW``:
    log-probability of each beam so far, -inf at empty beams; ``step_BWK``: of each next code, -inf where the code may
    not follow; ``children_BWK``: the trie node that each code leads to, -1 where there is none.
    """

    level: int
    nodes_BW: Tensor
    hidden_BWD: Tensor
    total_BW: Tensor
    step_BWK: Tensor
    children_BWK: Tensor


class Chosen(NamedTuple):
    """The next beams, all (B, W'): which beam of the frontier each extends, its next code, and False at empty ones."""

    parents_BW: Tensor
    codes_BW: Tensor
    real_BW: Tensor


class Guide(Protocol):
    """What steers one search by the states of its prefixes, such as ``node_values.ValueGuide``.

    ``log_value_BW``: what it said of each beam that was chosen last.
    """

    log_value_BW: Tensor

    def added(self, frontier: Frontier) -> Tensor:
        """What the search adds to the log-probability (B, W, K) of the children of the frontier; finite everywhere."""
        ...

    def follow(self, chosen: Chosen) -> None:
        """Be told which children were chosen."""
        ...


Choose = Callable[[Frontier], Chosen]
Pick = Callable[[Tensor, Tensor], Chosen]
"""Chooses the next beams by the scores (B, W, K) of all children, -inf at none, and the numbers of these nodes."""


@dataclass(frozen=True)
class Beams:
    """W candidates per query, best first.

    ``items_BW`` item rows, -1 where the catalogue had fewer candidates than W; ``codes_BWL`` their SIDs;
    ``logp_BWL`` log-probability of each step; ``head_BW`` that of the item by the policy's item head, where it took
    part; ``value_BW`` log σ(V) of the item by a value network, likewise.
    """

    items_BW: Tensor
    codes_BWL: Tensor
    logp_BWL: Tensor
    head_BW: Tensor | None = None
    value_BW: Tensor | None = None

    @property
    def logp_BW(self) -> Tensor:
        """Log-probability of each candidate, -inf at the empty ones."""
        return self.logp_BWL.sum(-1)

    @property
    def best_first_BW(self) -> Tensor:
        """Indices of the candidates by falling probability, empty ones last; ties keep their order."""
        return self.logp_BW.sort(dim=-1, descending=True, stable=True).indices

    def ordered(self, order_BW: Tensor) -> Beams:
        """The candidates with these indices, in this order."""
        rows_B1 = torch.arange(len(order_BW), device=order_BW.device)[:, None]
        more = (None if one_BW is None else one_BW[rows_B1, order_BW] for one_BW in (self.head_BW, self.value_BW))
        return Beams(
            self.items_BW[rows_B1, order_BW],
            self.codes_BWL[rows_B1, order_BW],
            self.logp_BWL[rows_B1, order_BW],
            *more,
        )


def beam(
    policy: Policy,
    tokens_BP: Tensor,
    mask_BP: Tensor,
    trie: Trie | CompleteTrie,
    width: int | Sequence[int],
    *,
    masks: LeafMasks | None = None,
    scale: Scale = "trie",
    prior: NodePrior | None = None,
    head_weight: float = 0.0,
    guide: Guide | None = None,
    prefilled: Prefilled | None = None,
    pick_from: Pick | None = None,
) -> Beams:
    """The ``width`` most probable items by beam search; identical to HF ``generate`` with ``num_beams=width``,
    ``prefix_allowed_tokens_fn`` and ``renormalize_logits=True`` (``scale="vocabulary"``: without it).

    Args:
        tokens_BP: left-padded prompts.
        mask_BP: True at real tokens.
        width: one for all, or one for each query: its beams are then those of a search with that width, and empty ones
            fill the row up to the largest width.
        masks: the items that each request allows. The probabilities stay those of the whole catalogue; a request
            that allows fewer than ``width`` items gets fewer.
        scale: over what each step's softmax runs.
        prior: item scores that guide the search at every level; the returned log-probabilities are the policy's alone.
        head_weight: of the policy's item head, which guides the search in the same way; 0 leaves it out.
        guide: such as a value network for this search, which guides it in the same way, for ``scale="trie"``.
        prefilled: the prompts after their forward pass, if it was made already, as by a ``PromptCache``; the search
            uses it up.
        pick_from: how each level's beams are chosen; without, the most probable ones.
    """
    prefilled = prefilled or prefill(policy, tokens_BP, mask_BP)
    priors: list[Prior] = [] if prior is None else [prior]
    logp_BN = None
    if head_weight:
        logp_BN = head_log_probabilities(policy, prefilled.hidden_B1D[:, 0], tokens_BP)
        priors.append(HeadPrior(cast("Trie", trie), logp_BN, head_weight))
    widths = [width] if isinstance(width, int) else width
    width_B1 = torch.tensor(widths, device=tokens_BP.device)[:, None]

    def best(frontier: Frontier) -> Chosen:
        scores_BWK = frontier.total_BW[..., None] + frontier.step_BWK
        for one in priors:
            scores_BWK = scores_BWK + one.log_prior(frontier.level, frontier.children_BWK)
        if guide is not None:
            scores_BWK = scores_BWK + guide.added(frontier)
        if pick_from is not None:
            chosen = pick_from(scores_BWK, frontier.children_BWK)
        else:
            chosen, most = pick(scores_BWK, max(widths)), torch.arange(max(widths), device=width_B1.device)
            chosen = chosen._replace(real_BW=chosen.real_BW & (most[: chosen.real_BW.shape[1]] < width_B1))
        if guide is not None:
            guide.follow(chosen)
        return chosen

    found = search(policy, tokens_BP, mask_BP, trie, best, roots=1, masks=masks, scale=scale, prefilled=prefilled)
    head_BW = None if logp_BN is None else logp_BN.gather(1, found.items_BW.clamp(min=0))
    return replace(found, head_BW=head_BW, value_BW=None if guide is None else guide.log_value_BW)


@torch.no_grad()
def head_log_probabilities(policy: Policy, hidden_BD: Tensor, tokens_BP: Tensor) -> Tensor:
    """Log-probability (B, N) of every item by the policy's item head, after the states of whole prompts (B, P).

    Raises:
        InputError: a policy without an item head.
    """
    if policy.item_head is None:
        raise InputError("the policy has no item head; train one with policy.items.head=true, or search without it")
    return policy.item_head.log_probabilities(hidden_BD, tokens_BP)


def pick(scores_BWK: Tensor, width: int) -> Chosen:
    """The ``width`` highest scores (all, if there are fewer), best first; those of -inf make empty beams."""
    codes = scores_BWK.shape[-1]
    best = scores_BWK.flatten(1).topk(min(width, scores_BWK.shape[1] * codes), dim=-1)
    return Chosen(best.indices // codes, best.indices % codes, best.values > -torch.inf)


def masked_log_softmax(logits_xK: Tensor, allowed_xK: Tensor) -> Tensor:
    """Log-softmax (…, K) in float32 over the allowed codes, -inf elsewhere. Every row must allow at least one."""
    return logits_xK.float().masked_fill(~allowed_xK, -torch.inf).log_softmax(-1)


@torch.no_grad()
def search(
    policy: Policy,
    tokens_BP: Tensor,
    mask_BP: Tensor,
    trie: Trie | CompleteTrie,
    choose: Choose,
    *,
    roots: int,
    masks: LeafMasks | None = None,
    scale: Scale = "trie",
    prefilled: Prefilled | None = None,
) -> Beams:
    """Any search down the trie, from ``roots`` equal beams: at each level ``choose`` selects children of the frontier.

    The other arguments are those of ``beam``. ``prefilled`` is of the same prompts, and is used up by the search.
    """
    prefilled = prefilled or prefill(policy, tokens_BP, mask_BP)
    batch, hidden_BWD = len(tokens_BP), prefilled.hidden_B1D.expand(-1, roots, -1)
    nodes_BW = torch.zeros(batch, roots, dtype=torch.long, device=tokens_BP.device)
    codes_BWL = nodes_BW.new_empty(batch, roots, 0)
    logp_BWL = hidden_BWD.new_empty(batch, roots, 0, dtype=torch.float32)
    seen_BWT = torch.empty(batch, roots, 0, dtype=torch.bool, device=tokens_BP.device)
    rows_B1 = torch.arange(batch, device=tokens_BP.device)[:, None]
    for level in range(trie.depth):
        frontier = _frontier(policy, trie, level, nodes_BW, hidden_BWD, logp_BWL, masks, scale)
        parents_BW, chosen_BW, real_BW = choose(frontier)
        nodes_BW = frontier.children_BWK[rows_B1, parents_BW, chosen_BW].long().masked_fill(~real_BW, -1)
        step_BW1 = frontier.step_BWK[rows_B1, parents_BW, chosen_BW][..., None]
        codes_BWL = torch.cat([codes_BWL[rows_B1, parents_BW], chosen_BW[..., None]], -1)
        logp_BWL = torch.cat([logp_BWL[rows_B1, parents_BW], step_BW1], -1)
        if level < trie.depth - 1:
            open_BW = (nodes_BW >= 0) & ~is_deterministic(trie, level + 1, nodes_BW.clamp(min=0), scale)
            merged = merge_nodes(seen_BWT[rows_B1, parents_BW], nodes_BW, open_BW)
            seen_BWT, hidden_BWD = merged.seen_BWT, _forward(policy, prefilled, mask_BP, level, chosen_BW, merged)
    return _finished(trie, nodes_BW, codes_BWL, logp_BWL)


def _forward(
    policy: Policy, prefilled: Prefilled, mask_BP: Tensor, level: int, codes_BW: Tensor, merged: MergedNodes
) -> Tensor:
    """Hidden states (B, W, D) after the codes of ``level``, one forward pass over the merged nodes.

    They are undefined at beams that are empty or need no forward pass.
    """
    representative_BM, node_index_BW, seen_BWT = merged
    if not representative_BM.shape[1]:
        return prefilled.hidden_B1D.expand(-1, codes_BW.shape[1], -1)
    rows_B1 = torch.arange(len(codes_BW), device=codes_BW.device)[:, None]
    tokens_BM = policy.sids.token(level, codes_BW[rows_B1, representative_BM])
    positions_BM = (mask_BP.sum(-1, keepdim=True) + level).expand_as(tokens_BM)
    mask_B1MK = node_mask(mask_BP, seen_BWT[rows_B1, representative_BM])
    hidden_BMD = policy.hidden(tokens_BM, positions_BM, mask_B1MK, prefilled.cache)
    return hidden_BMD[rows_B1, node_index_BW.clamp(max=representative_BM.shape[1] - 1)]


def is_deterministic(trie: Trie | CompleteTrie, depth: int, nodes_x: Tensor, scale: Scale = "trie") -> Tensor:
    """True at the nodes (…) of ``depth`` below which every step has probability 1, whatever the policy."""
    if isinstance(trie, CompleteTrie) or scale == "vocabulary":
        return torch.zeros_like(nodes_x, dtype=torch.bool)
    return trie.has_single_leaf(depth)[nodes_x]


def _frontier(
    policy: Policy,
    trie: Trie | CompleteTrie,
    level: int,
    nodes_BW: Tensor,
    hidden_BWD: Tensor,
    logp_BWL: Tensor,
    masks: LeafMasks | None,
    scale: Scale,
) -> Frontier:
    children_BWK = trie.step(level, nodes_BW.clamp(min=0))
    logits_BWK = policy.level_logits(hidden_BWD, level)
    if scale == "trie":
        step_BWK = masked_log_softmax(logits_BWK, children_BWK >= 0)
    else:
        whole_BW1 = policy.vocabulary_logits(hidden_BWD).float().logsumexp(-1, keepdim=True)
        step_BWK = (logits_BWK.float() - whole_BW1).masked_fill(children_BWK < 0, -torch.inf)
    if masks is not None:
        children_BWK = masks.keep(level, children_BWK)
        step_BWK = step_BWK.masked_fill(children_BWK < 0, -torch.inf)
    total_BW = logp_BWL.sum(-1).masked_fill(nodes_BW < 0, -torch.inf)
    return Frontier(level, nodes_BW, hidden_BWD, total_BW, step_BWK, children_BWK)


def _finished(trie: Trie | CompleteTrie, nodes_BW: Tensor, codes_BWL: Tensor, logp_BWL: Tensor) -> Beams:
    alive_BW = nodes_BW >= 0
    items_BW = torch.where(alive_BW, trie.items_at(nodes_BW.clamp(min=0)), -1)
    return Beams(items_BW, codes_BWL, logp_BWL.masked_fill(~alive_BW[..., None], -torch.inf))
