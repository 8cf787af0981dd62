"""What one update minimises: the objective plus its regularisers, and the measurements on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.config import Rl
from genrec.learning.rl.critic import value_loss
from genrec.learning.rl.diagnostics import level_credit, probability_shift, ratio_statistics
from genrec.learning.rl.objectives import OBJECTIVES, PolicyBatch
from genrec.learning.rl.regularisers import exact_entropy, exact_kl, prefix_weights
from genrec.learning.rl.scorer import GroupScores
from genrec.learning.rl.served_steps import fused_steps, head_kl
from genrec.policy.decoding.slates import list_log_probabilities
from genrec.types import Group


@dataclass(frozen=True)
class Targets:
    """What an update learns from.

    Rewards (B, G), weights of the candidates (B, G; see ``candidate_weights``), advantages (B, G, L; of slates
    (B, G, J), one per position; of what is served (B, G, 1)), and PPO's returns (B, G, L), else None. ``sft_B``:
    weights of the supervised term; None: ``learning.rl.sft`` for all.
    """

    rewards_BG: Tensor
    weight_BG: Tensor
    advantage_BGL: Tensor
    returns_BGL: Tensor | None = None
    sft_B: Tensor | None = None

    def part(self, rows: slice, device: torch.device) -> Targets:
        """Those of some of the queries, on ``device``."""
        optional = (self.returns_BGL, self.sft_B)
        returns_BGL, sft_B = (None if given is None else given[rows].to(device) for given in optional)
        given = (self.rewards_BG, self.weight_BG, self.advantage_BGL)
        rewards_BG, weight_BG, advantage_BGL = (part[rows].to(device) for part in given)
        return Targets(rewards_BG, weight_BG, advantage_BGL, returns_BGL, sft_B)


@dataclass(frozen=True)
class MicroBatch:
    """Some queries of an update: their groups, targets, and scores under the policy and the reference.

    ``values_BGL`` are the critic's, for PPO; ``head_B`` is the loss of the target under the policy's item head;
    ``head_weight`` the weight of that head in what is served.
    """

    groups: Sequence[Group]
    targets: Targets
    scores: GroupScores
    reference: GroupScores | None = None
    values_BGL: Tensor | None = None
    head_B: Tensor | None = None
    head_weight: float = 0.0

    @property
    def is_served(self) -> bool:
        """Whether the groups are of what is served."""
        return self.groups[0].prior_G is not None

    @property
    def items_BG(self) -> Tensor:
        """Items of the candidates, -1 for empty ones."""
        return torch.stack([group.items_G for group in self.groups]).to(self.scores.logp_BGL.device)

    @property
    def real_BG(self) -> Tensor:
        """Whether each candidate, an item or a list of items, is a real one."""
        return torch.stack([group.real_G for group in self.groups]).to(self.scores.logp_BGL.device)

    @property
    def item_advantage_BGL(self) -> Tensor:
        """The advantage of every code of every item: of a list's items, that of their position."""
        advantage_BGL = self.targets.advantage_BGL
        if self.is_served:
            return advantage_BGL.expand_as(self.scores.logp_BGL)
        if not self.groups[0].slate:
            return advantage_BGL
        return advantage_BGL.flatten(1)[..., None].expand_as(self.scores.logp_BGL)

    @property
    def old_BGL(self) -> Tensor:
        """Log-probabilities under the policy that generated the candidates."""
        return torch.stack([group.logp_GL for group in self.groups]).to(self.scores.logp_BGL.device)

    @property
    def policy_batch(self) -> PolicyBatch:
        """What the objective depends on; of lists and of what is served, a step is not a code but an item."""
        given = (self.scores.logp_BGL, self.old_BGL, None if self.reference is None else self.reference.logp_BGL)
        if size := self.groups[0].slate:
            given = tuple(None if one is None else list_log_probabilities(one.sum(-1), size) for one in given)
        elif self.is_served:
            given = fused_steps(self.groups, self.scores, self.reference, self.head_weight)
        logp, old, reference = given
        assert logp is not None and old is not None
        targets = self.targets
        return PolicyBatch(logp, old, reference, targets.advantage_BGL, targets.rewards_BG, targets.weight_BG)


