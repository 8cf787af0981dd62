"""Attention masks and positions for a prompt followed by a tree of SID tokens, all in one sequence.

The candidates of a query share its prompt. Their tokens are appended level by level as nodes of a tree; a node attends
to the prompt, to its ancestors and to itself (tree attention: Miao et al. 2023, SpecInfer, section 4.2). Boolean masks
are (B, 1, queries, keys), True where attention is allowed. B queries, P prompt tokens, W candidates, T tree tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def prompt_positions(mask_BP: Tensor) -> Tensor:
    """Positions (B, P) of a left-padded prompt's tokens, 0 at the first real one. ``mask_BP``: True at real tokens."""
    return (mask_BP.long().cumsum(-1) - 1).clamp(min=0)


def prompt_mask(mask_BP: Tensor) -> Tensor:
    """Causal attention (B, 1, P, P) inside a padded prompt. A pad token sees itself, so that no row is empty."""
    length = mask_BP.shape[1]
    causal_PP = torch.ones(length, length, dtype=torch.bool, device=mask_BP.device).tril()
    own_PP = torch.eye(length, dtype=torch.bool, device=mask_BP.device)
    return ((causal_PP & mask_BP[:, None, :]) | own_PP)[:, None]


def node_mask(mask_BP: Tensor, seen_BWT: Tensor) -> Tensor:
    """Attention (B, 1, W, P + T) of W nodes to the prompt and to tree tokens: ``seen_BWT`` is True at a node's
    ancestors and at the node itself.
    """
    width = seen_BWT.shape[1]
    return torch.cat([mask_BP[:, None, :].expand(-1, width, -1), seen_BWT], dim=-1)[:, None]


class MergedNodes(NamedTuple):
    """The M distinct nodes that one level appends to the tree.

    ``representative_BM``: for each node a candidate (0 … W - 1) that passes through it; ``node_index_BW``: the node
    (0 … M - 1) that each open candidate passes through, and any number for the others; ``seen_BWT`` bool: the tree
    tokens that each candidate sees, with the M new ones at the end.
    """

    representative_BM: Tensor
    node_index_BW: Tensor
    seen_BWT: Tensor


def merge_nodes(seen_BWT: Tensor, nodes_BW: Tensor, open_BW: Tensor) -> MergedNodes:
    """Append the nodes of the open candidates to the tree; candidates at the same node share one token.

    M is the largest number of distinct open nodes in a row of the batch; rows with fewer repeat some of theirs.

    Args:
        seen_BWT: True at the T tree tokens that each candidate has seen so far.
        nodes_BW: int64, from 0; equal numbers in a row are the same node.
        open_BW: False where neither a candidate's hidden state nor those below it are needed any more.
    """
    width = nodes_BW.shape[1]
    closed = torch.iinfo(torch.long).max
    sorted_BW, order_BW = nodes_BW.masked_fill(~open_BW, closed).sort(dim=1, stable=True)
    is_new_BW = sorted_BW.diff(dim=1, prepend=sorted_BW.new_full((len(sorted_BW), 1), -1)) != 0
    rank_BW = is_new_BW.long().cumsum(1) - 1
    count = int((is_new_BW & (sorted_BW != closed)).sum(1).max())
    # The first candidate of each node represents it; the others are written into a last column that is cut off.
    first_BW = torch.zeros_like(nodes_BW, dtype=torch.long)
    first_BW = torch.nn.functional.pad(first_BW, (0, 1)).scatter(1, rank_BW.where(is_new_BW, width), order_BW)
    node_index_BW = torch.empty_like(rank_BW).scatter(1, order_BW, rank_BW)
    own_BWM = node_index_BW[..., None] == torch.arange(count, device=nodes_BW.device)
    return MergedNodes(first_BW[:, :count], node_index_BW, torch.cat([seen_BWT, own_BWM], dim=-1))
