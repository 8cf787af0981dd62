"""What a request may be answered with: a mask over the catalogue's items, pushed up the trie.

A prefix stays open while an item under it is allowed, so a constrained search ends in allowed items alone. Masks are
made once per content: requests with the same constraint share one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.sid.trie import Trie

OpenNodes = tuple[Tensor, ...]
"""Per depth 1 … L: which nodes lead to an allowed item, (n_d,) bool."""


class LeafMasks:
    """The open nodes of each request of a batch.

    Args:
        distinct: the open nodes of each constraint of the batch.
        which_B: which of them holds for each request.
    """

    def __init__(self, distinct: Sequence[OpenNodes], which_B: Tensor) -> None:
        self._open = tuple(torch.stack(level) for level in zip(*distinct, strict=True))
        self._which_B = which_B

    def keep(self, level: int, children_BWK: Tensor) -> Tensor:
        """``children_BWK`` (nodes of depth ``level`` + 1) with -1 where nothing that is allowed lies under it."""
        open_Cn = self._open[level]
        which_B11 = self._which_B.to(children_BWK.device)[:, None, None]
        is_open_BWK = open_Cn[which_B11, children_BWK.clamp(min=0).long()]
        return children_BWK.masked_fill(~is_open_BWK, -1)


class Constraints:
    """Makes the masks of a trie, and keeps the most recent ones by the content of the constraint."""

    def __init__(self, trie: Trie, remember: int = 64) -> None:
        self._trie, self._remember = trie, remember
        self._known: OrderedDict[str, OpenNodes] = OrderedDict()

    def masks(self, allowed: Sequence[Tensor | None]) -> LeafMasks | None:
        """The masks of a batch; None when no request has a constraint.

        Args:
            allowed: per request a bool tensor (N,) over the item rows, or None where every item may come.

        Raises:
            InputError: a mask over another number of items than the catalogue has.
        """
        if all(mask_N is None for mask_N in allowed):
            return None
        places: dict[str, int] = {}
        distinct: list[OpenNodes] = []
        which: list[int] = []
        for mask_N in allowed:
            key = "" if mask_N is None else hashlib.sha256(mask_N.cpu().numpy().tobytes()).hexdigest()
            if key not in places:
                places[key] = len(distinct)
                distinct.append(self._nodes(key, mask_N))
            which.append(places[key])
        return LeafMasks(distinct, torch.tensor(which))

    def _nodes(self, key: str, mask_N: Tensor | None) -> OpenNodes:
        if key not in self._known:
            self._known[key] = open_nodes(self._trie, mask_N)
        self._known.move_to_end(key)
        while len(self._known) > self._remember:
            self._known.popitem(last=False)
        return self._known[key]


def open_nodes(trie: Trie, mask_N: Tensor | None) -> OpenNodes:
    """Which nodes of each depth lead to an item of ``mask_N`` (N,) bool; all of them without a mask.

    Raises:
        InputError: the mask does not reach the catalogue's last item.
    """
    leaves = trie.leaf_items.long()
    if mask_N is None:
        open_n = torch.ones(len(leaves), dtype=torch.bool, device=leaves.device)
    else:
        if len(mask_N) <= int(leaves.max()):
            raise InputError(
                f"a constraint over {len(mask_N)} items came, the catalogue's rows reach {int(leaves.max())}: "
                "it was made for another catalogue"
            )
        open_n = mask_N.to(leaves.device).bool()[leaves]
    levels = [open_n]
    for level in reversed(trie.levels[1:]):
        before = torch.cat([open_n.new_zeros(1, dtype=torch.long), open_n.long().cumsum(0)])
        open_n = before[level.starts[1:].long()] > before[level.starts[:-1].long()]
        levels.append(open_n)
    return tuple(reversed(levels))
