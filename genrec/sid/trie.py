"""The catalogue as a prefix tree of tensors, which tells decoding which codes may follow a prefix.

A node of depth d is a prefix of d codes, numbered 0 … n_d - 1 in lexicographic order, so a beam's state is one
integer. Depth 0 has only the root; the nodes of depth L are the leaves, and ``leaf_items`` holds the item of each.

Because nodes are numbered in order, the children of a node are consecutive. A level is therefore stored as a compressed
sparse row matrix (``starts``, ``codes``), in which a child's number is its index in ``codes``. A level with few
(node, code) pairs also has a dense table (node × code → child), which is faster to read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genrec.data.files import write_atomically
from genrec.errors import InputError

ABOUT = "about"
"""The key of a file's metadata."""

DENSE_ENTRIES = 2**20
"""Most (node, code) pairs of a level with a dense table: 4 MB of int32."""


@dataclass(frozen=True)
class Level:
    """The edges from the nodes of one depth to the next.

    ``starts`` (n_d + 1,) int32: the children of node i are starts[i] … starts[i + 1] - 1; ``codes`` (n_{d+1},) int32:
    the code of each child, ascending under one node; ``size`` K, the codes of the level.
    """

    starts: Tensor
    codes: Tensor
    size: int

    @cached_property
    def _table(self) -> Tensor | None:
        """(n_d, K) int32: the child's number, or -1; None if that is more than ``DENSE_ENTRIES``."""
        nodes = len(self.starts) - 1
        if nodes * self.size > DENSE_ENTRIES:
            return None
        return self._rows(torch.arange(nodes, device=self.starts.device))

    @cached_property
    def _most(self) -> int:
        return int(self.starts.diff().max())

    def children(self, nodes_x: Tensor) -> Tensor:
        """The child of each node (…,) for every code, (…, K) int32; -1 where there is none."""
        return self._rows(nodes_x) if self._table is None else self._table[nodes_x]

    def child(self, nodes_x: Tensor, codes_x: Tensor) -> Tensor:
        """The child of each node (…,) for its code (…,), (…,) int64; -1 where there is none."""
        if self._table is not None:
            return self._table[nodes_x, codes_x].long()
        low_x, high_x = self.starts[nodes_x].long(), self.starts[nodes_x + 1].long()
        end_x = high_x
        for _ in range(self._most.bit_length()):
            middle_x = (low_x + high_x) // 2
            before_x = (middle_x < end_x) & (self.codes[middle_x.clamp(max=len(self.codes) - 1)] < codes_x)
            low_x, high_x = torch.where(before_x, middle_x + 1, low_x), torch.where(before_x, high_x, middle_x)
        found_x = (low_x < end_x) & (self.codes[low_x.clamp(max=len(self.codes) - 1)] == codes_x)
        return torch.where(found_x, low_x, -1)

    def _rows(self, nodes_x: Tensor) -> Tensor:
        edges_xM = self.starts[nodes_x][..., None] + torch.arange(self._most, dtype=torch.int32, device=nodes_x.device)
        real_xM = edges_xM < self.starts[nodes_x + 1][..., None]
        codes_xM = self.codes[edges_xM.clamp(max=len(self.codes) - 1).long()].long()
        table_xK = torch.full((*nodes_x.shape, self.size + 1), -1, dtype=torch.int32, device=nodes_x.device)
        return table_xK.scatter_(-1, codes_xM.masked_fill(~real_xM, self.size), edges_xM)[..., :-1]


