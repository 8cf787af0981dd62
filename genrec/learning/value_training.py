"""Training of the value network of a search (``genrec.policy.decoding.node_values``) on the policy's frozen states.

The examples are all children of the prefixes that the policy's own beams visit, since these are what a search asks the
network for; the target is 1 for the one above the user's next item, the loss binary cross-entropy.

The queries are those of validation. All train queries were learned by the policy, so that its beams find their targets
more often than those of new queries, and a network that learned from them would trust what the policy remembers; to
leave a share of the train users out of the policy's own training would cost it their log. The weight of the values is
chosen on validation as well, so the network is cross-fitted (stacking, Wolpert 1992): member m learns without a fold
of the users, and answers for them there; the last one learns from all, and answers elsewhere. The epoch that is kept is
the one with the smallest loss of the members on the users whom they have not seen.

Shapes: B queries, E visited prefixes of a batch, C children of them, K codes of a level, D hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.data.tables import contexts
from genrec.policy.decoding.beam import (
    Chosen,
    Frontier,
    head_log_probabilities,
    is_deterministic,
    pick,
    search,
)
from genrec.policy.decoding.node_prior import HeadPrior
from genrec.policy.decoding.node_values import FOLDS, NodeValues
from genrec.policy.decoding.prompt_cache import prefill
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.seeds import generator_of
from genrec.sid.catalog import Catalog
from genrec.sid.trie import Trie

QUERIES = 5_000
"""Most queries that are learned from, drawn at random: the states of all prefixes are kept in memory."""

WIDTH = 20
"""Beams whose prefixes are learned."""

BATCH = 64
"""Queries per step."""

EPOCHS = 60
PATIENCE = 5
"""Epochs without a smaller loss on unseen users after which the training ends."""

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class VisitedPrefixes:
    """The prefixes of one level that the beams of a batch visited and that more than one item lies under.

    ``query_E``: the query in the batch; ``hidden_ED``: the state behind the prefix; ``logp_EK``: log π of its children,
    -inf where there is none; ``is_wanted_EK``: True at the child above the target.
    """

    query_E: Tensor
    hidden_ED: Tensor
    logp_EK: Tensor
    is_wanted_EK: Tensor


@dataclass(frozen=True)
class VisitedBatch:
    """The prefixes of B queries per level, and the fold of each query's user."""

    levels: Sequence[VisitedPrefixes]
    fold_B: Tensor


def train_node_values(
    policy: Policy, prompts: Prompts, catalog: Catalog, queries: pa.Table, *, head_weight: float, seed: int
) -> tuple[NodeValues, dict[str, Any]]:
    """A value network for the search of ``policy`` from ``queries`` that the policy has not learned, and its losses.

    Args:
        policy: in evaluation mode; it is not changed.
        head_weight: of the policy's item head in the search whose prefixes are learned.
    """
    rows = generator_of("node value queries", seed).permutation(len(queries))[:QUERIES]
    visited = list(_visit(policy, prompts, catalog, queries.take(pa.array(sorted(rows))), head_weight))
    network = NodeValues(policy, seed).to(policy.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    kept, losses = deepcopy(network), [_unseen_loss(network, policy, visited)]
    for epoch in range(EPOCHS):
        for number in generator_of("node value epoch", seed, epoch).permutation(len(visited)).tolist():
            batch = visited[number]
            loss = torch.stack(
                [_mean(_losses(network, policy, batch, member), batch.fold_B != member) for member in range(FOLDS + 1)]
            ).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=list(network.parameters()))
            optimizer.step()
        losses.append(_unseen_loss(network, policy, visited))
        best = losses.index(min(losses))
        if best == epoch + 1:
            kept = deepcopy(network)
        elif epoch + 1 - best >= PATIENCE:
            break
    best = losses.index(min(losses))
    about = {"queries": len(rows), "best_epoch": best, "loss_of_policy": losses[0], "loss": losses[best]}
    return kept.requires_grad_(False), about


