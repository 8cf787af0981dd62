"""A GRPO update as public code makes it: ``generate`` with a Python trie, and each candidate a sequence of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.references.hf_generate import generate
from genrec.config import Rl
from genrec.learning.rl.advantages import advantages
from genrec.learning.rl.objectives import PolicyBatch, grpo
from genrec.policy.decoding.score import score
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.catalog import Catalog
from genrec.types import Query


@dataclass(frozen=True)
class PublicGrpo:
    """Trains ``policy`` in place by the reward 1 for the target and 0 for any other item.

    The log-probabilities of the reference policy are those of ``policy``: what they cost is what is measured. There is
    no supervised term, and the vocabulary holds nothing but SIDs: both in favour of this design.
    """

    policy: Policy
    prompts: Prompts
    catalog: Catalog
    settings: Rl
    optimizer: torch.optim.Optimizer

    def update(self, queries: Sequence[Query]) -> None:
        """Rollouts, rewards, forward, backward and the optimizer's step.

        loss = mean over queries of ``objectives.grpo``, plus ``kl`` · mean of (π_ref / π) · log π
        """
        tokens_BP, mask_BP = self.prompts.encode([query.history for query in queries])
        codes_BGL = self._candidates(tokens_BP, mask_BP)
        targets_B1L = self.catalog.codes_NL[[query.target for query in queries]][:, None]
        rewards_BG = (codes_BGL == targets_B1L).all(-1).float()
        advantage_BG1 = advantages("group_std", rewards_BG)[..., None]
        logp_BGL = self._logp(tokens_BP, mask_BP, codes_BGL)
        batch = PolicyBatch(logp_BGL, logp_BGL.detach(), None, advantage_BG1, rewards_BG, torch.ones_like(rewards_BG))
        loss = grpo(batch, self.settings)
        if self.settings.kl:
            with torch.no_grad():
                gap_BGL = self._logp(tokens_BP, mask_BP, codes_BGL) - logp_BGL.detach()
            loss = loss + self.settings.kl * (gap_BGL.exp() * logp_BGL).mean()
        (loss / len(codes_BGL)).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _candidates(self, tokens_BP: Tensor, mask_BP: Tensor) -> Tensor:
        """The codes (B, G, L) of G beams per query."""
        tokens_BGL = generate(self.policy, tokens_BP, mask_BP, self.catalog, self.settings.group)
        return tokens_BGL - self.policy.sids.tokens(torch.zeros(self.catalog.levels, dtype=torch.long))

    def _logp(self, tokens_BP: Tensor, mask_BP: Tensor, codes_BGL: Tensor) -> Tensor:
        """Log-probabilities (B, G, L), the prompt read once for every candidate."""
        group = codes_BGL.shape[1]
        tokens, mask = tokens_BP.repeat_interleave(group, 0), mask_BP.repeat_interleave(group, 0)
        alone = codes_BGL.flatten(0, 1)[:, None]
        return score(self.policy, tokens, mask, alone, self.catalog.trie).logp_BGL.view(codes_BGL.shape)