@dataclass(frozen=True)
class Trie:
    """One ``Level`` per code of a SID, and the item row of each leaf, (n_L,) int32."""

    levels: tuple[Level, ...]
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
        count, levels = 1, []
        for level, size in enumerate(level_sizes):
            present, nodes_N = torch.unique(nodes_N * size + codes_NL[:, level], return_inverse=True)
            starts = torch.searchsorted(present, torch.arange(count + 1) * size)
            levels.append(Level(starts.int(), (present % size).int(), size))
            count = len(present)
        if count < len(codes_NL):
            raise InputError(
                f"{len(codes_NL) - count} of {len(codes_NL)} items share a semantic ID with another item; "
                "the trie needs one SID per item: assign them with sid.collisions=resolve or suffix"
            )
        leaf_items = torch.empty(count, dtype=torch.int32)
        leaf_items[nodes_N] = torch.arange(len(codes_NL), dtype=torch.int32)
        return cls(tuple(levels), leaf_items)

    @property
    def depth(self) -> int:
        """L, the number of codes in a SID."""
        return len(self.levels)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """K per level."""
        return tuple(level.size for level in self.levels)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All stored tensors, by name; dense tables are derived from them on first use."""
        edges = {f"{name}_{d}": getattr(level, name) for d, level in enumerate(self.levels) for name in _EDGES}
        return {**edges, "leaf_items": self.leaf_items}

    def to(self, device: torch.device | str) -> Trie:
        """The same trie on another device."""
        moved = (Level(level.starts.to(device), level.codes.to(device), level.size) for level in self.levels)
        return Trie(tuple(moved), self.leaf_items.to(device))

    def without(self, items: Sequence[int]) -> Trie:
        """The trie without these items (rows): their leaves are removed, and the prefixes of no other item.

        Raises:
            InputError: no item is left.
        """
        if not items:
            return self
        keep_n = ~torch.isin(self.leaf_items, torch.tensor(items, dtype=torch.int32))
        if not keep_n.any():
            raise InputError(f"got a removal of all {len(keep_n)} items; wanted at least one to stay")
        levels, leaf_items = [], self.leaf_items[keep_n]
        for level in reversed(self.levels):
            kept_before = torch.cat([torch.zeros(1, dtype=torch.long), keep_n.long().cumsum(0)])
            count_n = kept_before[level.starts[1:].long()] - kept_before[level.starts[:-1].long()]
            codes, keep_n = level.codes[keep_n], count_n > 0
            starts = torch.cat([torch.zeros(1, dtype=torch.long), count_n[keep_n].cumsum(0)])
            levels.append(Level(starts.int(), codes, level.size))
        return Trie(tuple(reversed(levels)), leaf_items)

    def step(self, level: int, nodes: Tensor) -> Tensor:
        """Children of ``nodes`` (…,) of depth ``level``: node numbers of depth level + 1, -1 where none, (…, K)."""
        return self.levels[level].children(nodes)

    def items_at(self, leaves_x: Tensor) -> Tensor:
        """The item of each leaf (…,), (…,) int64."""
        return self.leaf_items[leaves_x].long()

    def path(self, codes_xL: Tensor) -> Tensor:
        """For SIDs (…, L), the root and the node after each code, (…, L + 1); -1 after a prefix that no item has."""
        node = torch.zeros(codes_xL.shape[:-1], dtype=torch.long, device=codes_xL.device)
        path = [node]
        for depth, level in enumerate(self.levels):
            node = torch.where(node < 0, node, level.child(node.clamp(min=0), codes_xL[..., depth]))
            path.append(node)
        return torch.stack(path, dim=-1)

    def leaves_under(self) -> tuple[Tensor, ...]:
        """Per depth 1 … L the number of items below each node, (n_d,) int64; computed once."""
        return self._leaves

    @cached_property
    def _leaves(self) -> tuple[Tensor, ...]:
        counts = [torch.ones(len(self.leaf_items), dtype=torch.long, device=self.leaf_items.device)]
        for level in reversed(self.levels[1:]):
            before = torch.cat([counts[-1].new_zeros(1), counts[-1].cumsum(0)])
            counts.append(before[level.starts[1:].long()] - before[level.starts[:-1].long()])
        return tuple(reversed(counts))

    def ancestors(self) -> tuple[Tensor, ...]:
        """Per depth 1 … L the node that each leaf lies under, (n_L,) int64; computed once."""
        return self._ancestors

    @cached_property
    def _ancestors(self) -> tuple[Tensor, ...]:
        return tuple(torch.arange(len(n), device=n.device).repeat_interleave(n) for n in self._leaves)

    @cached_property
    def _single_leaf(self) -> tuple[Tensor, ...]:
        return tuple(count_n == 1 for count_n in self._leaves)

    def has_single_leaf(self, depth: int) -> Tensor:
        """Whether each node of ``depth`` 1 … L has one item below it, (n_d,) bool: then its further codes are known."""
        return self._single_leaf[depth - 1]

    def walk(self, codes_xL: Tensor) -> Tensor:
        """For SIDs (…, L), the node before each code, (…, L); -1 after a prefix that no item has."""
        return self.path(codes_xL)[..., :-1]

    def find(self, codes_xL: Tensor) -> Tensor:
        """The item of each SID (…, L), (…,) int64; -1 if no item has it."""
        leaf_x = self.path(codes_xL)[..., -1]
        return torch.where(leaf_x < 0, -1, self.items_at(leaf_x.clamp(min=0)))

    def save(self, file: Path, about: Mapping[str, str]) -> None:
        """Write all tensors as safetensors, with ``about`` and the level sizes as metadata, atomically.

        The metadata are one text: safetensors writes several in a random order, and equal tries as other bytes.
        """
        text = json.dumps({**about, "level_sizes": self.level_sizes}, sort_keys=True)
        write_atomically(file, lambda path: save_file(self.tensors, path, metadata={ABOUT: text}))

    @classmethod
    def load(cls, file: Path, about: Mapping[str, str]) -> Trie | None:
        """The trie that ``save`` wrote with the same ``about``; None if the file is missing, unreadable or another.

        Tensors are memory-mapped, so that processes of one machine share them.
        """
        try:
            with safe_open(file, framework="pt") as stored:
                found = json.loads((stored.metadata() or {}).get(ABOUT, "{}"))
                sizes = found.pop("level_sizes", ())
                if found != about:
                    return None
                tensor = stored.get_tensor
                levels = (Level(tensor(f"starts_{d}"), tensor(f"codes_{d}"), size) for d, size in enumerate(sizes))
                return cls(tuple(levels), tensor("leaf_items"))
        except (OSError, ValueError, SafetensorError):
            return None


@dataclass(frozen=True)
class CompleteTrie:
    """The trie of all K_1 · … · K_L semantic IDs, whether or not an item has them; leaf i stands for item i."""

    level_sizes: tuple[int, ...]

    @property
    def depth(self) -> int:
        """L, the number of codes in a SID."""
        return len(self.level_sizes)

    def step(self, level: int, nodes: Tensor) -> Tensor:
        """Children of ``nodes`` (…,) of depth ``level``, (…, K) int64."""
        size = self.level_sizes[level]
        return nodes[..., None] * size + torch.arange(size, device=nodes.device)

    def items_at(self, leaves_x: Tensor) -> Tensor:
        """The leaves themselves."""
        return leaves_x


_EDGES = ("starts", "codes")


def _check_range(codes_NL: Tensor, level_sizes: Sequence[int]) -> None:
    if codes_NL.ndim != 2 or codes_NL.shape[1] != len(level_sizes) or len(codes_NL) == 0:
        raise InputError(
            f"got SIDs of shape {tuple(codes_NL.shape)}, wanted (items, {len(level_sizes)}) with at least one item"
        )
    low, high = codes_NL.min(dim=0).values, codes_NL.max(dim=0).values
    for level, size in enumerate(level_sizes):
        if low[level] < 0 or high[level] >= size:
            raise InputError(
                f"got codes {int(low[level])}…{int(high[level])} at level {level + 1}, wanted 0…{size - 1}"
            )
