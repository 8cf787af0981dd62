"""A judge's reply in words of a model, read strictly: whole scores of 1 to 5 for every letter, or it is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from genrec.evaluation.judge.questions import CRITERIA, HIGHEST, LOWEST

LONGEST_REPLY = 50_000
"""Characters of a reply that are read, its last ones."""

Scores = dict[str, dict[str, int]]
"""By letter and criterion."""


def read_reply(text: str, letters: Sequence[str]) -> Scores:
    """The scores in ``text``, which may have words, a fence or thoughts around its JSON.

    Thoughts end with ``</think>``: where the server's template begins them, a reply has no ``<think>``. Of several
    judgements, as of a draft and what became of it, the last one counts.

    Raises:
        ValueError: with the reason, where it holds no whole judgement.
    """
    reason = "no JSON object"
    for found in reversed(_objects(text[-LONGEST_REPLY:].rpartition("</think>")[2].partition("<think>")[0])):
        try:
            return _scores(found, letters)
        except ValueError as error:
            reason = str(error)
    raise ValueError(reason)


def _objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in the text, in their order."""
    decoder, at, found = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse), 0, list[dict[str, Any]]()
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
            found.append(value)
        except RecursionError:
            return found
        except ValueError:
            at += 1
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no score")


def _scores(found: dict[str, Any], letters: Sequence[str]) -> Scores:
    if set(found) != set(letters):
        raise ValueError(f"got scores of {sorted(found)[:30]}, wanted those of {list(letters)}")
    return {letter: _of_one(letter, found[letter]) for letter in letters}


def _of_one(letter: str, value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError(f"{letter} has no criteria")
    given = cast("dict[str, Any]", value)
    if missing := [name for name in CRITERIA if name not in given]:
        raise ValueError(f"{letter} lacks {', '.join(missing)}")
    return {name: _whole(f"{letter}.{name}", given[name]) for name in CRITERIA}


def _whole(place: str, value: object) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or cast("float", value) not in range(LOWEST, HIGHEST + 1):
        raise ValueError(f"{place} is {str(value)[:40]!r}, wanted a whole number from {LOWEST} to {HIGHEST}")
    return int(cast("float", value))
