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
from genrec.policy.decoding.slates import list_log_probabilities
from genrec.types import Group


@dataclass(frozen=True)
class Targets:
    """What an update learns from.

    Rewards (B, G), weights of the candidates (B, G; see ``candidate_weights``), advantages (B, G, L; of slates
    (B, G, J), one per position), and PPO's returns (B, G, L), else None. ``sft_B``: weights of the supervised term;
    None: ``learning.rl.sft`` for all.
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

    ``values_BGL`` are the critic's, for PPO; ``head_B`` is the loss of the target under the policy's item head.
    """

    groups: Sequence[Group]
    targets: Targets
    scores: GroupScores
    reference: GroupScores | None = None
    values_BGL: Tensor | None = None
    head_B: Tensor | None = None

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
        if not self.groups[0].slate:
            return advantage_BGL
        return advantage_BGL.flatten(1)[..., None].expand_as(self.scores.logp_BGL)

    @property
    def old_BGL(self) -> Tensor:
        """Log-probabilities under the policy that generated the candidates."""
        return torch.stack([group.logp_GL for group in self.groups]).to(self.scores.logp_BGL.device)


class UpdateLoss:
    """L = J / units + (w_sft · CE - w_entropy · H + w_kl · KL + w_value · V) / queries.

    J is the objective's loss, summed; ``units`` the number of queries or, for an objective per token, of informative
    tokens. CE is the cross-entropy of the target (with that of the item head), H the entropy of the policy, KL its
    divergence from the reference, each summed over levels and queries; V is the value loss of PPO. The weights are
    those of ``learning.rl``.

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
        policy_batch = _policy_batch(batch)
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
        kl_L = torch.zeros_like(entropy_L)
        if batch.reference is not None:
            kl_L = exact_kl(scores.steps, batch.reference.steps, weight_BGL)
            loss = loss + settings.kl * kl_L.sum() / queries
            shift = probability_shift(scores.logp_BGL, batch.reference.logp_BGL, items_BG, self._buckets)
            measured |= {f"prob_shift/{name}": amount for name, amount in shift.items()}
        if batch.values_BGL is not None and batch.targets.returns_BGL is not None:
            measured["value_loss"] = value_loss(batch.values_BGL, batch.targets.returns_BGL, valid_BG)
            loss = loss + settings.value_weight * measured["value_loss"] / queries
        measured |= ratio_statistics(policy_batch, batch.real_BG, self._objective.ratio, settings)
        credit_L = level_credit(scores.logp_BGL, batch.item_advantage_BGL, valid_BG)
        for name, at_L in (("kl", kl_L), ("level_credit", credit_L)):
            measured |= {f"{name}/{level}": amount for level, amount in enumerate(at_L, start=1)}
        return loss, measured | {"loss": loss * queries, "kl": kl_L.sum()}


def informative_tokens(groups: Sequence[Group], targets: Targets) -> Tensor:
    """Tokens (of slates: items) of real candidates in groups that have an advantage, a scalar."""
    valid_BG = torch.stack([group.real_G for group in groups])
    informative_B = (targets.advantage_BGL != 0).any(-1).any(-1)
    return (valid_BG & informative_B[:, None]).sum().float() * targets.advantage_BGL.shape[-1]


def _policy_batch(batch: MicroBatch) -> PolicyBatch:
    """Of lists the steps are not codes but items; see ``list_log_probabilities``."""
    size = batch.groups[0].slate
    given = (batch.scores.logp_BGL, batch.old_BGL, None if batch.reference is None else batch.reference.logp_BGL)
    logp, old, reference = (
        list_log_probabilities(one.sum(-1), size) if size and one is not None else one for one in given
    )
    assert logp is not None and old is not None
    return PolicyBatch(
        logp,
        old,
        reference,
        batch.targets.advantage_BGL,
        batch.targets.rewards_BG,
        batch.targets.weight_BG,
    )
