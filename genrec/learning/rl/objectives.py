"""Objectives of reinforcement learning, on log-probabilities of the trie-renormalised policy, behind one interface.

Each is a loss summed over B queries with G candidates of L levels; A is the advantage, w the weight of a candidate
(``candidate_weights``; 0 for an empty one), ρ = π / π_old the ratio per level. A forced step (one child) has
log-probability 0 under every policy, so it adds no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrec.config import Rl
from genrec.learning.rl.contrast import recast
from genrec.learning.rl.list_losses import lambdarank, listwise
from genrec.learning.rl.preferences import dpo, s_dpo

LOG_RATIO_LIMIT = 10.0
"""|log(π / π_old)| is clamped to this before the exponential."""


@dataclass(frozen=True)
class PolicyBatch:
    """What an objective depends on, for B queries with G candidates of L levels.

    Log-probabilities: ``logp_BGL`` with the gradient, ``old_BGL`` of the policy that generated the candidates,
    ``reference_BGL`` of the SFT policy (None if not computed). ``weight_BG``: see ``candidate_weights``.
    """

    logp_BGL: Tensor
    old_BGL: Tensor
    reference_BGL: Tensor | None
    advantage_BGL: Tensor
    rewards_BG: Tensor
    weight_BG: Tensor

    @property
    def log_ratio_BGL(self) -> Tensor:
        """log(π / π_old), 0 for empty candidates, clamped to ± LOG_RATIO_LIMIT."""
        gap_BGL = (self.logp_BGL - self.old_BGL).masked_fill(self.weight_BG[..., None] == 0, 0)
        return gap_BGL.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def grpo(batch: PolicyBatch, settings: Rl) -> Tensor:
    """-Σ_queries mean_{G, L} w min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) (GRPO, Shao et al. 2024, eq. 3, without its KL term).

    ε is ``ratio_clip``.
    """
    return -_clipped(batch, *clip_range(settings)).mean((1, 2)).sum()


def dr_grpo(batch: PolicyBatch, settings: Rl) -> Tensor:
    """-Σ_queries mean_G Σ_L w min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) (Dr. GRPO, Liu et al. 2025, eq. 3).

    The sum over L in the place of a mean removes the length normalisation.
    """
    return -_clipped(batch, *clip_range(settings)).sum(2).mean(1).sum()


def dapo(batch: PolicyBatch, settings: Rl) -> Tensor:
    """-Σ_{queries, G, L} w min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) (DAPO, Yu et al. 2025, eq. 8).

    The learner divides by the number of tokens in groups with an advantage, so zero-advantage groups do not make the
    gradient smaller. ε_low is ``ratio_clip``, ε_high ``ratio_clip_high``.
    """
    return -_clipped(batch, *clip_range(settings)).sum()


def gspo(batch: PolicyBatch, settings: Rl) -> Tensor:
    """-Σ_queries mean_G w min(s A, clip(s, 1 - ε, 1 + ε) A), s = exp(mean_L log ρ) (GSPO, Zheng et al. 2025, eq. 5–7).

    The clip range of a sequence's ratio s is far narrower than a token's: ε = ``ratio_clip`` is 3e-4 in the paper.
    """
    ratio_BG = batch.log_ratio_BGL.mean(-1).exp()
    advantage_BG = batch.advantage_BGL[..., 0]
    clipped_BG = ratio_BG.clamp(*clip_range(settings))
    gain_BG = torch.minimum(ratio_BG * advantage_BG, clipped_BG * advantage_BG)
    return -(gain_BG * batch.weight_BG).mean(1).sum()


def reinforce(batch: PolicyBatch, settings: Rl) -> Tensor:
    """-Σ_queries mean_G w Σ_L A log π (Williams 1992; with ``leave_one_out``: RLOO, Ahmadian et al. 2024)."""
    logp_BGL = batch.logp_BGL.masked_fill(batch.weight_BG[..., None] == 0, 0)
    return -((batch.advantage_BGL * logp_BGL).sum(-1) * batch.weight_BG).mean(1).sum()


def preferred(batch: PolicyBatch, settings: Rl) -> Tensor:
    """DPO or S-DPO on Σ_L log(π / π_ref), between the candidate with the highest reward and the others.

    See ``preferences`` for the formulas; ``settings.objective`` chooses.
    """
    assert batch.reference_BGL is not None
    gap_BGL = (batch.logp_BGL - batch.reference_BGL).masked_fill(batch.weight_BG[..., None] == 0, 0)
    loss = dpo if settings.objective == "dpo" else s_dpo
    return loss(gap_BGL.sum(-1), batch.rewards_BG, batch.weight_BG > 0, settings.dpo_beta)


def ranked(batch: PolicyBatch, settings: Rl) -> Tensor:
    """The list-wise loss or LambdaRank on log π(item); see ``list_losses`` for the formulas."""
    score_BG = batch.logp_BGL.masked_fill(batch.weight_BG[..., None] == 0, 0).sum(-1)
    loss = listwise if settings.objective == "listwise" else lambdarank
    return loss(score_BG, batch.rewards_BG, batch.weight_BG > 0)


def contrasted(batch: PolicyBatch, settings: Rl) -> Tensor:
    """The best candidate against the hardest negative by log π(item); see ``contrast`` for the formula."""
    score_BG = batch.logp_BGL.masked_fill(batch.weight_BG[..., None] == 0, 0).sum(-1)
    return recast(score_BG, batch.rewards_BG, batch.weight_BG > 0, settings.contrast_temperature)


@dataclass(frozen=True)
class Objective:
    """A loss summed over its ``unit`` (the learner divides), its default advantage, whether it needs the reference.

    ``ratio``: what the ratio π / π_old is of, a code or a whole item; an objective with none and without advantages
    may learn from groups of an older policy (``OFF_POLICY``).
    """

    loss: Callable[[PolicyBatch, Rl], Tensor]
    advantage: str
    unit: Literal["query", "token"] = "query"
    reference: bool = False
    ratio: Literal["none", "code", "item"] = "none"


OBJECTIVES: Mapping[str, Objective] = {
    "grpo": Objective(grpo, "group_std", ratio="code"),
    "dr_grpo": Objective(dr_grpo, "group_mean", ratio="code"),
    "dapo": Objective(dapo, "group_std", unit="token", ratio="code"),
    "gspo": Objective(gspo, "group_std", ratio="item"),
    "reinforce": Objective(reinforce, "leave_one_out"),
    "ppo": Objective(grpo, "group_mean", ratio="code"),
    "dpo": Objective(preferred, "group_mean", reference=True),
    "s_dpo": Objective(preferred, "group_mean", reference=True),
    "listwise": Objective(ranked, "group_mean"),
    "lambdarank": Objective(ranked, "group_mean"),
    "recast": Objective(contrasted, "group_mean"),
}
"""Every objective by its config name. PPO's advantages come from its value head (``critic``), those of the losses that
compare candidates serve the measurements alone."""


def clip_range(settings: Rl) -> tuple[float, float]:
    """1 - ε and 1 + ε of the clipped ratio; ``dapo`` has its own ε above 1."""
    high = settings.ratio_clip_high if settings.objective == "dapo" else settings.ratio_clip
    return 1 - settings.ratio_clip, 1 + high


def _clipped(batch: PolicyBatch, low: float, high: float) -> Tensor:
    """w min(ρ A, clip(ρ, low, high) A), (B, G, L): PPO's clipped surrogate (Schulman et al. 2017, eq. 7)."""
    ratio_BGL = batch.log_ratio_BGL.exp()
    clipped_BGL = ratio_BGL.clamp(low, high)
    gain_BGL = torch.minimum(ratio_BGL * batch.advantage_BGL, clipped_BGL * batch.advantage_BGL)
    return gain_BGL * batch.weight_BG[..., None]
