"""Token loss against item loss: does a policy say the next item of queries that it was trained on?

A mean loss of L per token is a probability of e^-L per token, and of e^-(L·d) for an item of d tokens, if tokens were
independent and all queries alike. Neither holds, so the measured match stands beside both. Accuracy of a level after
the true codes, and after the policy's own, tells what its own mistakes cost (exposure bias, Ranzato et al. 2016).

Shapes: B queries, P prompt tokens, L levels, S draws, K codes of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.policy.decoding.beam import Chosen, Frontier, beam, search
from genrec.policy.decoding.score import score
from genrec.policy.model import Policy
from genrec.sid.trie import CompleteTrie, Trie


@dataclass(frozen=True)
class RecallSampling:
    """How codes are drawn: softmax at ``temperature`` over the ``top_k`` best that hold ``top_p`` of it together."""

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95


@dataclass(frozen=True)
class Recalled:
    """Of each query (B, …): loss of every true code; whether codes were right; shares of draws that match the item.

    ``loss_BL``: -log p of the true code after the true ones, among all K codes of a level; ``true_BL``: whether the
    most probable code is right after the true prefix; ``own_BL``: whether it is in the greedy answer; ``match_B``: of
    draws without a catalogue; ``match_trie_B``: of draws in the catalogue's trie.
    """

    loss_BL: Tensor
    true_BL: Tensor
    own_BL: Tensor
    match_B: Tensor
    match_trie_B: Tensor


@torch.no_grad()
def recall(
    policy: Policy,
    tokens_BP: Tensor,
    mask_BP: Tensor,
    codes_BL: Tensor,
    trie: Trie,
    *,
    sampling: RecallSampling,
    draws: int,
    generator: torch.Generator,
) -> Recalled:
    """What a policy says of queries whose targets have the SIDs ``codes_BL``, after left-padded prompts."""
    free = CompleteTrie(trie.level_sizes)
    scores = score(policy, tokens_BP, mask_BP, codes_BL[:, None])
    best_BL = torch.stack([step_BGK[:, 0].argmax(-1) for step_BGK in scores.steps], -1)
    own_BL = beam(policy, tokens_BP, mask_BP, free, 1).codes_BWL[:, 0] == codes_BL
    matches = [
        (drawn_codes(policy, tokens_BP, mask_BP, one, sampling, draws, generator) == codes_BL[:, None]).all(-1)
        for one in (free, trie)
    ]
    shares = [match_BS.float().mean(-1) for match_BS in matches]
    return Recalled(-scores.logp_BGL[:, 0], best_BL == codes_BL, own_BL, *shares)


def drawn_codes(
    policy: Policy,
    tokens_BP: Tensor,
    mask_BP: Tensor,
    trie: Trie | CompleteTrie,
    sampling: RecallSampling,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """SIDs (B, S, L) of independent draws."""

    def draw(frontier: Frontier) -> Chosen:
        p_BWK = kept(frontier.step_BWK, sampling)
        drawn_BW = torch.multinomial(p_BWK.flatten(0, 1), 1, generator=generator).view(p_BWK.shape[:2])
        parents_BW = torch.arange(drawn_BW.shape[1], device=drawn_BW.device).expand(len(drawn_BW), -1)
        return Chosen(parents_BW, drawn_BW, torch.ones_like(drawn_BW, dtype=torch.bool))

    return search(policy, tokens_BP, mask_BP, trie, draw, roots=draws).codes_BWL


def kept(logp_xK: Tensor, sampling: RecallSampling) -> Tensor:
    """Probabilities (…, K) to draw from: tempered, then cut to the best codes, as in the usual libraries.

    Of the codes in order of probability those are kept before which less than ``top_p`` lies, ``top_k`` at most.
    """
    p_xK = torch.softmax(logp_xK.float() / sampling.temperature, -1)
    p_xK, order_xK = p_xK.sort(-1, descending=True)
    p_xK = p_xK.masked_fill(torch.arange(p_xK.shape[-1], device=p_xK.device) >= sampling.top_k, 0.0)
    p_xK = p_xK / p_xK.sum(-1, keepdim=True)
    p_xK = p_xK.masked_fill(p_xK.cumsum(-1) - p_xK >= sampling.top_p, 0.0)
    return torch.zeros_like(p_xK).scatter(-1, order_xK, p_xK / p_xK.sum(-1, keepdim=True))
