"""Semantic IDs as text: the names of the SID tokens, and what stands around a SID in a conversation.

    letters    [[<a_112><b_11><c_5>]]                                      markers are ordinary text
    numbered   <|sid_start|><|sid_112|><|sid_267|><|sid_517|><|sid_end|>   markers are two tokens more

``numbered`` counts through the levels: with 256 codes per level, level 2 begins at 256. Only text has markers. Prompts
and the search over the trie do without: there a SID begins where a level-1 code stands, and a token that is always the
same would say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

from genrec.types import Codes

SidStyle = Literal["letters", "numbered"]

MARKERS: dict[SidStyle, tuple[str, str]] = {"letters": ("[[", "]]"), "numbered": ("<|sid_start|>", "<|sid_end|>")}
"""What stands before and after a SID in text."""

_MARKER = re.compile(r"\[(?=\[)|\](?=\])|<(?=\|sid_(?:start|end)\|>)")
"""The first character of every marker."""

PATTERNS: dict[SidStyle, str] = {"letters": r"<([a-z])_(\d{1,9})>", "numbered": r"<(\|)sid_(\d{1,9})\|>"}


def without_markers(text: str) -> str:
    """``text`` with every marker, of any style, broken by a space, so that it is read as text again.

    >>> without_markers("a [[[b]]] of <|sid_start|>")
    'a [ [ [b] ] ] of < |sid_start|>'
    """
    return _MARKER.sub(lambda found: f"{found[0]} ", text)


def sid_names(level_sizes: Sequence[int], style: SidStyle = "letters") -> list[str]:
    """Names of the codes in vocabulary order: ``<a_0>`` … ``<a_255>``, ``<b_0>`` …, or from ``<|sid_0|>`` on."""
    if style == "numbered":
        return [f"<|sid_{number}|>" for number in range(sum(level_sizes))]
    return [f"<{chr(ord('a') + level)}_{code}>" for level, size in enumerate(level_sizes) for code in range(size)]


def write_sid(codes: Sequence[int], level_sizes: Sequence[int], style: SidStyle = "letters") -> str:
    """The names of a SID's codes, without markers.

    >>> write_sid((112, 11), (256, 256)), write_sid((112, 11), (256, 256), "numbered")
    ('<a_112><b_11>', '<|sid_112|><|sid_267|>')
    """
    if style == "letters":
        return "".join(f"<{chr(ord('a') + level)}_{code}>" for level, code in enumerate(codes))
    firsts = accumulate(level_sizes, initial=0)
    return "".join(f"<|sid_{first + code}|>" for first, code in zip(firsts, codes, strict=False))


def read_sid(text: str, level_sizes: Sequence[int], style: SidStyle = "letters") -> Codes | None:
    """The codes that ``write_sid`` wrote as ``text``; None if these are no codes of all levels in their order."""
    numbers = [int(found[2]) for found in re.finditer(PATTERNS[style], text)]
    firsts = accumulate(level_sizes, initial=0) if style == "numbered" else [0] * len(level_sizes)
    codes = tuple(number - first for number, first in zip(numbers, firsts, strict=False))
    in_range = len(codes) == len(level_sizes) and all(
        0 <= code < size for code, size in zip(codes, level_sizes, strict=True)
    )
    return codes if in_range and write_sid(codes, level_sizes, style) == text else None
