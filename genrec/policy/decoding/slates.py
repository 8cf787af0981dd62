"""Ordered lists of distinct items, drawn from the policy one item after the other without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.policy.decoding.beam import Beams, Chosen, Frontier, pick, search
from genrec.policy.decoding.noise import Source
from genrec.policy.decoding.sampling import conditioned, gumbel_noise, padded
from genrec.policy.model import Policy
from genrec.sid.trie import Trie

LEFT_AT_LEAST = 1e-6
"""1 - Σ π of the items before a position is taken to be at least this."""


def draw_slates(
    policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, trie: Trie, count: int, size: int, *, generator: Source = None
) -> Beams:
    """``count`` independent lists of ``size`` distinct items per query: W = count · size beams, list after list.

    The top ``size`` of log π + Gumbel noise, in order, are a draw without replacement from π (Gumbel-top-k; Kool, van
    Hoof & Welling, "Stochastic Beams and Where to Find Them", 2019, §3, and Algorithm 1 for the search down a tree),
    so a list has the probability of ``list_log_probabilities``. A catalogue of fewer items gives empty beams.
    """
    state: list[Tensor] = []

    def choose(frontier: Frontier) -> Chosen:
        batch, width, codes = frontier.step_BWK.shape
        phi_BWK = frontier.total_BW[..., None] + frontier.step_BWK
        parent_BW = state[-1] if state else gumbel_noise(frontier.total_BW.shape, generator, phi_BWK.device)
        perturbed_BWK = conditioned(phi_BWK + gumbel_noise(phi_BWK.shape, generator, phi_BWK.device), parent_BW)
        own = pick(perturbed_BWK.view(batch * count, width // count, codes), size)
        if frontier.level == trie.depth - 1:  # Fewer semantic IDs than places, too, give lists of this size.
            own = padded(own, size)
        starts_C1 = torch.arange(count, device=phi_BWK.device).repeat(batch)[:, None] * (width // count)
        parents_BW, codes_BW, real_BW = (
            part.reshape(batch, -1) for part in (own.parents_BW + starts_C1, own.codes_BW, own.real_BW)
        )
        state.append(perturbed_BWK[torch.arange(batch, device=phi_BWK.device)[:, None], parents_BW, codes_BW])
        return Chosen(parents_BW, codes_BW, real_BW)

    return search(policy, tokens_BP, mask_BP, trie, choose, roots=count)


def list_log_probabilities(logp_BW: Tensor, size: int) -> Tensor:
    """log p_j = log π(i_j) - log(1 - Σ_{m<j} π(i_m)) of each position j of each list, (B, lists, size).

    Their sum is the log-probability of the ordered list without replacement (Plackett–Luce; Kool et al. 2019, eq. 6),
    with its gradient.

    Args:
        logp_BW: log π of the items, list after list.
    """
    logp_BGJ = logp_BW.unflatten(1, (-1, size))
    chance_BGJ = logp_BGJ.double().exp()
    before_BGJ = chance_BGJ.cumsum(-1) - chance_BGJ
    return logp_BGJ - (1 - before_BGJ).clamp(min=LEFT_AT_LEAST).log().to(logp_BGJ.dtype)
