"""The loss of a policy that goes on learning: new and old targets, and how far it drifts from its former self.

    L = -log p(item) - w_head · log p_head(item) + β · Σ_l KL(p₀(· | codes before l) ‖ p(· | codes before l))
                                                 + β · KL(p₀,head ‖ p_head)

per target, where p₀ is the policy before the update. The KL of all codes and items keeps what the new events do not
speak of (learning without forgetting, Li & Hoiem 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from genrec.learning.sft.batches import Rows
from genrec.policy.decoding.score import score
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.catalog import Catalog


class Distributions(NamedTuple):
    """Log-probabilities of a target's codes (B,), of all codes at each level (B, K), and of all items (B, N)."""

    logp_B: Tensor
    levels: tuple[Tensor, ...]
    items_BN: Tensor | None


class DriftLoss:
    """The module's loss of a batch of queries.

    Args:
        former: the trainable tensors of p₀.
        head_weight: w_head, of a policy with an item head.
        kl: β.
    """

    def __init__(
        self, prompts: Prompts, catalog: Catalog, former: Mapping[str, Tensor], *, head_weight: float, kl: float
    ) -> None:
        self._prompts, self._codes_NL, self._trie = prompts, catalog.codes_NL, catalog.trie
        self._former, self._head_weight, self._kl = former, head_weight, kl

    def __call__(self, policy: Policy, batch: Rows) -> tuple[Tensor, Tensor]:
        """The cross-entropies (B,) and the divergences (B,) of the batch's targets."""
        before = None
        if self._kl:
            with torch.no_grad(), policy.using(self._former):
                was_training = policy.training
                before = self._distributions(policy.eval(), batch)
                policy.train(was_training)
        now = self._distributions(policy, batch)
        loss_B = -now.logp_B
        if now.items_BN is not None:
            target_B1 = batch.target_B[:, None].to(policy.device)
            loss_B = loss_B - self._head_weight * now.items_BN.gather(1, target_B1)[:, 0]
        return loss_B, torch.zeros_like(loss_B) if before is None else _drift(before, now)

    @property
    def kl_weight(self) -> float:
        """β."""
        return self._kl

    def _distributions(self, policy: Policy, batch: Rows) -> Distributions:
        tokens_BP, mask_BP = (t.to(policy.device) for t in self._prompts.encode(batch.histories, batch.contexts))
        codes_B1L = self._codes_NL[batch.target_B][:, None].to(policy.device)
        found = score(policy, tokens_BP, mask_BP, codes_B1L, self._trie.to(policy.device))
        items_BN = None
        if policy.item_head is not None:
            items_BN = policy.item_head.log_probabilities(found.hidden[0][:, 0], tokens_BP)
        return Distributions(found.logp_BGL[:, 0].sum(-1), tuple(step[:, 0] for step in found.steps), items_BN)


def _drift(before: Distributions, now: Distributions) -> Tensor:
    """Σ KL(before ‖ now) over the levels, and over the items where there is a head, (B,)."""
    pairs = list(zip(before.levels, now.levels, strict=True))
    if before.items_BN is not None and now.items_BN is not None:
        pairs.append((before.items_BN, now.items_BN))
    return torch.stack([kl_divergence(old_BK, new_BK) for old_BK, new_BK in pairs]).sum(0)


def kl_divergence(old_BK: Tensor, new_BK: Tensor) -> Tensor:
    """Σ_k p_old (log p_old - log p_new) of log-probabilities (B, K), -inf at the same places in both; (B,)."""
    possible_BK = old_BK > -torch.inf
    difference_BK = torch.where(possible_BK, old_BK - new_BK.masked_fill(~possible_BK, 0.0), 0.0)
    return (old_BK.exp() * difference_BK).sum(-1)
