"""Masks and positions for a prompt with a tree of SID tokens behind it, all in one sequence.

A query's candidates share their prompt: their tokens are appended level by level as nodes, and a node attends to the
prompt, to its own ancestors and to itself. Boolean masks are (B, 1, queries, keys), True where attention is allowed.
"""

from __future__ import annotations

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


def node_mask(mask_BP: Tensor, ancestors_BWT: Tensor) -> Tensor:
    """Attention of W nodes to the prompt and to the T tree tokens named by ``ancestors_BWT``; (B, 1, W, P + T)."""
    width = ancestors_BWT.shape[1]
    return torch.cat([mask_BP[:, None, :].expand(-1, width, -1), ancestors_BWT], dim=-1)[:, None]


def add_self(ancestors_BWT: Tensor) -> Tensor:
    """The ancestors of W new nodes with the nodes themselves, as W more columns; (B, W, T + W)."""
    batch, width, _ = ancestors_BWT.shape
    own_WW = torch.eye(width, dtype=torch.bool, device=ancestors_BWT.device)
    return torch.cat([ancestors_BWT, own_WW.expand(batch, -1, -1)], dim=-1)
