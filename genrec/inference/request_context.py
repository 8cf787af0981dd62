"""What a request says of its history besides the items, checked."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from numbers import Integral
from typing import cast

from genrec.errors import InputError
from genrec.types import HistoryContext

FARTHEST = 2**61
"""The largest time: differences of two fit into 64 bits."""


def request_context(
    items: int, usual: str | None, event: str | None, events: Sequence[str | None], times: Sequence[int]
) -> HistoryContext:
    """The context of a history of ``items`` items.

    Args:
        usual: the type of event that is asked for where ``event`` is None, and that of the items without ``events``.
        events, times: of the items, oldest first; or empty.

    Raises:
        InputError: events or times that are not one for each item, or of another type.
    """
    for name, given in (("history_events", events), ("history_times", times)):
        if isinstance(given, str) or not isinstance(cast("object", given), Sequence) or len(given) not in (0, items):
            raise InputError(
                f"{name}: got {reprlib.repr(given)}; wanted a list with one entry per item, {items} in all"
            )
    named = tuple(_event_type(one, "history_events") for one in events) or (usual,) * items
    wanted = usual if event is None else _event_type(event, "event")
    seconds = tuple(whole_number(time, "history_times") for time in times)
    if far := [time for time in seconds if abs(time) > FARTHEST]:
        raise InputError(f"history_times: got {reprlib.repr(far[0])}; wanted epoch seconds, of at most {FARTHEST:,}")
    return HistoryContext(named, seconds, wanted)


def whole_number(value: object, name: str) -> int:
    """``value`` as an int; InputError where it is no whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name}: got {reprlib.repr(value)}; wanted a whole number")
    return int(value)


def _event_type(value: object, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name}: got {reprlib.repr(value)}; wanted the name of an event type, or None")
    return value
