"""Prefix-shared scoring: G candidates of a query in one sequence behind one prompt, with gradients.

P + (L - 1)·G tokens instead of G·(P + L - 1); the log-probabilities and gradients are those of G separate sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.policy.decode import masked_log_softmax
from genrec.policy.model import Policy
from genrec.policy.tree import add_self, node_mask, prompt_mask, prompt_positions
from genrec.sid.trie import Trie


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of candidates and of all their alternatives.

    ``logp_BGL``: each candidate's steps (-inf where its SID leaves the trie).
    ``steps``: per level the whole distribution at the prefix, (B, 1, K) at level 1, then (B, G, K); -inf at
    codes that do not exist.
    ``hidden``: per level the hidden state at the prefix, (B, 1, D) at level 1, then (B, G, D).
    """

    logp_BGL: Tensor
    steps: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]


def score(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, codes_BGL: Tensor, trie: Trie | None = None) -> Scores:
    """Log-probabilities of ``codes_BGL`` after left-padded prompts.

    With a ``trie`` they are of the trie-renormalised policy; without, of the softmax over each level's K codes.
    """
    group = codes_BGL.shape[1]
    nodes_BGL = trie.walk(codes_BGL) if trie is not None else None
    steps: list[Tensor] = []
    hidden: list[Tensor] = []
    chosen: list[Tensor] = []
    for level, hidden_BGD in enumerate(states(policy, tokens_BP, mask_BP, codes_BGL)):
        logits_BGK = policy.level_logits(hidden_BGD, level)
        if trie is None or nodes_BGL is None:
            step_BGK = logits_BGK.float().log_softmax(-1)
        else:
            nodes_BG = nodes_BGL[:, : hidden_BGD.shape[1], level].clamp(min=0)
            step_BGK = masked_log_softmax(logits_BGK, trie.step(level, nodes_BG) >= 0)
        steps.append(step_BGK)
        hidden.append(hidden_BGD)
        chosen.append(step_BGK.expand(-1, group, -1).gather(-1, codes_BGL[..., level : level + 1]))
    return Scores(torch.cat(chosen, -1), tuple(steps), tuple(hidden))


def states(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, codes_BGL: Tensor) -> tuple[Tensor, ...]:
    """Per level the hidden states that its codes are read from: (B, 1, D) at level 1, then (B, G, D)."""
    prompt, (_, group, levels) = tokens_BP.shape[1], codes_BGL.shape
    hidden_BSD = _forward(policy, tokens_BP, mask_BP, codes_BGL)
    starts = range(prompt, prompt + (levels - 1) * group, group)
    return (hidden_BSD[:, prompt - 1 : prompt], *(hidden_BSD[:, start : start + group] for start in starts))


def _forward(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, codes_BGL: Tensor) -> Tensor:
    """Hidden states of the prompt and of every candidate's tokens but the last, (B, P + (L - 1)·G, D)."""
    batch, group, levels = codes_BGL.shape
    prompt = tokens_BP.shape[1]
    tree = [policy.sids.token(level, codes_BGL[..., level]) for level in range(levels - 1)]
    lengths_B1 = mask_BP.sum(-1, keepdim=True)
    positions = [(lengths_B1 + level).expand(-1, group) for level in range(levels - 1)]
    size = prompt + (levels - 1) * group
    mask_B1SS = torch.zeros(batch, 1, size, size, dtype=torch.bool, device=tokens_BP.device)
    mask_B1SS[:, :, :prompt, :prompt] = prompt_mask(mask_BP)
    ancestors_BGT = torch.empty(batch, group, 0, dtype=torch.bool, device=tokens_BP.device)
    for level in range(levels - 1):
        ancestors_BGT = add_self(ancestors_BGT)
        start, seen = prompt + level * group, prompt + (level + 1) * group
        mask_B1SS[:, :, start:seen, :seen] = node_mask(mask_BP, ancestors_BGT)
    return policy.hidden(
        torch.cat([tokens_BP, *tree], dim=1), torch.cat([prompt_positions(mask_BP), *positions], dim=1), mask_B1SS
    )
