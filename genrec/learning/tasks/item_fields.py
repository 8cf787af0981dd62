"""The fields of task templates: texts about items and histories, and which of them a row has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from genrec.config import Instruction
from genrec.policy.chat.templates import Item, Language, Parts, fill, join

SHORTEST_WORD = 4
"""Words of a title with fewer letters ("for", "and") are no reason for a recommendation."""
UNSPACED = 20
"""Text with more characters per word than this is written without spaces, and is cut by characters."""


class ItemFields:
    """The texts of N items, and the fields that templates fill with them."""

    def __init__(self, items: pa.Table, settings: Instruction) -> None:
        self._settings = settings
        self.titles: list[str] = [_one_line(text) for text in items["title"].to_pylist()]
        self.brands: list[str] = [_one_line(text) for text in items["brand"].to_pylist()]
        self.paths: list[list[str]] = items["categories"].to_pylist()
        descriptions = items["description"].to_pylist()
        self.descriptions = [_clipped(_one_line(text), settings.text_words) for text in descriptions]

    def __len__(self) -> int:
        return len(self.titles)

    def category(self, item: int) -> str:
        """The finest category, or ''."""
        return self.paths[item][-1] if self.paths[item] else ""

    def interests(self, history: Sequence[int]) -> list[tuple[str, int]]:
        """The most frequent categories of a history with their counts; of equally frequent ones the latest first."""
        return self._most([self.category(item) for item in history])

    def has_about_item(self, item: int) -> frozenset[str]:
        """Names of the fields that an item has."""
        title, path = self.titles[item], self.paths[item]
        has = {
            "title": title,
            "category": path,
            "path": path,
            "brand": self.brands[item],
            "description": self.descriptions[item],
            "partial": len(title.split()) > 1 or len(title) > UNSPACED // 2,
            "document": title or path or self.descriptions[item],
        }
        return frozenset({"sid", *(name for name, found in has.items() if found)})

    def has_about_query(self, history: Sequence[int], target: int) -> frozenset[str]:
        """Names of the fields that a query has."""
        has = {
            "titled": any(self.titles[item] for item in history),
            "titles": any(self.titles[item] for item in history),
            "target_title": self.titles[target],
            "category": self.paths[target],
            "interests": any(self.paths[item] for item in history[-self._settings.window :]),
            "categories": any(self.paths[item] for item in history),
            "brands": any(self.brands[item] for item in history),
        }
        return frozenset({"history", "target", "reason", *(name for name, found in has.items() if found)})

    def about_item(self, item: int, language: Language, rng: np.random.Generator) -> dict[str, Parts]:
        """All fields of an item, empty if unknown."""
        title, path = self.titles[item], language.phrases["path"].join(self.paths[item])
        texts = (title, path, self.brands[item], self.descriptions[item])
        fields = {
            "title": title,
            "category": self.category(item),
            "path": path,
            "brand": self.brands[item],
            "description": self.descriptions[item],
            "partial": _partial(title, rng),
            "document": "\n".join(text for text in texts if text),
        }
        return {"sid": (Item(item),), **{name: (text,) for name, text in fields.items()}}

    def about_query(self, history: Sequence[int], target: int, language: Language, reason: str) -> dict[str, Parts]:
        """All fields of a query, empty if unknown; ``reason`` is a teacher's text, or '' for one from attributes."""
        phrases = language.phrases
        separator = phrases["separator"]
        recent = [name for name, _ in self.interests(history[-self._settings.window :])]
        brands = [name for name, _ in self._most([self.brands[item] for item in history])]
        counted = [{"name": (name,), "count": (str(count),)} for name, count in self.interests(history)]
        return {
            "history": join([(Item(item),) for item in history], separator),
            "titled": join([self.titled(item, language) for item in history], separator),
            "titles": (separator.join(self.titles[item] for item in history if self.titles[item]),),
            "target": (Item(target),),
            "target_title": (self.titles[target],),
            "category": (self.category(target),),
            "interests": (separator.join(recent),),
            "categories": join([fill(phrases["counted"], names) for names in counted], separator),
            "brands": (separator.join(brands),),
            "reason": (reason,) if reason else self._reason(history, target, language),
        }

    def titled(self, item: int, language: Language) -> Parts:
        """An item followed by its title, if it has one."""
        if not self.titles[item]:
            return (Item(item),)
        return fill(language.phrases["titled"], {"sid": (Item(item),), "title": (self.titles[item],)})

    def _reason(self, history: Sequence[int], target: int, language: Language) -> Parts:
        """Sentences on the target's category, brand and title words, each with the latest item that shares it."""
        category, brand, words = self.category(target), self.brands[target], _words(self.titles[target])
        latest = list(dict.fromkeys(reversed(history)))
        sentences: list[Parts] = []
        for phrase, field, text, others in (
            ("same_category", "category", category, [i for i in latest if category and self.category(i) == category]),
            ("same_brand", "brand", brand, [i for i in latest if brand and self.brands[i] == brand]),
        ):
            if others:
                values = {field: (text,), "other": self.titled(others[0], language)}
                sentences.append(fill(language.phrases[phrase], values))
        alike = max(latest, key=lambda item: len(words & _words(self.titles[item])), default=None)
        common = sorted(words & _words(self.titles[alike])) if alike is not None else []
        if common:
            values: Mapping[str, Parts] = {
                "words": (language.phrases["separator"].join(common),),
                "other": self.titled(alike, language) if alike is not None else (),
            }
            sentences.append(fill(language.phrases["same_words"], values))
        return join(sentences or [(language.phrases["nothing_shared"],)], language.phrases["sentences"])

    def _most(self, names: Sequence[str]) -> list[tuple[str, int]]:
        counts = Counter(name for name in reversed(names) if name)
        return counts.most_common(self._settings.interests)


def _words(title: str) -> frozenset[str]:
    return frozenset(word for word in title.lower().split() if len(word) >= SHORTEST_WORD and word.isalpha())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _clipped(text: str, words: int) -> str:
    found = text.split()
    if found and len(text) > UNSPACED * len(found):
        return text[:words]
    return " ".join(found[:words])


def _partial(title: str, rng: np.random.Generator) -> str:
    """Half of the words of a title in their order, or half of the characters of a single word."""
    words = title.split()
    if len(words) < 2:
        return title[: len(title) // 2]
    kept = np.sort(rng.choice(len(words), size=(len(words) + 1) // 2, replace=False))
    return " ".join(words[index] for index in kept)
