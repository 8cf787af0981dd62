"""Tree decoding: beam search and sampling over the catalogue's trie, one forward per level.

The prompt is run once and its KV cache stays at batch B. At each level the W chosen tokens of all beams are appended
as one sequence of W nodes under a tree mask, so nothing is reordered or copied per beam: P + (L - 1)·W tokens in all.
Probabilities are of the trie-renormalised policy: a softmax over the codes that exist under the beam's prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.policy.model import Policy
from genrec.policy.tree import add_self, node_mask, prompt_mask, prompt_positions
from genrec.sid.trie import Trie

Choose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(total_BW, step_BWK) → the parents (B, W') and codes (B, W') that go on."""


@dataclass(frozen=True)
class Beams:
    """W candidates per query, best first.

    ``items_BW`` item rows, -1 where the catalogue had fewer candidates than W; ``codes_BWL`` their SIDs;
    ``logp_BWL`` log-probability of each step.
    """

    items_BW: Tensor
    codes_BWL: Tensor
    logp_BWL: Tensor

    @property
    def logp_BW(self) -> Tensor:
        """Log-probability of each candidate, -inf at the empty ones."""
        return self.logp_BWL.sum(-1)


def beam(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, trie: Trie, width: int) -> Beams:
    """The ``width`` most probable items by beam search; identical to HF ``generate`` with ``num_beams=width``,
    ``prefix_allowed_tokens_fn`` and ``renormalize_logits=True``.

    Args:
        tokens_BP: left-padded prompts.
        mask_BP: True at real tokens.
    """

    def best(total_BW: Tensor, step_BWK: Tensor) -> tuple[Tensor, Tensor]:
        codes = step_BWK.shape[-1]
        flat_BX = (total_BW[..., None] + step_BWK).flatten(1)
        chosen_BW = flat_BX.topk(min(width, flat_BX.shape[1]), dim=-1).indices
        return chosen_BW // codes, chosen_BW % codes

    return _search(policy, tokens_BP, mask_BP, trie, best, roots=1)


def sample(
    policy: Policy,
    tokens_BP: Tensor,
    mask_BP: Tensor,
    trie: Trie,
    count: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Beams:
    """``count`` independent draws per query from the trie-renormalised policy at ``temperature``.

    Best first; an item may be drawn more than once. The log-probabilities that come back are those of the policy
    itself (temperature 1).
    """

    def draw(total_BW: Tensor, step_BWK: Tensor) -> tuple[Tensor, Tensor]:
        batch, beams, codes = step_BWK.shape
        weights = torch.softmax(step_BWK.reshape(-1, codes) / temperature, dim=-1)
        drawn_BW = torch.multinomial(weights, 1, generator=generator).view(batch, beams)
        parents_BW = torch.arange(beams, device=step_BWK.device).expand(batch, -1)
        return parents_BW, drawn_BW

    drawn = _search(policy, tokens_BP, mask_BP, trie, draw, roots=count)
    order_BW = torch.sort(drawn.logp_BW, dim=-1, descending=True, stable=True).indices
    rows_B1 = torch.arange(len(order_BW), device=order_BW.device)[:, None]
    return Beams(
        drawn.items_BW[rows_B1, order_BW], drawn.codes_BWL[rows_B1, order_BW], drawn.logp_BWL[rows_B1, order_BW]
    )


def masked_log_softmax(logits_xK: Tensor, allowed_xK: Tensor) -> Tensor:
    """Log-softmax over the allowed codes; -inf elsewhere. Every row must allow at least one."""
    return logits_xK.float().masked_fill(~allowed_xK, -torch.inf).log_softmax(-1)


@torch.no_grad()
def _search(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, trie: Trie, choose: Choose, roots: int) -> Beams:
    batch = len(tokens_BP)
    cache = policy.new_cache()
    hidden_BPD = policy.hidden(tokens_BP, prompt_positions(mask_BP), prompt_mask(mask_BP), cache)
    hidden_BWD = hidden_BPD[:, -1:].expand(-1, roots, -1)
    lengths_B1 = mask_BP.sum(-1, keepdim=True)
    nodes_BW = torch.zeros(batch, roots, dtype=torch.long, device=tokens_BP.device)
    codes_BWL = nodes_BW.new_empty(batch, roots, 0)
    logp_BWL = hidden_BPD.new_empty(batch, roots, 0, dtype=torch.float32)
    ancestors_BWT = torch.empty(batch, roots, 0, dtype=torch.bool, device=tokens_BP.device)
    for level in range(trie.depth):
        children_BWK = trie.step(level, nodes_BW.clamp(min=0))
        step_BWK = masked_log_softmax(policy.level_logits(hidden_BWD, level), children_BWK >= 0)
        total_BW = logp_BWL.sum(-1).masked_fill(nodes_BW < 0, -torch.inf)
        parents_BW, chosen_BW = choose(total_BW, step_BWK)
        rows_B1 = torch.arange(batch, device=tokens_BP.device)[:, None]
        alive_BW = nodes_BW[rows_B1, parents_BW] >= 0
        nodes_BW = children_BWK[rows_B1, parents_BW, chosen_BW].long().masked_fill(~alive_BW, -1)
        step_BW1 = step_BWK[rows_B1, parents_BW, chosen_BW][..., None]
        codes_BWL = torch.cat([codes_BWL[rows_B1, parents_BW], chosen_BW[..., None]], -1)
        logp_BWL = torch.cat([logp_BWL[rows_B1, parents_BW], step_BW1], -1)
        if level < trie.depth - 1:
            ancestors_BWT = add_self(ancestors_BWT[rows_B1, parents_BW])
            tokens_BW = policy.sids.token(level, chosen_BW)
            positions_BW = (lengths_B1 + level).expand_as(tokens_BW)
            hidden_BWD = policy.hidden(tokens_BW, positions_BW, node_mask(mask_BP, ancestors_BWT), cache)
    return _finished(trie, nodes_BW, codes_BWL, logp_BWL)


def _finished(trie: Trie, nodes_BW: Tensor, codes_BWL: Tensor, logp_BWL: Tensor) -> Beams:
    alive_BW = nodes_BW >= 0
    items_BW = torch.where(alive_BW, trie.leaf_items[nodes_BW.clamp(min=0)].long(), -1)
    return Beams(items_BW, codes_BWL, logp_BWL.masked_fill(~alive_BW[..., None], -torch.inf))
