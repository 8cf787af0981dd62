"""Masks and positions for a prompt with a tree of SID tokens behind it, all in one sequence.

A query's candidates share their prompt: their tokens are appended level by level as nodes, and a node attends to the
prompt, to its own ancestors and to itself. Boolean masks are (B, 1, queries, keys), True where attention is allowed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def prompt_positions(mask_BP: Tensor) -> Tensor:
    """Positions of a padded prompt's tokens, from 0 at the first real one; (B, P)."""
    return (mask_BP.long().cumsum(-1) - 1).clamp(min=0)


def prompt_mask(mask_BP: Tensor) -> Tensor:
    """Causal attention inside a padded prompt, (B, 1, P, P). A pad token sees itself, so no row is empty."""
    length = mask_BP.shape[1]
    causal_PP = torch.ones(length, length, dtype=torch.bool, device=mask_BP.device).tril()
    own_PP = torch.eye(length, dtype=torch.bool, device=mask_BP.device)
    return ((causal_PP & mask_BP[:, None, :]) | own_PP)[:, None]


def node_mask(mask_BP: Tensor, seen_BWT: Tensor) -> Tensor:
    """Attention of W nodes to the prompt and to the T tree tokens that they see, themselves too; (B, 1, W, P + T)."""
    width = seen_BWT.shape[1]
    return torch.cat([mask_BP[:, None, :].expand(-1, width, -1), seen_BWT], dim=-1)[:, None]


class MergedNodes(NamedTuple):
    """The nodes that join a tree, a slot for each.

    ``places_BM`` a candidate that goes through each slot; ``slots_BW`` the slot that each open candidate goes through;
    ``seen_BWT`` the tree's tokens that each candidate sees now.
    """

    places_BM: Tensor
    slots_BW: Tensor
    seen_BWT: Tensor


def merge_nodes(seen_BWT: Tensor, nodes_BW: Tensor, open_BW: Tensor) -> MergedNodes:
    """Let the open candidates' nodes join the tree: those that stand at the same node share a slot.

    M is the largest number of distinct open nodes of a row; a row with fewer repeats others.

    Args:
        seen_BWT: the T tokens of the tree that each candidate has seen so far.
        nodes_BW: any numbers that tell nodes of a row apart, from 0.
        open_BW: False where a candidate's state is not wanted any more, nor will be of what follows it.
    """
    width = nodes_BW.shape[1]
    closed = torch.iinfo(torch.long).max
    sorted_BW, order_BW = nodes_BW.masked_fill(~open_BW, closed).sort(dim=1, stable=True)
    is_new_BW = sorted_BW.diff(dim=1, prepend=sorted_BW.new_full((len(sorted_BW), 1), -1)) != 0
    slot_BW = is_new_BW.long().cumsum(1) - 1
    slots = int((is_new_BW & (sorted_BW != closed)).sum(1).max())
    # The first candidate of each node stands for it; the others are written into a column that is cut off.
    places_BW = torch.zeros_like(nodes_BW, dtype=torch.long)
    places_BW = torch.nn.functional.pad(places_BW, (0, 1)).scatter(1, slot_BW.where(is_new_BW, width), order_BW)
    slots_BW = torch.empty_like(slot_BW).scatter(1, order_BW, slot_BW)
    own_BWM = slots_BW[..., None] == torch.arange(slots, device=nodes_BW.device)
    return MergedNodes(places_BW[:, :slots], slots_BW, torch.cat([seen_BWT, own_BWM], dim=-1))