@torch.no_grad()
def _visit(
    policy: Policy,
    prompts: Prompts,
    catalog: Catalog,
    queries: pa.Table,
    head_weight: float,
) -> Iterator[VisitedBatch]:
    """The prefixes that the policy's beams visit for each batch of queries."""
    device = policy.device
    trie = catalog.trie.to(device)
    for start in range(0, len(queries), BATCH):
        part = queries.slice(start, BATCH)
        encoded = prompts.encode(part["history"].to_pylist(), contexts(part))
        tokens_BP, mask_BP = (one.to(device) for one in encoded)
        prefilled = prefill(policy, tokens_BP, mask_BP)
        head = None
        if head_weight:
            logp_BN = head_log_probabilities(policy, prefilled.hidden_B1D[:, 0], tokens_BP)
            head = HeadPrior(trie, logp_BN, head_weight)
        paths_BX = trie.path(catalog.codes_NL[part["target"].to_pylist()].to(device))
        levels: list[VisitedPrefixes] = []

        def choose(
            frontier: Frontier,
            head: HeadPrior | None = head,
            paths_BX: Tensor = paths_BX,
            levels: list[VisitedPrefixes] = levels,
        ) -> Chosen:
            levels.append(_prefixes(frontier, trie, paths_BX))
            scores_BWK = frontier.total_BW[..., None] + frontier.step_BWK
            if head is not None:
                scores_BWK = scores_BWK + head.log_prior(frontier.level, frontier.children_BWK)
            return pick(scores_BWK, WIDTH)

        search(policy, tokens_BP, mask_BP, trie, choose, roots=1, prefilled=prefilled)
        yield VisitedBatch(levels, torch.tensor(part["user"].to_pylist(), device=device) % FOLDS)


def _prefixes(frontier: Frontier, trie: Trie, paths_BX: Tensor) -> VisitedPrefixes:
    """The prefixes of a frontier; ``paths_BX``: the nodes of the targets, from the root to the leaf."""
    nodes_BW, level = frontier.nodes_BW, frontier.level
    open_BW = nodes_BW >= 0
    if level:
        open_BW &= ~is_deterministic(trie, level, nodes_BW.clamp(min=0))
    query_E, beam_E = open_BW.nonzero(as_tuple=True)
    children_EK = frontier.children_BWK[query_E, beam_E]
    logp_EK = frontier.total_BW[query_E, beam_E][:, None] + frontier.step_BWK[query_E, beam_E]
    is_wanted_EK = (children_EK == paths_BX[query_E, level + 1][:, None]) & (children_EK >= 0)
    return VisitedPrefixes(query_E, frontier.hidden_BWD[query_E, beam_E], logp_EK, is_wanted_EK)


def _losses(network: NodeValues, policy: Policy, batch: VisitedBatch, member: int) -> Tensor:
    """Binary cross-entropy (B,) of one member, summed over the children of all prefixes of a query."""
    total_B = torch.zeros(len(batch.fold_B), device=batch.fold_B.device)
    member_1 = torch.tensor([member], device=batch.fold_B.device)
    for level, visited in enumerate(batch.levels):
        value_EK = network(policy, level, visited.hidden_ED[None], visited.logp_EK[None], member_1)[0]
        prefix_C, code_C = (visited.logp_EK > -torch.inf).nonzero(as_tuple=True)
        wanted_C = visited.is_wanted_EK[prefix_C, code_C].float()
        loss_C = F.binary_cross_entropy_with_logits(value_EK[prefix_C, code_C], wanted_C, reduction="none")
        total_B = total_B.index_add(0, visited.query_E[prefix_C], loss_C)
    return total_B


@torch.no_grad()
def _unseen_loss(network: NodeValues, policy: Policy, visited: Sequence[VisitedBatch]) -> float:
    """Mean loss per query, of each by the member that has not seen its user."""
    total, count = 0.0, 0
    for batch in visited:
        for member in range(FOLDS):
            own_B = batch.fold_B == member
            total += float(_losses(network, policy, batch, member)[own_B].sum())
        count += len(batch.fold_B)
    return total / count if count else math.inf


def _mean(loss_B: Tensor, chosen_B: Tensor) -> Tensor:
    return (loss_B * chosen_B).sum() / chosen_B.sum().clamp(min=1)
