"""Learning from what is served: the policy's SID path fused with its item head and a prior that stays as it is.

A served search ranks items by s_i = log π(i) + a · log p_head(i) + b · log p_prior(i), and their probabilities are
shares of the candidates that it found, here those of the group:

    F(i) = exp(s_i) / Σ_j exp(s_j)

So an item is one step of generation, with log-probability log F(i), where other groups have one step per code. The
gradient of log F runs through SID path and item head; the prior is a constant, but its mass counts: a candidate that it
already puts first has F near 1, and little to gain. Per code F has no exact form: its normaliser over all items of a
subtree would need the policy at each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrec.learning.rl.regularisers import exact_kl
from genrec.learning.rl.scorer import GroupScores
from genrec.types import Group


def fused_steps(
    groups: Sequence[Group], scores: GroupScores, reference: GroupScores | None, head_weight: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """log F, (B, G, 1) each: under the policy as ``scores`` says, the one that generated, and the reference."""
    device = scores.logp_BGL.device
    real_BG = torch.stack([group.real_G for group in groups]).to(device)
    old_BG = torch.stack([group.score_G for group in groups]).to(device)
    now_BG, reference_BG = (None if one is None else _score(groups, one, head_weight) for one in (scores, reference))
    assert now_BG is not None
    found = (now_BG, old_BG, reference_BG)
    logp, old, before = (None if one_BG is None else log_shares(one_BG, real_BG)[..., None] for one_BG in found)
    assert logp is not None and old is not None
    return logp, old, before


def log_shares(score_BG: Tensor, real_BG: Tensor) -> Tensor:
    """log F (B, G) from the scores s; 0 at empty candidates, which take no part."""
    counts_BG = real_BG | ~real_BG.any(1, keepdim=True)  # A row without candidates has no shares, and no gradient.
    score_BG = torch.where(real_BG, score_BG, 0.0).masked_fill(~counts_BG, -torch.inf)
    return torch.where(real_BG, score_BG.log_softmax(-1), 0.0)


def head_kl(head_BN: Tensor, reference_BN: Tensor) -> Tensor:
    """Σ_queries KL(p_head ‖ p_head of the reference), over all items: exact."""
    ones_B11 = torch.ones(len(head_BN), 1, 1, device=head_BN.device)
    return exact_kl([head_BN[:, None]], [reference_BN[:, None]], ones_B11)[0]


def _score(groups: Sequence[Group], scores: GroupScores, head_weight: float) -> Tensor:
    """s (B, G) under the policy of ``scores``."""
    score_BG = scores.logp_BGL.sum(-1)
    prior = [group.prior_G for group in groups if group.prior_G is not None]
    score_BG = score_BG + torch.stack(prior).to(score_BG)
    if scores.head_BN is None:
        return score_BG
    items_BG = torch.stack([group.items_G for group in groups]).to(score_BG.device)
    return score_BG + head_weight * scores.head_BN.gather(1, items_BG.clamp(min=0))
