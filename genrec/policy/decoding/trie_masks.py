"""Masks that keep a search within the items that a request allows, for every level of the trie.

A node is open while an allowed item lies under it, so a constrained search ends in allowed items only. Requests with
equal item masks share one set of node masks.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.sid.trie import Trie

OpenNodes = tuple[Tensor, ...]
"""Per depth d = 1 … L a bool tensor (n_d,): True at nodes with an allowed item under them."""


class LeafMasks:
    """The open nodes of each request of a batch.

    Args:
        distinct: the open nodes of each distinct mask of the batch.
        which_B: the index of each request's mask in ``distinct``.
    """

    def __init__(self, distinct: Sequence[OpenNodes], which_B: Tensor) -> None:
        self._open = tuple(torch.stack(level) for level in zip(*distinct, strict=True))
        self._which_B = which_B

    def keep(self, level: int, children_BWK: Tensor) -> Tensor:
        """``children_BWK`` (nodes of depth ``level`` + 1) with -1 where no allowed item lies under the node."""
        open_Cn = self._open[level]
        which_B11 = self._which_B.to(children_BWK.device)[:, None, None]
        is_open_BWK = open_Cn[which_B11, children_BWK.clamp(min=0).long()]
        return children_BWK.masked_fill(~is_open_BWK, -1)


class TrieMaskCache:
    """Makes the node masks of a trie, and keeps the ``remember`` most recent ones by the content of the item mask.

    Safe to share among threads.
    """

    def __init__(self, trie: Trie, remember: int = 64) -> None:
        self._trie, self._remember = trie, remember
        self._known: OrderedDict[str, OpenNodes] = OrderedDict()
        self._lock = threading.Lock()

    def masks(self, allowed: Sequence[Tensor | None]) -> LeafMasks | None:
        """The node masks of a batch; None when no request has a constraint.

        Args:
            allowed: per request a bool tensor (N,) by item row, True at allowed items; None where all are allowed.

        Raises:
            InputError: a mask over another number of items than the catalogue has.
        """
        if all(mask_N is None for mask_N in allowed):
            return None
        index_of: dict[str, int] = {}
        distinct: list[OpenNodes] = []
        which: list[int] = []
        for mask_N in allowed:
            key = "" if mask_N is None else hashlib.sha256(mask_N.cpu().numpy().tobytes()).hexdigest()
            if key not in index_of:
                index_of[key] = len(distinct)
                distinct.append(self._nodes(key, mask_N))
            which.append(index_of[key])
        return LeafMasks(distinct, torch.tensor(which))

    def _nodes(self, key: str, mask_N: Tensor | None) -> OpenNodes:
        with self._lock:
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return known
        made = open_nodes(self._trie, mask_N)  # outside the lock: others need not wait for it
        with self._lock:
            self._known[key] = made
            while len(self._known) > self._remember:
                self._known.popitem(last=False)
        return made


def open_nodes(trie: Trie, mask_N: Tensor | None) -> OpenNodes:
    """Which nodes of each depth have an item of ``mask_N`` (N,) bool under them; all of them without a mask.

    Raises:
        InputError: the mask does not reach the catalogue's last item.
    """
    leaves = trie.leaf_items.long()
    if mask_N is None:
        open_n = torch.ones(len(leaves), dtype=torch.bool, device=leaves.device)
    else:
        if len(mask_N) <= int(leaves.max()):
            raise InputError(
                f"got a constraint over {len(mask_N)} items, but the catalogue's rows reach {int(leaves.max())}: "
                "it was made for another catalogue; make it for this one"
            )
        open_n = mask_N.to(leaves.device).bool()[leaves]
    levels = [open_n]
    for level in reversed(trie.levels[1:]):
        before = torch.cat([open_n.new_zeros(1, dtype=torch.long), open_n.long().cumsum(0)])
        open_n = before[level.starts[1:].long()] > before[level.starts[:-1].long()]
        levels.append(open_n)
    return tuple(reversed(levels))
