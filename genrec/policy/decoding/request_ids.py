"""Item ids as requests name them."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from numbers import Integral

from genrec.errors import InputError

MAX_IDS = 1_000_000
"""The most ids that a request may name: an endless iterator is refused, not waited for."""


def item_ids(ids: object, field: str) -> tuple[str, ...]:
    """``ids`` as texts, in their order. A list, tuple, generator, array or series will do; whole numbers become texts.

    Args:
        field: what the request calls them, for the message.

    Raises:
        InputError: one text, a set or a mapping in place of a sequence; an id that is neither text nor a whole number;
            or more than ``MAX_IDS`` ids.
    """
    if isinstance(ids, str | bytes | Mapping | Set) or not isinstance(ids, Iterable):
        raise InputError(
            f"{field}: got {type(ids).__name__} {reprlib.repr(ids)}; wanted a list of item ids, such as ['a', 'b']"
        )
    try:
        found = list(islice(ids, MAX_IDS + 1))
    except TypeError as error:  # of an array without dimensions
        raise InputError(f"{field}: got {reprlib.repr(ids)}; wanted a list of item ids ({error})") from None
    if len(found) > MAX_IDS:
        raise InputError(f"{field}: got more than {MAX_IDS:,} item ids; wanted fewer")
    return tuple(_item_id(value, field) for value in found)


def _item_id(value: object, field: str) -> str:
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, bool) and isinstance(value, Integral):
        return str(int(value))
    raise InputError(
        f"{field}: got the item id {reprlib.repr(value)} of type {type(value).__name__}; wanted text, as in the item "
        "table"
    )
