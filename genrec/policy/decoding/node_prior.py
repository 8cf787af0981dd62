"""A prior on the trie's nodes: item scores that guide a beam search at every level, not only at its end.

A search with it ranks items by log p_policy(item) + weight · log p_prior(item), the product of experts (Hinton 2002)

    p_policy(item) · p_prior(item) ^ weight

and partial beams by the same formula with prefixes in place of items: p_prior(node) is the sum over the leaves under
it. With s_i the score of item i and n the number of items in the trie,

    p_prior(i) = (1 - smooth) · s_i / Σ_j s_j + smooth / n,

so that no item has probability 0; a request without any score has p_prior(i) = 1 / n. Guiding a search of semantic IDs
by the scores of another recommender is known from ISD (2607.24995).

The policy's own item head is such a prior too (``HeadPrior``), from the same forward pass of the prompt.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.sid.trie import Trie

SMALLEST = 1e-300
"""Floor of a node's share, so that a search may still take the last items of all."""


class Prior(Protocol):
    """Scores of the trie's nodes for a batch of requests."""

    def log_prior(self, level: int, nodes_BWK: Tensor) -> Tensor:
        """What a search adds to the log-probability (B, W, K) of nodes of depth ``level`` + 1; finite at -1."""
        ...


def item_log_prior(prior: Prior, trie: Trie, codes_BWL: Tensor) -> Tensor:
    """What ``prior`` adds to the log-probability of items, given by their SIDs, (B, W); finite where there is none."""
    leaves_BW1 = trie.path(codes_BWL.to(trie.leaf_items.device))[..., -1:]
    return prior.log_prior(trie.depth - 1, leaves_BW1)[..., 0]


class HeadPrior:
    """weight · log p_head(node), where p_head of a node is the sum over the items under it.

    Args:
        logp_BN: log-probability of each item by the policy's item head, -inf where it must not be found.
    """

    def __init__(self, trie: Trie, logp_BN: Tensor, weight: float) -> None:
        self.weight = weight
        leaf_Bn = logp_BN[:, trie.leaf_items.long()]
        shift_B1 = leaf_Bn.amax(1, keepdim=True)
        mass_Bn = (leaf_Bn - shift_B1).double().exp()
        self._logp: list[Tensor] = []
        for level, above_n in enumerate(trie.ancestors()):
            nodes = len(trie.leaves_under()[level])
            summed_Bn = mass_Bn.new_zeros(len(mass_Bn), nodes).index_add(1, above_n, mass_Bn)
            self._logp.append((summed_Bn.clamp(min=SMALLEST).log() + shift_B1).float())

    def log_prior(self, level: int, nodes_BWK: Tensor) -> Tensor:
        """See ``Prior``."""
        found_BX = self._logp[level].gather(1, nodes_BWK.clamp(min=0).long().flatten(1))
        return self.weight * found_BX.view(nodes_BWK.shape)


class NodePrior:
    """The prior of a batch of requests, stored sparsely: one entry per scored item and level.

    Args:
        trie: of the searched catalogue.
        codes_EL, query_E, score_E: SID, request and score (above 0) of each scored item, in any order.
        batch: number of requests.
        weight: of the prior's log-probability; 0 ranks by the policy alone.
        smooth: share of the prior's mass that is uniform over the items.

    Raises:
        InputError: a score that is not positive, ``smooth`` outside (0, 1], or a SID that is not in the trie.
    """

    def __init__(
        self,
        trie: Trie,
        codes_EL: Tensor,
        query_E: Tensor,
        score_E: Tensor,
        *,
        batch: int,
        weight: float,
        smooth: float,
    ) -> None:
        unscored = int((score_E <= 0).sum())
        if not 0 < smooth <= 1 or unscored:
            raise InputError(
                f"got a prior with smooth={smooth} and {unscored} scores of at most 0; wanted smooth in (0, 1] and "
                "scores above 0: leave out items without a score"
            )
        paths_EL = trie.path(codes_EL)[..., 1:]
        if bool((paths_EL < 0).any()):
            raise InputError("got a prior score for a semantic ID that is not in the trie; leave such items out")
        self.weight, self._smooth = weight, smooth
        score_E = score_E.double()
        total_B = torch.zeros(batch, dtype=torch.float64, device=score_E.device).index_add(0, query_E, score_E)
        share_E = score_E / total_B[query_E]
        self._scored_B = total_B > 0
        self._leaves = trie.leaves_under()
        self._keys: list[Tensor] = []
        self._mass: list[Tensor] = []
        for level in range(trie.depth):
            keys_U, index_E = torch.unique(query_E * len(self._leaves[level]) + paths_EL[:, level], return_inverse=True)
            self._keys.append(keys_U)
            self._mass.append(torch.zeros(len(keys_U), dtype=torch.float64).to(share_E).index_add(0, index_E, share_E))

    def log_prior(self, level: int, nodes_BWK: Tensor) -> Tensor:
        """weight · log p_prior (B, W, K) of nodes of depth ``level`` + 1; any finite number at -1, which is no node."""
        leaves_n, keys_U = self._leaves[level], self._keys[level]
        nodes_BWK = nodes_BWK.clamp(min=0).long()
        rows_B11 = torch.arange(len(nodes_BWK), device=nodes_BWK.device)[:, None, None]
        even_BWK = leaves_n[nodes_BWK] / leaves_n.sum()
        keys_BWK = rows_B11 * len(leaves_n) + nodes_BWK
        index_BWK = torch.searchsorted(keys_U, keys_BWK).clamp(max=max(len(keys_U) - 1, 0))
        own_BWK = torch.zeros_like(even_BWK)
        if len(keys_U):
            own_BWK = torch.where(keys_U[index_BWK] == keys_BWK, self._mass[level][index_BWK], 0.0)
        spread_B11 = torch.where(self._scored_B, self._smooth, 1.0)[rows_B11]
        return (self.weight * ((1 - spread_B11) * own_BWK + spread_B11 * even_BWK).log()).float()
