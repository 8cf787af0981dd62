"""What an update minimises, on log-probabilities of the trie-renormalised policy, behind one interface.

A forced step (one child) has log-probability 0 under every policy, so it adds no gradient anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrec.config import Rl
from genrec.learning.rl.preferences import dpo, s_dpo

LOG_RATIO_LIMIT = 10.0
"""|log π/π_old| is clamped to this before the exponential."""


@dataclass(frozen=True)
class PolicyBatch:
    """What an objective sees of B queries with G candidates of L levels.

    ``logp_BGL`` carries the gradient; ``old_BGL`` is the policy that generated, ``reference_BGL`` the SFT policy (None
    where nobody asked for it); ``weight_BG`` is 0 at empty candidates, else 1 or an importance weight.
    """

    logp_BGL: Tensor
    old_BGL: Tensor
    reference_BGL: Tensor | None
    advantage_BGL: Tensor
    rewards_BG: Tensor
    weight_BG: Tensor

    @property
    def log_ratio_BGL(self) -> Tensor:
        """log π/π_old, 0 at empty candidates, clamped to ± LOG_RATIO_LIMIT."""
        gap_BGL = (self.logp_BGL - self.old_BGL).masked_fill(self.weight_BG[..., None] == 0, 0)
        return gap_BGL.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def grpo(batch: PolicyBatch, settings: Rl) -> Tensor:
    """-mean over G, L of min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) (GRPO, Shao et al. 2024, eq. 3; without its KL term)."""
    return -_clipped(batch, settings.ratio_clip, settings.ratio_clip).mean((1, 2)).sum()


def dr_grpo(batch: PolicyBatch, settings: Rl) -> Tensor:
    """The same summed, not averaged, over L: no length normalisation (Dr. GRPO, Liu et al. 2025, eq. 3)."""
    return -_clipped(batch, settings.ratio_clip, settings.ratio_clip).sum(2).mean(1).sum()


def dapo(batch: PolicyBatch, settings: Rl) -> Tensor:
    """-Σ over the tokens of informative groups, clipped to 1 - ε_low, 1 + ε_high (DAPO, Yu et al. 2025, eq. 8).

    The learner divides by the number of those tokens, so groups without an advantage do not thin the gradient.
    """
    return -_clipped(batch, settings.ratio_clip, settings.ratio_clip_high).sum()


def gspo(batch: PolicyBatch, settings: Rl) -> Tensor:
    """Clipped surrogate of the sequence's ratio s = exp(mean over L of log ρ) (GSPO, Zheng et al. 2025, eq. 5–7).

    Its clip range is far narrower than a token's: ``ratio_clip`` of 3e-4 in the paper.
    """
    ratio_BG = batch.log_ratio_BGL.mean(-1).exp()
    advantage_BG = batch.advantage_BGL[..., 0]
    clipped_BG = ratio_BG.clamp(1 - settings.ratio_clip, 1 + settings.ratio_clip)
    gain_BG = torch.minimum(ratio_BG * advantage_BG, clipped_BG * advantage_BG)
    return -(gain_BG * batch.weight_BG).mean(1).sum()


def reinforce(batch: PolicyBatch, settings: Rl) -> Tensor:
    """-mean over G of A log π(item), no ratio (Williams 1992; with ``leave_one_out``: RLOO, Ahmadian et al. 2024)."""
    logp_BGL = batch.logp_BGL.masked_fill(batch.weight_BG[..., None] == 0, 0)
    return -((batch.advantage_BGL * logp_BGL).sum(-1) * batch.weight_BG).mean(1).sum()


def preferred(batch: PolicyBatch, settings: Rl) -> Tensor:
    """DPO or S-DPO between the best-paid candidate of a group and those paid less; see ``preferences``."""
    assert batch.reference_BGL is not None
    gap_BGL = (batch.logp_BGL - batch.reference_BGL).masked_fill(batch.weight_BG[..., None] == 0, 0)
    loss = dpo if settings.objective == "dpo" else s_dpo
    return loss(gap_BGL.sum(-1), batch.rewards_BG, batch.weight_BG > 0, settings.dpo_beta)


@dataclass(frozen=True)
class Objective:
    """A loss summed over queries (or tokens, the learner divides), the advantage it wants, and what else it needs."""

    loss: Callable[[PolicyBatch, Rl], Tensor]
    advantage: str
    unit: Literal["query", "token"] = "query"
    reference: bool = False


OBJECTIVES: Mapping[str, Objective] = {
    "grpo": Objective(grpo, "group_std"),
    "dr_grpo": Objective(dr_grpo, "group_mean"),
    "dapo": Objective(dapo, "group_std", unit="token"),
    "gspo": Objective(gspo, "group_std"),
    "reinforce": Objective(reinforce, "leave_one_out"),
    "ppo": Objective(grpo, "group_mean"),
    "dpo": Objective(preferred, "group_mean", reference=True),
    "s_dpo": Objective(preferred, "group_mean", reference=True),
}
"""Every objective by its config name. PPO's advantages come from its value head (``critic``), those of the preference
losses serve the audit alone."""


def exact_kl(steps: Sequence[Tensor], reference: Sequence[Tensor], valid_BG: Tensor) -> Tensor:
    """(L,) KL(π ‖ π_ref) of each level: at each visited prefix a sum over its children, not a sampled estimate.

    ``steps`` and ``reference`` hold per level the log-distributions (B, 1 or G, K), -inf where no child exists.
    Candidates are averaged, queries are summed.
    """
    levels = [
        (ours_BGK.exp() * (_finite(ours_BGK) - _finite(theirs_BGK, ours_BGK))).sum(-1)
        for ours_BGK, theirs_BGK in zip(steps, reference, strict=True)
    ]
    return torch.stack([_mean_of_valid(kl_BG, valid_BG) for kl_BG in levels])


def exact_entropy(steps: Sequence[Tensor], valid_BG: Tensor) -> Tensor:
    """(L,) entropy in nats of each level's distribution; candidates are averaged, queries are summed."""
    return torch.stack([_mean_of_valid(-(s_BGK.exp() * _finite(s_BGK)).sum(-1), valid_BG) for s_BGK in steps])


def _clipped(batch: PolicyBatch, low: float, high: float) -> Tensor:
    """Weighted gain per token (B, G, L), the clipped surrogate of PPO (Schulman et al. 2017, eq. 7)."""
    ratio_BGL = batch.log_ratio_BGL.exp()
    clipped_BGL = ratio_BGL.clamp(1 - low, 1 + high)
    gain_BGL = torch.minimum(ratio_BGL * batch.advantage_BGL, clipped_BGL * batch.advantage_BGL)
    return gain_BGL * batch.weight_BG[..., None]


def _finite(logp_BGK: Tensor, of_BGK: Tensor | None = None) -> Tensor:
    return logp_BGK.masked_fill((logp_BGK if of_BGK is None else of_BGK) == -torch.inf, 0)


def _mean_of_valid(value_BG: Tensor, valid_BG: Tensor) -> Tensor:
    weight_BG = valid_BG.float() if value_BG.shape[1] > 1 else torch.ones_like(value_BG)
    return ((value_BG * weight_BG).sum(1) / weight_BG.sum(1).clamp(min=1)).sum()
