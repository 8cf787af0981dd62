"""How hard a query is for the policy that generated its group, and what it is taught by: the gate and hints.

The gate (AdaGRPO) sorts queries by the rank of the target in the group: at rank 1 there is nothing to learn from
rewards, further down they order the candidates, and where the target is missed only the supervised term knows it.
Hints put the target within reach of a policy that misses it, and are withdrawn while it learns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrec.config import Rl
from genrec.learning.rl.candidates import leaf_codes
from genrec.policy.decoding.trie_masks import LeafMasks, TrieMaskCache
from genrec.seeds import generator_of
from genrec.sid.trie import Trie
from genrec.types import Group, Query


def target_ranks(groups: Sequence[Group]) -> Tensor:
    """The rank of the target among the distinct items of each group, (B,): 1 is the most probable; 0: it is not there.

    Probabilities are those of the policy that generated the group.
    """
    items_BG = torch.stack([group.items_G for group in groups])
    logp_BG = torch.stack([group.logp_GL.sum(-1) for group in groups])
    target_B1 = torch.tensor([group.query.target for group in groups])[:, None]
    same_BGG = items_BG[:, :, None] == items_BG[:, None]
    first_BG = (items_BG >= 0) & ~same_BGG.tril(-1).any(-1)
    is_target_BG = first_BG & (items_BG == target_B1)
    own_B1 = logp_BG.masked_fill(~is_target_BG, -torch.inf).amax(-1, keepdim=True)
    better_BG = first_BG & ~is_target_BG & (logp_BG > own_B1)
    return torch.where(is_target_BG.any(-1), 1 + better_BG.sum(-1), 0)


def learned_by_rewards(ranks_B: Tensor) -> Tensor:
    """Which queries the gate leaves to the objective, (B,): those whose target has rank 2 or more."""
    return ranks_B > 1


def supervised_weights(ranks_B: Tensor, settings: Rl) -> Tensor:
    """The weight of the supervised term of each query, (B,): ``gate_sft`` where the group missed the target."""
    return torch.where(ranks_B == 0, settings.gate_sft, settings.sft)


def hint_probability(settings: Rl, version: int) -> float:
    """Of a hint at an update: ``hint`` at first, then falling linearly to 0 at ``hint_share`` of all updates."""
    return settings.hint * max(0.0, 1 - version / (settings.hint_share * settings.steps))


def hint_masks(trie: Trie, queries: Sequence[Query], settings: Rl, *, version: int, seed: int) -> LeafMasks | None:
    """Masks that keep the search of some queries to items with their target's first code; None if of no query.

    Which queries get a hint is drawn for each by itself. A target without a leaf in the trie gives none.
    """
    share = hint_probability(settings, version)
    hinted = [generator_of("hint", seed, version, query.draw, query.id).random() < share for query in queries]
    if not any(hinted):
        return None
    leaf_items_n, first_n = trie.leaf_items.long().cpu(), leaf_codes(trie)[:, 0].cpu()
    first_N = torch.full((int(leaf_items_n.max()) + 1,), -1).scatter(0, leaf_items_n, first_n)
    known = [has_hint and query.target < len(first_N) for has_hint, query in zip(hinted, queries, strict=True)]
    code_B = [int(first_N[query.target]) if has_hint else -1 for has_hint, query in zip(known, queries, strict=True)]
    return TrieMaskCache(trie).masks([None if code < 0 else first_N == code for code in code_B])
