"""The fields of templates about a user's items: what was chosen, what came next, and what both say about taste."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from genrec.config import Instruction
from genrec.learning.tasks.item_fields import ItemFields
from genrec.policy.chat.templates import Item, Language, Parts, fill, join

SHORTEST_WORD = 4
"""Words of a title with fewer letters ("for", "and") are no reason for a recommendation."""


class HistoryFields:
    """Fills templates about histories (items by row, oldest first) with the texts of ``items``."""

    def __init__(self, items: ItemFields, settings: Instruction) -> None:
        self._items, self._settings = items, settings

    def has_about_history(self, history: Sequence[int]) -> frozenset[str]:
        """Names of the fields that a history has."""
        titles = any(self._items.titles[item] for item in history)
        has = {
            "titled": titles,
            "titles": titles,
            "interests": any(self._items.paths[item] for item in history[-self._settings.window :]),
            "categories": any(self._items.paths[item] for item in history),
            "frequent": any(self._items.paths[item] for item in history),
            "taste": any(self._items.paths[item] for item in history),
            "brands": any(self._items.brands[item] for item in history),
        }
        return frozenset({"history", "mixed", *(name for name, found in has.items() if found)})

    def has_about_next(self, target: int) -> frozenset[str]:
        """Names of the fields that a next item has."""
        has = {
            "target_title": self._items.titles[target],
            "target_description": self._items.descriptions[target],
            "category": self._items.paths[target],
        }
        return frozenset({"target", "reason", *(name for name, found in has.items() if found)})

    def about_history(self, history: Sequence[int], language: Language, rng: np.random.Generator) -> dict[str, Parts]:
        """The items, and what they are about; what is unknown is empty.

        ``frequent`` and ``categories`` (counted) are of the whole history, ``interests`` of its last
        ``learning.instruction.window`` items.
        """
        items, phrases = self._items, language.phrases
        separator = phrases["separator"]
        counted = [{"name": (name,), "count": (str(count),)} for name, count in self.frequent(history)]
        return {
            "history": join([(Item(item),) for item in history], separator),
            "titled": join([items.titled(item, language) for item in history], separator),
            "titles": (self.titles(history, language),),
            "mixed": join([items.mixed(item, language, rng) for item in history], separator),
            "frequent": (self._names(history, language),),
            "interests": (self._names(history[-self._settings.window :], language),),
            "categories": join([fill(phrases["counted"], names) for names in counted], separator),
            "brands": (self._brands(history, language),),
            "taste": self._taste(history, language),
        }

    def about_next(self, history: Sequence[int], target: int, language: Language) -> dict[str, Parts]:
        """The next item, and the ``reason`` for it that its attributes give."""
        return {
            "target": (Item(target),),
            "target_title": (self._items.titles[target],),
            "target_description": (self._items.descriptions[target],),
            "category": (self._items.category(target),),
            "reason": self._reason(history, target, language),
        }

    def frequent(self, history: Sequence[int]) -> list[tuple[str, int]]:
        """The most frequent categories of a history with their counts; of equally frequent ones the latest first."""
        return self._most([self._items.category(item) for item in history])

    def titles(self, history: Sequence[int], language: Language) -> str:
        """The titles of the items that have one."""
        titles = (self._items.titles[item] for item in history)
        return language.phrases["separator"].join(title for title in titles if title)

    def _names(self, history: Sequence[int], language: Language) -> str:
        return language.phrases["separator"].join(name for name, _ in self.frequent(history))

    def _brands(self, history: Sequence[int], language: Language) -> str:
        most = self._most([self._items.brands[item] for item in history])
        return language.phrases["separator"].join(name for name, _ in most)

    def _taste(self, history: Sequence[int], language: Language) -> Parts:
        """Sentences on the categories and brands of the history, and on the categories of its last items."""
        said = {
            "categories": self._names(history, language),
            "brands": self._brands(history, language),
            "interests": self._names(history[-self._settings.window :], language),
        }
        known = (("taste_categories", "categories"), ("taste_brands", "brands"), ("taste_lately", "interests"))
        sentences = [fill(language.phrases[phrase], {name: (said[name],)}) for phrase, name in known if said[name]]
        return join(sentences, language.phrases["sentences"])

    def _reason(self, history: Sequence[int], target: int, language: Language) -> Parts:
        """Sentences on the target's category, brand and title words, each with the latest item that shares it."""
        items = self._items
        category, brand, words = items.category(target), items.brands[target], _words(items.titles[target])
        latest = list(dict.fromkeys(reversed(history)))
        sentences: list[Parts] = []
        for phrase, field, text, others in (
            ("same_category", "category", category, [i for i in latest if category and items.category(i) == category]),
            ("same_brand", "brand", brand, [i for i in latest if brand and items.brands[i] == brand]),
        ):
            if others:
                values = {field: (text,), "other": items.titled(others[0], language)}
                sentences.append(fill(language.phrases[phrase], values))
        alike = max(latest, key=lambda item: len(words & _words(items.titles[item])), default=None)
        common = sorted(words & _words(items.titles[alike])) if alike is not None else []
        if common:
            values: Mapping[str, Parts] = {
                "words": (language.phrases["separator"].join(common),),
                "other": items.titled(alike, language) if alike is not None else (),
            }
            sentences.append(fill(language.phrases["same_words"], values))
        return join(sentences or [(language.phrases["nothing_shared"],)], language.phrases["sentences"])

    def _most(self, names: Sequence[str]) -> list[tuple[str, int]]:
        counts = Counter(name for name in reversed(names) if name)
        return counts.most_common(self._settings.interests)


def _words(title: str) -> frozenset[str]:
    return frozenset(word for word in title.lower().split() if len(word) >= SHORTEST_WORD and word.isalpha())
