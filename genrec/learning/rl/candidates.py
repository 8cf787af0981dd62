"""From the beams of a search to a group's candidates: their weights, mixtures, the target added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrec.policy.decoding.beam import Beams, head_log_probabilities
from genrec.policy.decoding.sampling import SampledBeams, TemperedBeams
from genrec.policy.decoding.score import score
from genrec.policy.model import Policy
from genrec.sid.trie import Trie
from genrec.types import Group


def candidate_weights(groups: Sequence[Group], kind: str) -> Tensor:
    """w (B, G) of the candidates in an objective: of mean 1 over a group's real candidates, 0 for empty ones.

    They are the groups' importance weights where these carry any. Otherwise ``uniform`` weights are 1, and with
    ``probability`` they are n π_i / Σ_j π_j for the n candidates, π being the policy that generated them: beams are an
    enumerated set, over which Σ_i π_i r_i / Σ_j π_j is the risk to minimise (Shen et al. 2016, eq. 9–10, α = 1).
    In groups of what is served π is fused with item head and prior.
    """
    real_BG = torch.stack([group.real_G for group in groups])
    if groups[0].weights_G is not None:
        given = [group.weights_G for group in groups if group.weights_G is not None]
        return torch.stack(given).masked_fill(~real_BG, 0)
    if kind == "uniform":
        return real_BG.float()
    logp_BG = torch.stack([group.score_G for group in groups])
    return _of_mean_one(logp_BG, real_BG)


def importance(drawn: SampledBeams) -> Tensor:
    """w_i = n · (π_i / q_i) / Σ_j (π_j / q_j) of n candidates drawn without replacement, (B, G); 0 for empty ones.

    q_i is the probability that i is drawn at all; the weights have mean 1 over the real candidates (normalised
    importance weights, Kool et al. 2019, §4.2).
    """
    log_q_BG = drawn.inclusion_BW.clamp(min=1e-30).log()
    return _of_mean_one(drawn.beams.logp_BW - log_q_BG, drawn.beams.items_BW >= 0)


def tempered_importance(drawn: TemperedBeams) -> Tensor:
    """w_i = n · (π_i / μ_i) / Σ_j (π_j / μ_j) of n samples of the tempered policy μ, (B, G); 0 for empty ones.

    π / π_old · w ∝ π / μ is then the ratio to the policy that acted, while the clip range lies around π_old (the
    decoupled objective of Hilton et al. 2022, §3).
    """
    return _of_mean_one(drawn.beams.logp_BW - drawn.behaviour_BW, drawn.beams.items_BW >= 0)


def _of_mean_one(log_weight_BG: Tensor, real_BG: Tensor) -> Tensor:
    """Weights proportional to the exponential, with mean 1 over the real candidates and 0 elsewhere."""
    share_BG = log_weight_BG.masked_fill(~real_BG, -torch.inf).softmax(-1)
    return (share_BG * real_BG.sum(1, keepdim=True)).masked_fill(~real_BG, 0)


def mixed(best: Beams, drawn: Beams) -> Beams:
    """The first half of ``best`` (rounded up), then those ``drawn`` that are not in it, up to the width of ``best``."""
    width = best.items_BW.shape[1]
    half = (width + 1) // 2
    items_BW, codes_BWL, logp_BWL = (
        torch.cat([first[:, :half], second], dim=1)
        for first, second in zip(_tensors(best), _tensors(drawn), strict=True)
    )
    duplicate_BW = torch.zeros_like(items_BW, dtype=torch.bool)
    duplicate_BW[:, half:] = (items_BW[:, half:, None] == items_BW[:, None, :half]).any(-1)
    emptied = Beams(
        items_BW.masked_fill(duplicate_BW, -1), codes_BWL, logp_BWL.masked_fill(duplicate_BW[..., None], -torch.inf)
    )
    return emptied.ordered((emptied.items_BW < 0).long().sort(dim=1, stable=True).indices[:, :width])


def with_target(
    policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, trie: Trie, beams: Beams, targets: Sequence[int]
) -> Beams:
    """Puts the target in the last place of every group without it, with its log-probability under the policy.

    That by the item head is put there too, where the beams have it. A target without a leaf in the trie is not added.
    """
    target_B = torch.tensor(targets, device=beams.items_BW.device)
    leaf_B, exists_B = _leaves(trie, target_B)
    codes_BL = _codes(trie, leaf_B)
    with torch.no_grad():
        scores = score(policy, tokens_BP, mask_BP, codes_BL[:, None], trie)
    logp_BL = scores.logp_BGL[:, 0]
    added_B = exists_B & ~(beams.items_BW == target_B[:, None]).any(-1)
    items_BW, codes_BWL, logp_BWL = (tensor.clone() for tensor in _tensors(beams))
    items_BW[added_B, -1] = target_B[added_B]
    codes_BWL[added_B, -1] = codes_BL[added_B]
    logp_BWL[added_B, -1] = logp_BL[added_B]
    head_BW = beams.head_BW
    if head_BW is not None:
        logp_BN = head_log_probabilities(policy, scores.hidden[0][:, 0], tokens_BP)
        head_BW = head_BW.clone()
        head_BW[added_B, -1] = logp_BN[added_B, target_B[added_B]]
    return Beams(items_BW, codes_BWL, logp_BWL, head_BW)


def _leaves(trie: Trie, items_B: Tensor) -> tuple[Tensor, Tensor]:
    """The leaf of each item (0 if it has none), and whether it has one; (B,) each."""
    is_leaf_Bn = trie.leaf_items == items_B[:, None]
    return is_leaf_Bn.int().argmax(1), is_leaf_Bn.any(1)


def leaf_codes(trie: Trie) -> Tensor:
    """Codes (n, L) of all leaves, in the order of ``trie.leaf_items``."""
    return _codes(trie, torch.arange(len(trie.leaf_items), device=trie.leaf_items.device))


def _codes(trie: Trie, leaf_B: Tensor) -> Tensor:
    """Codes on the path to each leaf, (B, L)."""
    found: list[Tensor] = []
    for level in reversed(trie.levels):
        found.append(level.codes[leaf_B].long())
        leaf_B = torch.searchsorted(level.starts, leaf_B.int(), right=True) - 1
    return torch.stack(found[::-1], dim=-1)


def _tensors(beams: Beams) -> tuple[Tensor, Tensor, Tensor]:
    return beams.items_BW, beams.codes_BWL, beams.logp_BWL