class UpdateLoss:
    """L = J / units + (w_sft · CE - w_entropy · H + w_kl · KL + w_value · V) / queries.

    J is the objective's loss, summed; ``units`` the number of queries or, for an objective per token, of informative
    tokens. CE is the cross-entropy of the target (with that of the item head), H the entropy of the policy, KL its
    divergence from the reference, each summed over levels and queries; V is the value loss of PPO. Where the item head
    is part of what is served, KL has its divergence too. The weights are those of ``learning.rl``.

    Args:
        buckets: masks (N,) of the items of each popularity bucket, for the measurements.
    """

    def __init__(self, settings: Rl, buckets: Mapping[str, Tensor]) -> None:
        self._settings, self._buckets = settings, buckets
        self._objective = OBJECTIVES[settings.objective]

    def __call__(self, batch: MicroBatch, units: Tensor, queries: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The batch's part of the loss, a scalar, and what was measured, summed over its queries.

        Args:
            units: those of the whole update, as are ``queries``.
        """
        settings, scores = self._settings, batch.scores
        items_BG = batch.items_BG
        valid_BG = items_BG >= 0
        visited_BG = F.pad(valid_BG, (0, 1), value=True)
        policy_batch = batch.policy_batch
        surrogate = self._objective.loss(policy_batch, settings)
        sft_B = -scores.target_logp_BL.sum(-1)
        if batch.head_B is not None:
            sft_B = sft_B + batch.head_B
        sft, sft_weight_B = sft_B.sum(), batch.targets.sft_B
        weighted_sft = settings.sft * sft if sft_weight_B is None else (sft_weight_B * sft_B).sum()
        weight_BGL = prefix_weights(scores.scores.logp_BGL, scores.codes_BGL, visited_BG, settings.prefix_weight)
        entropy_L = exact_entropy(scores.steps, weight_BGL)
        loss = surrogate / units + (weighted_sft - settings.entropy * entropy_L.sum()) / queries
        measured = {"surrogate": surrogate * queries / units, "sft_loss": sft, "entropy": entropy_L.sum()}
        kl_L, head_divergence = torch.zeros_like(entropy_L), torch.zeros_like(entropy_L.sum())
        if batch.reference is not None:
            kl_L = exact_kl(scores.steps, batch.reference.steps, weight_BGL)
            if scores.head_BN is not None and batch.reference.head_BN is not None:
                head_divergence = measured["kl/head"] = head_kl(scores.head_BN, batch.reference.head_BN)
            loss = loss + settings.kl * (kl_L.sum() + head_divergence) / queries
            shift = probability_shift(scores.logp_BGL, batch.reference.logp_BGL, items_BG, self._buckets)
            measured |= {f"prob_shift/{name}": amount for name, amount in shift.items()}
        if batch.values_BGL is not None and batch.targets.returns_BGL is not None:
            measured["value_loss"] = value_loss(batch.values_BGL, batch.targets.returns_BGL, valid_BG)
            loss = loss + settings.value_weight * measured["value_loss"] / queries
        measured |= ratio_statistics(policy_batch, batch.real_BG, self._objective.ratio, settings)
        credit_L = level_credit(scores.logp_BGL, batch.item_advantage_BGL, valid_BG)
        for name, at_L in (("kl", kl_L), ("level_credit", credit_L)):
            measured |= {f"{name}/{level}": amount for level, amount in enumerate(at_L, start=1)}
        return loss, measured | {"loss": loss * queries, "kl": kl_L.sum() + head_divergence}


def informative_tokens(groups: Sequence[Group], targets: Targets) -> Tensor:
    """Tokens (of slates: items) of real candidates in groups that have an advantage, a scalar."""
    valid_BG = torch.stack([group.real_G for group in groups])
    informative_B = (targets.advantage_BGL != 0).any(-1).any(-1)
    return (valid_BG & informative_B[:, None]).sum().float() * targets.advantage_BGL.shape[-1]
