"""Prefix-shared scoring: G candidates of a query in one sequence behind one prompt, with gradients.

P + (L - 1)·G tokens at most instead of G·(P + L - 1); the log-probabilities and gradients are those of G separate
sequences. Candidates with the same first codes share their tokens, and a prefix with one item under it has no token:
the rest of its SID is certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.policy.decoding.beam import is_deterministic, masked_log_softmax
from genrec.policy.decoding.tree import merge_nodes, node_mask, prompt_mask, prompt_positions
from genrec.policy.model import Policy
from genrec.sid.trie import Trie


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of candidates and of all their alternatives.

    ``logp_BGL``: each candidate's steps (-inf where its SID leaves the trie).
    ``steps``: per level the whole distribution at the prefix, (B, 1, K) at level 1, then (B, G, K); -inf at
    codes that do not exist.
    ``hidden``: per level the hidden state at the prefix, (B, 1, D) at level 1, then (B, G, D); undefined where the
    next steps are certain, unless ``score`` was asked for all.
    """

    logp_BGL: Tensor
    steps: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]


def score(
    policy: Policy,
    tokens_BP: Tensor,
    mask_BP: Tensor,
    codes_BGL: Tensor,
    trie: Trie | None = None,
    all_states: bool = False,
) -> Scores:
    """Log-probabilities of ``codes_BGL`` after left-padded prompts.

    With a ``trie`` they are of the trie-renormalised policy; without, of the softmax over each level's K codes.
    ``all_states`` computes the hidden states that no log-probability needs, too.
    """
    group = codes_BGL.shape[1]
    paths_BGL = trie.path(codes_BGL) if trie is not None else None
    steps: list[Tensor] = []
    hidden: list[Tensor] = []
    chosen: list[Tensor] = []
    known_BGL = None if all_states else paths_BGL
    for level, hidden_BGD in enumerate(states(policy, tokens_BP, mask_BP, codes_BGL, trie, known_BGL)):
        logits_BGK = policy.level_logits(hidden_BGD, level)
        if trie is None or paths_BGL is None:
            step_BGK = logits_BGK.float().log_softmax(-1)
        else:
            nodes_BG = paths_BGL[:, : hidden_BGD.shape[1], level].clamp(min=0)
            step_BGK = masked_log_softmax(logits_BGK, trie.step(level, nodes_BG) >= 0)
        steps.append(step_BGK)
        hidden.append(hidden_BGD)
        chosen.append(step_BGK.expand(-1, group, -1).gather(-1, codes_BGL[..., level : level + 1]))
    return Scores(torch.cat(chosen, -1), tuple(steps), tuple(hidden))


def states(
    policy: Policy,
    tokens_BP: Tensor,
    mask_BP: Tensor,
    codes_BGL: Tensor,
    trie: Trie | None = None,
    paths_BGL: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Per level the hidden states that its codes are read from: (B, 1, D) at level 1, then (B, G, D).

    With ``paths_BGL``, what the ``trie`` says of the codes (``Trie.path``, L + 1 nodes), a state from which the
    trie-renormalised policy has one way to go is undefined.
    """
    batch, group, levels = codes_BGL.shape
    prompt, rows_B1 = tokens_BP.shape[1], torch.arange(batch, device=tokens_BP.device)[:, None]
    lengths_B1 = mask_BP.sum(-1, keepdim=True)
    tokens, positions, masks = [tokens_BP], [prompt_positions(mask_BP)], [prompt_mask(mask_BP)]
    seen_BGT = torch.empty(batch, group, 0, dtype=torch.bool, device=tokens_BP.device)
    nodes_BG = torch.zeros(batch, group, dtype=torch.long, device=tokens_BP.device)
    places: list[Tensor] = []
    size = prompt
    for level in range(levels - 1):
        if trie is None or paths_BGL is None:
            nodes_BG = nodes_BG * policy.sids.level_sizes[level] + codes_BGL[..., level]
            open_BG = torch.ones_like(nodes_BG, dtype=torch.bool)
        else:
            nodes_BG = paths_BGL[..., level + 1]
            open_BG = (nodes_BG >= 0) & ~is_deterministic(trie, level + 1, nodes_BG.clamp(min=0))
        places_BM, slots_BG, seen_BGT = merge_nodes(seen_BGT, nodes_BG, open_BG)
        nodes_BG = slots_BG
        tokens_BM = policy.sids.token(level, codes_BGL[..., level][rows_B1, places_BM])
        tokens.append(tokens_BM)
        positions.append((lengths_B1 + level).expand_as(tokens_BM))
        masks.append(node_mask(mask_BP, seen_BGT[rows_B1, places_BM]))
        places.append((size + slots_BG).clamp(max=size + tokens_BM.shape[1] - 1))
        size += tokens_BM.shape[1]
    padded = [torch.nn.functional.pad(mask_B1MK, (0, size - mask_B1MK.shape[-1])) for mask_B1MK in masks]
    hidden_BSD = policy.hidden(torch.cat(tokens, 1), torch.cat(positions, 1), torch.cat(padded, 2), start=prompt - 1)
    return (hidden_BSD[:, prompt - 1 : prompt], *(hidden_BSD[rows_B1, places_BG] for places_BG in places))
