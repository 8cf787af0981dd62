"""Lists of items of one category: the answers to requests that name a kind of item and no history."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import numpy as np

from genrec.learning.tasks.item_fields import ItemFields
from genrec.policy.chat.templates import Item, Language, Parts, join


class CategoryLists:
    """Draws lists from the items that have a title and a category.

    Args:
        counts_N: how often each item was chosen, (N,): items are drawn in proportion to 1 + count.
        absent: items that are in no list.
    """

    def __init__(self, items: ItemFields, counts_N: np.ndarray, absent: Collection[int] = ()) -> None:
        self._items, self._counts_N = items, counts_N
        self._members: dict[str, list[int]] = defaultdict(list)
        for item in range(len(items)):
            if items.titles[item] and items.category(item) and item not in absent:
                self._members[items.category(item)].append(item)

    def has(self, item: int, count: int) -> bool:
        """Whether there is a list of ``count`` items that begins with ``item``."""
        members = self._members.get(self._items.category(item), [])
        return len(members) >= count and item in members

    def draw(self, first: int, count: int, rng: np.random.Generator) -> list[int]:
        """``count`` distinct items of the category of ``first``, which comes first."""
        others = np.array([item for item in self._members[self._items.category(first)] if item != first])
        chance = 1.0 + self._counts_N[others]
        drawn = rng.choice(others, size=count - 1, replace=False, p=chance / chance.sum())
        return [first, *drawn.tolist()]

    def fields(self, drawn: list[int], language: Language) -> dict[str, Parts]:
        """``list``: the semantic IDs; ``titled_list``: each followed by its title."""
        separator = language.phrases["list_separator"]
        return {
            "list": join([(Item(item),) for item in drawn], separator),
            "titled_list": join([self._items.titled(item, language) for item in drawn], separator),
        }
