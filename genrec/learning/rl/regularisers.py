"""Exact KL and entropy of the policy over the trie, at the prefixes that the candidates of a group visit.

By the chain rule, KL(π ‖ π_ref) = Σ_prefixes π(prefix) Σ_children π(child | prefix) log(π / π_ref)(child | prefix). The
visited prefixes make up a tree; summed over them, each once, that is the exact KL between the two distributions over
the nodes where one leaves this tree: a lower bound of the KL over items, equal to it where every prefix is visited.
The same holds for the entropy. Gradients run through π(prefix) too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.learning.rl.advantages import same_prefix


def prefix_weights(logp_BGL: Tensor, codes_BGL: Tensor, valid_BG: Tensor, kind: str) -> Tensor:
    """Weight (B, G, L) of the prefix that each candidate visits before each level; 0 for candidates that are not valid.

    ``probability``: π(prefix) where a candidate is the first with this prefix, else 0. ``uniform``: 1 / the number of
    valid candidates, so that a prefix counts as often as it is visited, however improbable it is.

    Args:
        logp_BGL: log-probabilities of the codes ``codes_BGL`` under π.
    """
    if kind == "uniform":
        share_BG = valid_BG.float() / valid_BG.sum(1, keepdim=True).clamp(min=1)
        return share_BG[..., None].expand_as(logp_BGL)
    before_BGL = F.pad(logp_BGL[..., :-1], (1, 0)).masked_fill(~valid_BG[..., None], -torch.inf).cumsum(-1)
    same_BGGL = same_prefix(codes_BGL) & valid_BG[:, None, :, None]
    earlier_GG = torch.ones(same_BGGL.shape[1:3], dtype=torch.bool, device=codes_BGL.device).tril(-1)
    is_repeated_BGL = (same_BGGL & earlier_GG[None, :, :, None]).any(2)
    return before_BGL.exp().masked_fill(is_repeated_BGL, 0)


def exact_kl(steps: Sequence[Tensor], reference: Sequence[Tensor], weight_BGL: Tensor) -> Tensor:
    """Σ_queries Σ_G w Σ_children π log(π / π_ref) at the visited prefix of each level, (L,).

    Args:
        steps: per level the log-distributions of π, (B, 1 or G, K), -inf where no child exists.
        reference: those of π_ref.
        weight_BGL: see ``prefix_weights``.
    """
    levels = [
        (logp_BGK.exp() * (_finite(logp_BGK) - _finite(reference_BGK, logp_BGK))).sum(-1)
        for logp_BGK, reference_BGK in zip(steps, reference, strict=True)
    ]
    return _weighted(levels, weight_BGL)


def exact_entropy(steps: Sequence[Tensor], weight_BGL: Tensor) -> Tensor:
    """Σ_queries Σ_G w Σ_children -π log π at the visited prefix of each level, (L,) in nats."""
    return _weighted([-(s_BGK.exp() * _finite(s_BGK)).sum(-1) for s_BGK in steps], weight_BGL)


def _weighted(levels: Sequence[Tensor], weight_BGL: Tensor) -> Tensor:
    return torch.stack([(value_BG * weight_BGL[..., level]).sum() for level, value_BG in enumerate(levels)])


def _finite(logp_BGK: Tensor, of_BGK: Tensor | None = None) -> Tensor:
    return logp_BGK.masked_fill((logp_BGK if of_BGK is None else of_BGK) == -torch.inf, 0)
