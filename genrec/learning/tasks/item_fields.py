"""The texts of items, and the fields that templates about one item fill with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from genrec.config import Instruction
from genrec.policy.chat.templates import Item, Language, Parts, fill, join

UNSPACED = 20
"""Text with more characters per word than this is written without spaces, and is cut by characters."""


class ItemFields:
    """The texts of N items; unknown text is empty."""

    def __init__(self, items: pa.Table, settings: Instruction) -> None:
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

    def has(self, item: int) -> frozenset[str]:
        """Names of the fields that an item has."""
        title, path, description = self.titles[item], self.paths[item], self.descriptions[item]
        known = title or path or description
        has = {
            "title": title,
            "category": path,
            "path": path,
            "brand": self.brands[item],
            "description": description,
            "record": known,
            "details": known,
            "document": known,
        }
        return frozenset({"sid", *(name for name, found in has.items() if found)})

    def about(self, item: int, language: Language) -> dict[str, Parts]:
        """All fields of an item: its ``sid``, and texts.

        ``record`` labels its title, categories and synopsis, ``details`` also its brand; ``document`` is all of its
        text without labels.
        """
        texts = {
            "title": self.titles[item],
            "path": language.phrases["path"].join(self.paths[item]),
            "brand": self.brands[item],
            "description": self.descriptions[item],
        }
        fields: dict[str, Parts] = {name: (text,) for name, text in texts.items()}
        return fields | {
            "sid": (Item(item),),
            "category": (self.category(item),),
            "record": _labelled(texts, language, ("title", "path", "description")),
            "details": _labelled(texts, language, ("title", "path", "brand", "description")),
            "document": ("\n".join(text for text in texts.values() if text),),
        }

    def titled(self, item: int, language: Language) -> Parts:
        """An item followed by its title, if it has one."""
        if not self.titles[item]:
            return (Item(item),)
        return fill(language.phrases["titled"], {"sid": (Item(item),), "title": (self.titles[item],)})

    def mixed(self, item: int, language: Language, rng: np.random.Generator) -> Parts:
        """An item as semantic ID, title or both, drawn from ``rng``; as semantic ID where it has no title."""
        forms: tuple[Parts, ...] = ((Item(item),), self.titled(item, language), (self.titles[item],))
        return forms[int(rng.integers(3 if self.titles[item] else 1))]


def _labelled(texts: Mapping[str, str], language: Language, names: Sequence[str]) -> Parts:
    known = [name for name in names if texts[name]]
    lines = [fill(language.phrases[f"record_{name}"], {name: (texts[name],)}) for name in known]
    return join(lines, language.phrases["record_separator"])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _clipped(text: str, words: int) -> str:
    found = text.split()
    if found and len(text) > UNSPACED * len(found):
        return text[:words]
    return " ".join(found[:words])
