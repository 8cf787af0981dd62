"""Log-probabilities of groups under the policy that learns, and under the reference policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrec.policy.decoding.score import Scores, score
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.trie import Trie
from genrec.types import Group


@dataclass(frozen=True)
class GroupScores:
    """Scores of B queries, each with its G candidates and, as number G + 1, its target; ``codes_BGL`` are their codes.

    ``tokens_BP``: the prompts.
    ``steps``: per level the log-distribution at each prefix, (B, 1, K) at level 1, then (B, G + 1, K).
    ``hidden``: per level the hidden state at each prefix, (B, 1, D) at level 1, then (B, G + 1, D).
    ``head_BN``: log-probability of every item by the policy's item head, where it is part of what is served.
    """

    scores: Scores
    codes_BGL: Tensor
    tokens_BP: Tensor
    head_BN: Tensor | None = None

    @property
    def logp_BGL(self) -> Tensor:
        """Log-probability of each candidate's codes; -inf where its SID leaves the trie."""
        return self.scores.logp_BGL[:, :-1]

    @property
    def target_logp_BL(self) -> Tensor:
        """Log-probability of the target's codes."""
        return self.scores.logp_BGL[:, -1]

    @property
    def steps(self) -> tuple[Tensor, ...]:
        """See ``Scores``."""
        return self.scores.steps

    @property
    def hidden(self) -> tuple[Tensor, ...]:
        """See ``Scores``."""
        return self.scores.hidden


class GroupScorer:
    """Scores groups with the trie-renormalised policy.

    Args:
        reference: the trainable weights of the reference policy, by name.
        codes_NL: SIDs of the items, for the targets.
        all_states: also compute the hidden states that no log-probability needs (a critic reads them).
        head: also compute the log-probabilities of the policy's item head.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        trie: Trie,
        *,
        reference: Mapping[str, Tensor],
        codes_NL: Tensor,
        all_states: bool = False,
        head: bool = False,
    ) -> None:
        self._policy, self._prompts, self._trie = policy, prompts, trie.to(policy.device)
        self._reference, self._codes_NL, self._all_states, self._head = reference, codes_NL, all_states, head

    def scores(self, groups: Sequence[Group], policy: Callable[..., Any] | None = None) -> GroupScores:
        """Scores under the policy as it stands, or under ``policy``, its wrapper that syncs gradients."""
        call = self._policy if policy is None else policy
        inputs = self.inputs(groups)
        scores = call("call", score, *inputs, self._trie, self._all_states)
        head = self._policy.item_head if self._head else None
        head_BN = None if head is None else head.log_probabilities(scores.hidden[0][:, 0], inputs[0])
        return GroupScores(scores, inputs[-1], inputs[0], head_BN)

    def inputs(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts (B, P), their mask (B, P), and the codes (B, G + 1, L) of the candidates and the target."""
        device = self._policy.device
        histories, contexts = [g.query.history for g in groups], [g.query.context for g in groups]
        tokens_BP, mask_BP = (t.to(device) for t in self._prompts.encode(histories, contexts))
        codes_BGL = torch.stack([group.codes_GL for group in groups])
        target_B1L = self._codes_NL[[group.query.target for group in groups]][:, None]
        return tokens_BP, mask_BP, torch.cat([codes_BGL, target_B1L], dim=1).to(device)

    def reference_scores(self, groups: Sequence[Group]) -> GroupScores:
        """Scores under the reference policy, without gradients."""
        with torch.no_grad(), self._policy.using(self._reference):
            return self.scores(groups)
