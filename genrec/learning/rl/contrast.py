"""Repair, then contrast (ReCast, arXiv 2604.22169): the best candidate of a group against its hardest negative.

The repair is ``learning.rl.add_target``, which this objective switches on: the target goes into groups that lack it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.learning.rl.advantages import EPSILON
from genrec.learning.rl.list_losses import gains


def recast(score_BG: Tensor, rewards_BG: Tensor, valid_BG: Tensor, temperature: float) -> Tensor:
    """Σ_queries -log σ((s_+ - s_-) / τ), a scalar, for the scores s = log π of the candidates.

    + is the candidate with the highest reward (of equal ones the most probable), - the most probable of the negatives.
    The paper's rewards are 0 and 1; here negatives are those whose gain y_i = r_i - min_j r_j is below half of the
    largest one, so that nothing changes when a constant is added to all rewards, and a second item that is nearly as
    good is not pushed down. A group without two different rewards adds 0.
    """
    gain_BG, now_BG = gains(rewards_BG, valid_BG), score_BG.detach()
    highest_B1 = gain_BG.amax(-1, keepdim=True)
    best_BG = valid_BG & (gain_BG >= highest_B1 - EPSILON)
    negative_BG = valid_BG & (gain_BG < highest_B1 / 2)
    has_B = negative_BG.any(-1) & (highest_B1[:, 0] > EPSILON)
    positive_B, negative_B = (
        score_BG.gather(1, now_BG.masked_fill(~among_BG, -torch.inf).argmax(-1, keepdim=True))[:, 0][has_B]
        for among_BG in (best_BG, negative_BG)
    )
    return F.softplus((negative_B - positive_B) / temperature).sum()
