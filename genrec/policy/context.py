"""Event types and time gaps in a prompt, as tokens of their own behind the SID tokens.

    events=history   item₁ view  item₂ cart  …                   which item comes next?
    events=wanted    view item₁  cart item₂  …  purchase         which item will be bought next?
    gaps             … item₂ cart 1-5min  …                      behind each item, the time since the event before it

The token of a gap follows its item, so that nothing in front of an answer tells when it came. Under ``wanted`` each
item of a history follows its own event type, as the answer follows the type that is asked for: one sequence has all of
its targets, and the training on whole sequences sees what a request will show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrec.config import EventContext

GAP_BOUNDS = (10, 60, 300, 1800, 7200, 86_400, 604_800, 2_592_000)
"""Seconds at which the next gap token begins: 10 s, 1, 5 and 30 minutes, 2 hours, a day, a week, 30 days."""

UNKNOWN = -1
"""The number of an event type without a token of its own, and of an unknown time."""


@dataclass(frozen=True)
class ContextTokens:
    """The tokens of event types and gaps, numbered from 0: first all other types, then ``types``, then the gaps.

    The first gap token is that of the first item of a prompt, and of unknown times; gap b ≥ 1 begins at
    ``GAP_BOUNDS[b - 2]`` seconds. A log without times has positions in their place: its gaps are all the shortest.
    """

    events: Literal["none", "history", "wanted"] = "none"
    gaps: bool = False
    types: tuple[str, ...] = ()

    @staticmethod
    def of(settings: EventContext) -> ContextTokens:
        """Those that a config asks for."""
        types = settings.types if settings.events != "none" else ()
        return ContextTokens(settings.events, settings.gaps, types)

    @property
    def count(self) -> int:
        """Number of tokens."""
        return self.event_count + (len(GAP_BOUNDS) + 2 if self.gaps else 0)

    @property
    def per_item(self) -> int:
        """Tokens that each item of a prompt gets."""
        return self.before + int(self.events == "history") + int(self.gaps)

    @property
    def before(self) -> int:
        """How many of them stand before the item, and before the answer."""
        return int(self.events == "wanted")

    def numbers(self, names: Sequence[str | None]) -> Tensor:
        """The number of each event type in ``types``, as int64 of the shape of ``names``; ``UNKNOWN`` for others."""
        known = {name: number for number, name in enumerate(self.types)}
        return torch.tensor([UNKNOWN if name is None else known.get(name, UNKNOWN) for name in names]).long()

    def around(self, item_xIT: Tensor, event_xI: Tensor, time_xI: Tensor, base: int) -> Tensor:
        """Each item's tokens with those of its context, (…, I, before + T + …).

        Args:
            event_xI: numbers of event types; time_xI: times of the events, oldest first; base: of these tokens.
        """
        parts = [item_xIT]
        if self.events != "none":
            parts.insert(1 - self.before, (base + 1 + event_xI)[..., None])
        if self.gaps:
            parts.append((base + self.event_count + gap_numbers(time_xI))[..., None])
        return torch.cat(parts, -1)

    @property
    def event_count(self) -> int:
        """Number of tokens of event types: the first ones."""
        return 0 if self.events == "none" else len(self.types) + 1


NO_TOKENS = ContextTokens()


def gap_numbers(time_xI: Tensor) -> Tensor:
    """The number of the gap token of each event, (…, I): 0 for the first one, and where a time is unknown."""
    gap_xI = time_xI.diff(dim=-1)
    known_xI = (time_xI[..., 1:] != UNKNOWN) & (time_xI[..., :-1] != UNKNOWN)
    number_xI = 1 + torch.bucketize(gap_xI, torch.tensor(GAP_BOUNDS, device=gap_xI.device), right=True)
    return torch.nn.functional.pad(number_xI * known_xI, (1, 0))
