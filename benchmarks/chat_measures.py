"""Measures of a policy's answers, compared with those of the templates; each gives values to average, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from genrec.policy.chat.generate import GeneratedReply
from genrec.policy.chat.templates import Item, Parts

MEASURES = {
    "ended": "answers that ended by themselves",
    "item_where_wanted": "answers that hold an item exactly where the template's do",
    "item_as_wanted": "answers whose first item is the template's",
    "agreement": "pairs of wordings of one request whose answers begin with the same item",
    "kept_after_like": "answers after a like that stay in the category of the item before",
    "left_after_dislike": "answers after a dislike that leave it",
    "in_category": "items of lists that have the category that was asked for",
    "distinct": "items of lists that no earlier item of the list repeats",
    "right_titles": "items of lists that are followed by their title",
    "existing": "semantic IDs of lists that exist, written without the trie's constraint",
}
"""By name: what is counted, as a share."""

Category = Callable[[int], str]


def items_of(parts: Sequence[str | Item]) -> list[int]:
    """The items (rows) of a message, in order."""
    return [part.row for part in parts if isinstance(part, Item)]


def answer_measures(written: GeneratedReply, wanted: Parts) -> dict[str, float]:
    """Whether an answer ended, holds an item where one is wanted and, there, the wanted one first."""
    items, wanted_items = items_of(written.parts), items_of(wanted)
    found = {"ended": written.ended, "item_where_wanted": bool(items) == bool(wanted_items)}
    if wanted_items:
        found["item_as_wanted"] = items[:1] == wanted_items[:1]
    return {name: float(value) for name, value in found.items()}


def agreement(first_items: Sequence[int | None]) -> list[float]:
    """For each pair of wordings whether both answers begin with the same item; one without an item never agrees."""
    return [float(one is not None and one == other) for one, other in combinations(first_items, 2)]


def feedback_measures(
    answers: tuple[Sequence[str | Item], Sequence[str | Item]], wanted: tuple[Parts, Parts], category: Category
) -> dict[str, float]:
    """Whether the second of two answers follows the user's like or dislike of the first.

    The user liked it where the template's answers share a category. Nothing where an answer has no item.
    """
    before, after = (items_of(parts)[:1] for parts in answers)
    if not before or not after:
        return {}
    liked = category(items_of(wanted[0])[0]) == category(items_of(wanted[1])[0])
    stays = category(before[0]) == category(after[0])
    return {"kept_after_like": float(stays)} if liked else {"left_after_dislike": float(not stays)}


def list_measures(
    parts: Sequence[str | Item], wanted: Parts, category: Category, title: Callable[[int], str]
) -> dict[str, list[float]]:
    """Per item of a list: its category is the wanted one, it is new in the list, and its title follows.

    Args:
        title: how the template writes an item's title after its semantic ID.
    """
    asked, items = category(items_of(wanted)[0]), items_of(parts)
    after = [later for part, later in zip(parts, [*parts[1:], ""], strict=True) if isinstance(part, Item)]
    return {
        "in_category": [float(category(item) == asked) for item in items],
        "distinct": [float(item not in items[:at]) for at, item in enumerate(items)],
        "right_titles": [
            float(isinstance(text, str) and text.startswith(title(item)))
            for item, text in zip(items, after, strict=True)
        ],
    }


def existing(written: GeneratedReply) -> list[float]:
    """Per semantic ID of an answer whether it exists."""
    return [1.0] * len(items_of(written.parts)) + [0.0] * written.missing
