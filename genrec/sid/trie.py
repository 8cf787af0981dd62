"""The catalogue as a prefix tree of tensors: decoding asks it which codes may follow, and never leaves it.

A node of depth d is a prefix of d codes, numbered 0 … n_d - 1 in lexicographic order, so a beam's state is one
integer. ``children[d]`` maps (node, code) to the child's number at depth d + 1, or -1. Depth 0 has the root alone;
the nodes of depth L are the leaves, and ``leaf_items`` names the item at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.errors import InputError


@dataclass(frozen=True)
class Trie:
    """Child tables, one (n_d, K_d) int32 tensor per level, and the item row of each leaf, (n_L,) int64."""

    children: tuple[Tensor, ...]
    leaf_items: Tensor

    @classmethod
    def from_codes(cls, codes_NL: Tensor, level_sizes: Sequence[int]) -> Trie:
        """Build the trie of N items.

        Args:
            codes_NL: integer codes; row i is the SID of item i. Every row must be distinct.
            level_sizes: K per level.

        Raises:
            InputError: a code outside its level, or two items with one SID.
        """
        codes_NL = codes_NL.long()
        _check_range(codes_NL, level_sizes)
        nodes_N = torch.zeros(len(codes_NL), dtype=torch.long)
        count, tables = 1, []
        for level, size in enumerate(level_sizes):
            key_N = nodes_N * size + codes_NL[:, level]
            present, nodes_N = torch.unique(key_N, return_inverse=True)
            table = torch.full((count * size,), -1, dtype=torch.int32)
            table[present] = torch.arange(len(present), dtype=torch.int32)
            tables.append(table.view(count, size))
            count = len(present)
        if count < len(codes_NL):
            raise InputError(
                f"{len(codes_NL) - count} of {len(codes_NL)} items share a semantic ID with another item; "
                "the trie needs one SID per item: assign them with sid.collisions=resolve or suffix"
            )
        leaf_items = torch.empty(count, dtype=torch.long)
        leaf_items[nodes_N] = torch.arange(len(codes_NL))
        return cls(tuple(tables), leaf_items)

    @property
    def depth(self) -> int:
        """L, the number of codes in a SID."""
        return len(self.children)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """K per level."""
        return tuple(table.shape[1] for table in self.children)

    def to(self, device: torch.device | str) -> Trie:
        """The same trie on another device."""
        return Trie(tuple(table.to(device) for table in self.children), self.leaf_items.to(device))

    def without(self, items: Sequence[int]) -> Trie:
        """The trie in which these items (rows) are not found: their leaves go, and the prefixes that held no other.

        Raises:
            InputError: no item is left.
        """
        if not items:
            return self
        keep_n = ~torch.isin(self.leaf_items, torch.tensor(items))
        if not keep_n.any():
            raise InputError(f"all {len(keep_n)} items are removed; at least one must stay")
        tables, leaf_items = [], self.leaf_items[keep_n]
        for table in reversed(self.children):
            number_n = torch.where(keep_n, keep_n.long().cumsum(0) - 1, -1).int()
            pruned = torch.where(table < 0, table, number_n[table.clamp(min=0).long()])
            keep_n = (pruned >= 0).any(dim=1)
            tables.append(pruned[keep_n])
        return Trie(tuple(reversed(tables)), leaf_items)

    def step(self, level: int, nodes: Tensor) -> Tensor:
        """Children of ``nodes`` (…,) of depth ``level``: node numbers of depth level + 1, -1 where none, (…, K)."""
        return self.children[level][nodes]

    def walk(self, codes_xL: Tensor) -> Tensor:
        """The node before each level of each SID, (…, L); -1 from where the SID leaves the trie."""
        node = torch.zeros(codes_xL.shape[:-1], dtype=torch.long, device=codes_xL.device)
        path: list[Tensor] = []
        for level, table in enumerate(self.children):
            path.append(node)
            child = table[node.clamp(min=0), codes_xL[..., level]].long()
            node = torch.where(node < 0, node, child)
        return torch.stack(path, dim=-1)


def _check_range(codes_NL: Tensor, level_sizes: Sequence[int]) -> None:
    if codes_NL.ndim != 2 or codes_NL.shape[1] != len(level_sizes) or len(codes_NL) == 0:
        raise InputError(
            f"SIDs have shape {tuple(codes_NL.shape)}; expected (items, {len(level_sizes)}) with at least one item"
        )
    low, high = codes_NL.min(dim=0).values, codes_NL.max(dim=0).values
    for level, size in enumerate(level_sizes):
        if low[level] < 0 or high[level] >= size:
            raise InputError(
                f"level {level + 1} has codes {int(low[level])}…{int(high[level])}; they must lie in 0…{size - 1}"
            )
