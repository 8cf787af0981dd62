"""Prefix-shared scoring: G candidates of a query in one sequence behind one prompt, with gradients.

At most P + (L - 1)·G tokens instead of G·(P + L - 1); the log-probabilities and gradients are those of G separate
sequences. Candidates with the same first codes share their tokens, and a prefix with one item under it needs no token:
the rest of its SID has probability 1.
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
    """Log-probabilities of G candidates per query, and of every alternative at each step.

    ``logp_BGL``: of each candidate's codes given the codes before; -inf where its SID leaves the trie.
    ``steps``: per level the log-probabilities of all K codes at the prefix, (B, 1, K) at level 1, then (B, G, K); -inf
    at codes that do not exist.
    ``hidden``: per level the hidden state at the prefix, (B, 1, D) at level 1, then (B, G, D); undefined where the
    next steps have probability 1, unless ``score`` ran with ``all_states``.
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
    """Log-probabilities of the SIDs ``codes_BGL`` (int64) after left-padded prompts, with gradients.

    With a ``trie`` they are those of the trie-renormalised policy, a softmax over the codes that exist under the
    prefix; without one, of the softmax over each level's K codes. ``all_states`` also computes the hidden states that
    no log-probability needs. ``mask_BP``: True at real tokens of the prompts ``tokens_BP``.
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
    """Per level the hidden states from which its codes are predicted: (B, 1, D) at level 1, then (B, G, D).

    With ``paths_BGL``, the nodes of the codes in the ``trie`` (``Trie.path``, L + 1 per SID), a state under which the
    trie leaves a single item is undefined: it is not computed.
    """
    batch, group, levels = codes_BGL.shape
    prompt, rows_B1 = tokens_BP.shape[1], torch.arange(batch, device=tokens_BP.device)[:, None]
    lengths_B1 = mask_BP.sum(-1, keepdim=True)
    tokens, positions, masks = [tokens_BP], [prompt_positions(mask_BP)], [prompt_mask(mask_BP)]
    seen_BGT = torch.empty(batch, group, 0, dtype=torch.bool, device=tokens_BP.device)
    nodes_BG = torch.zeros(batch, group, dtype=torch.long, device=tokens_BP.device)
    columns: list[Tensor] = []
    size = prompt
    for level in range(levels - 1):
        if trie is None or paths_BGL is None:
            nodes_BG = nodes_BG * policy.sids.level_sizes[level] + codes_BGL[..., level]
            open_BG = torch.ones_like(nodes_BG, dtype=torch.bool)
        else:
            nodes_BG = paths_BGL[..., level + 1]
            open_BG = (nodes_BG >= 0) & ~is_deterministic(trie, level + 1, nodes_BG.clamp(min=0))
        # From here on a node's number is its place in this level, so numbers never outgrow int64.
        representative_BM, nodes_BG, seen_BGT = merge_nodes(seen_BGT, nodes_BG, open_BG)
        tokens_BM = policy.sids.token(level, codes_BGL[..., level][rows_B1, representative_BM])
        tokens.append(tokens_BM)
        positions.append((lengths_B1 + level).expand_as(tokens_BM))
        masks.append(node_mask(mask_BP, seen_BGT[rows_B1, representative_BM]))
        columns.append((size + nodes_BG).clamp(max=size + tokens_BM.shape[1] - 1))
        size += tokens_BM.shape[1]
    padded = [torch.nn.functional.pad(mask_B1MK, (0, size - mask_B1MK.shape[-1])) for mask_B1MK in masks]
    hidden_BSD = policy.hidden(torch.cat(tokens, 1), torch.cat(positions, 1), torch.cat(padded, 2), start=prompt - 1)
    return (hidden_BSD[:, prompt - 1 : prompt], *(hidden_BSD[rows_B1, column_BG] for column_BG in columns))
