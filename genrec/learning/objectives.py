"""What a GRPO update minimises, on log-probabilities of the trie-renormalised policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 10.0
"""|log π/π_old| is clamped to this before the exponential."""


def clipped_surrogate(logp_BGL: Tensor, old_BGL: Tensor, advantage_BG: Tensor, valid_BG: Tensor, clip: float) -> Tensor:
    """Summed clipped policy-gradient loss (PPO, Schulman et al. 2017, eq. 7, per token; mean over G and L).

    A forced step (one child) has log-probability 0 under every policy, so it adds no gradient.
    """
    log_ratio_BGL = (logp_BGL - old_BGL).masked_fill(~valid_BG[..., None], 0)
    ratio_BGL = log_ratio_BGL.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    advantage_BG1 = advantage_BG[..., None]
    clipped_BGL = ratio_BGL.clamp(1 - clip, 1 + clip)
    gain_BGL = torch.minimum(ratio_BGL * advantage_BG1, clipped_BGL * advantage_BG1)
    return -(gain_BGL * valid_BG[..., None]).mean((1, 2)).sum()


def exact_kl(steps: Sequence[Tensor], reference: Sequence[Tensor], valid_BG: Tensor) -> Tensor:
    """Summed KL(π ‖ π_ref): at each visited prefix a sum over its children, not a sampled estimate.

    ``steps`` and ``reference`` hold per level the log-distributions (B, 1 or G, K), -inf where no child exists.
    Levels are added; candidates are averaged.
    """
    total = steps[0].new_zeros(len(valid_BG))
    for ours_BGK, theirs_BGK in zip(steps, reference, strict=True):
        exists_BGK = ours_BGK > -torch.inf
        gap_BGK = ours_BGK.masked_fill(~exists_BGK, 0) - theirs_BGK.masked_fill(~exists_BGK, 0)
        kl_BG = (ours_BGK.exp() * gap_BGK).sum(-1)
        weight_BG = valid_BG.float() if kl_BG.shape[1] > 1 else torch.ones_like(kl_BG)
        total = total + (kl_BG * weight_BG).sum(1) / weight_BG.sum(1).clamp(min=1)
    return total.sum()
