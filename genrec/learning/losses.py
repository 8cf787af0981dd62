"""Supervised losses over semantic IDs."""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.learning.batches import Dense, Rows
from genrec.policy.backbone import BOS
from genrec.policy.decode import masked_log_softmax
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.policy.score import score
from genrec.sid.catalog import Catalog


class SftLoss:
    """Cross-entropy of target SIDs, summed over targets; one forward per batch.

    Args:
        trie_softmax: normalise over the codes that exist under the prefix (what decoding does), else over the
            level's K codes.
        smoothing: share of the target's mass that is spread over all allowed codes.
        device: where the policy is.
    """

    def __init__(
        self,
        prompts: Prompts,
        catalog: Catalog,
        *,
        trie_softmax: bool,
        smoothing: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self._prompts = prompts
        self._codes_NL = catalog.codes_NL
        self._trie = catalog.trie.to(device)
        self._trie_softmax = trie_softmax
        self._smoothing = smoothing

    def __call__(self, policy: Policy, batch: Dense | Rows) -> Tensor:
        """Summed loss of the batch, a scalar."""
        if isinstance(batch, Dense):
            return self._dense(policy, batch)
        return self._rows(policy, batch)

    def _dense(self, policy: Policy, batch: Dense) -> Tensor:
        codes_BIL = self._codes_NL[batch.items_BI.clamp(min=0)]
        tokens_BS = policy.sids.tokens(codes_BIL).flatten(1)[:, :-1]
        tokens_BS = torch.nn.functional.pad(tokens_BS, (1, 0), value=BOS).to(policy.device)
        rows, length = tokens_BS.shape
        causal_11SS = torch.ones(1, 1, length, length, dtype=torch.bool, device=policy.device).tril()
        positions_BS = torch.arange(length, device=policy.device).expand(rows, -1)
        hidden_BSD = policy.hidden(tokens_BS, positions_BS, causal_11SS)
        target_BI = batch.target_BI.to(policy.device)
        hidden_MLD = hidden_BSD.unflatten(1, codes_BIL.shape[1:])[target_BI]
        codes_ML = codes_BIL.to(policy.device)[target_BI]
        trie = self._trie
        nodes_ML = trie.walk(codes_ML)
        losses = [
            self._cross_entropy(
                policy.level_logits(hidden_MLD[:, level], level),
                codes_ML[:, level],
                trie.step(level, nodes_ML[:, level]),
            )
            for level in range(trie.depth)
        ]
        return torch.stack(losses).sum()

    def _rows(self, policy: Policy, batch: Rows) -> Tensor:
        tokens_BP, mask_BP = (tensor.to(policy.device) for tensor in self._prompts.encode(batch.histories))
        codes_B1L = self._codes_NL[batch.target_B][:, None].to(policy.device)
        scores = score(policy, tokens_BP, mask_BP, codes_B1L, self._trie if self._trie_softmax else None)
        loss = -scores.logp_BGL.sum()
        if self._smoothing:
            spread = sum((_mean_allowed(step_BGK).sum() for step_BGK in scores.steps), torch.zeros_like(loss))
            loss = (1 - self._smoothing) * loss - self._smoothing * spread
        return loss

    def _cross_entropy(self, logits_MK: Tensor, codes_M: Tensor, children_MK: Tensor) -> Tensor:
        allowed_MK = children_MK >= 0 if self._trie_softmax else torch.ones_like(children_MK, dtype=torch.bool)
        logp_MK = masked_log_softmax(logits_MK, allowed_MK)
        loss = -logp_MK.gather(-1, codes_M[:, None]).sum()
        if self._smoothing:
            loss = (1 - self._smoothing) * loss - self._smoothing * _mean_allowed(logp_MK).sum()
        return loss


def _mean_allowed(logp_xK: Tensor) -> Tensor:
    allowed_xK = logp_xK > -torch.inf
    return logp_xK.masked_fill(~allowed_xK, 0).sum(-1) / allowed_xK.sum(-1)
