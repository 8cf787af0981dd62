"""A prior on the trie's nodes: item scores that a beam search heeds at every level, not only at its end.

A search with it ranks items by log p_policy(item) + weight · log p_prior(item), the product of experts

    p_policy(item) · p_prior(item) ^ weight

and its partial beams by the same with prefixes in place of items: the prior's mass of a node is the sum over the
leaves under it. Where the prior says nothing a share ``smooth`` of it is spread evenly, so that no item is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.sid.trie import Trie


class NodePrior:
    """The prior of a batch of requests. Only the items with a score cost: each adds one entry per level.

    Args:
        trie: of the catalogue that is searched.
        codes_EL, query_E, score_E: SID, request and score (above 0) of each scored item, in any order.
        batch: requests.
        weight: of the prior's log-probability; 0 leaves the policy alone.
        smooth: share of the prior that all items have alike; a request without a score has nothing else.

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
        if not 0 < smooth <= 1 or bool((score_E <= 0).any()):
            raise InputError(f"a prior needs scores above 0 and smooth in (0, 1], not {smooth}")
        paths_EL = trie.path(codes_EL)[..., 1:]
        if bool((paths_EL < 0).any()):
            raise InputError("a prior scores a semantic ID that the trie does not hold; take it out")
        self.weight, self._smooth = weight, smooth
        score_E = score_E.double()
        total_B = torch.zeros(batch, dtype=torch.float64, device=score_E.device).index_add(0, query_E, score_E)
        share_E = score_E / total_B[query_E]
        self._scored_B = total_B > 0
        self._leaves = trie.leaves_under()
        self._keys: list[Tensor] = []
        self._mass: list[Tensor] = []
        for level in range(trie.depth):
            keys_U, place_E = torch.unique(query_E * len(self._leaves[level]) + paths_EL[:, level], return_inverse=True)
            self._keys.append(keys_U)
            self._mass.append(torch.zeros(len(keys_U), dtype=torch.float64).to(share_E).index_add(0, place_E, share_E))

    def worth(self, level: int, nodes_BWK: Tensor) -> Tensor:
        """weight · log p_prior of nodes of depth ``level`` + 1, (B, W, K); of -1 that of any node."""
        leaves_n, keys_U = self._leaves[level], self._keys[level]
        nodes_BWK = nodes_BWK.clamp(min=0).long()
        rows_B11 = torch.arange(len(nodes_BWK), device=nodes_BWK.device)[:, None, None]
        even_BWK = leaves_n[nodes_BWK] / leaves_n.sum()
        keys_BWK = rows_B11 * len(leaves_n) + nodes_BWK
        place_BWK = torch.searchsorted(keys_U, keys_BWK).clamp(max=max(len(keys_U) - 1, 0))
        own_BWK = torch.zeros_like(even_BWK)
        if len(keys_U):
            own_BWK = torch.where(keys_U[place_BWK] == keys_BWK, self._mass[level][place_BWK], 0.0)
        spread_B11 = torch.where(self._scored_B, self._smooth, 1.0)[rows_B11]
        return (self.weight * ((1 - spread_B11) * own_BWK + spread_B11 * even_BWK).log()).float()
