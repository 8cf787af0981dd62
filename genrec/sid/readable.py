"""Readable identifiers: codes with names, from the items' categories and brands, or from the words of their titles.

The first L - 1 codes of an item are its path of names (Drinkware › Mugs, Iron › Man), and the last one numbers the
items of a path. ``sid_names.json`` beside the catalogue holds the names, so an answer can show its path.

Sources: Hua et al., "How to Index Item IDs for Recommendation Foundation Models" (2023), semantic indexing by the
hierarchy of categories; Lin et al., "Bridging Items and Language: A Transition Paradigm for Large Language Model-Based
Recommendation" (2023), titles as identifiers.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec.config import Sid
from genrec.data.files import write_json
from genrec.errors import InputError
from genrec.sid.prefixes import prefix_numbers, refuse_full
from genrec.sid.vectors import Floats, Ints, Longs

FILE = "sid_names.json"
OTHER = "other"
"""The name of code 0 of every level of names: of items without a name there, and of names that are too rare."""
WORD = re.compile(r"\w+")
FILLERS = frozenset(["a", "an", "and", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"])
"""English words that name nothing; numbers and single characters are left out of titles, too."""
MOST = 65_536
"""The largest last level."""

Names = tuple[str, ...]


@dataclass(frozen=True)
class SidNames:
    """The names of the first L - 1 levels: code c of level l is ``names[l][c]``, and code 0 is ``other``.

    For ``taxonomy``: ``root`` are the categories that all paths begin with, which tell nothing and are left out; then
    ``depth`` levels are categories, and the next one is the brand if ``brand``.
    """

    settings: Sid
    names: Sequence[Sequence[str]]
    root: Names = ()
    depth: int = 0
    brand: bool = False

    @classmethod
    def learn(cls, items: pa.Table, settings: Sid) -> SidNames:
        """The names of a catalogue: of each level the most frequent ones, ``sid.codebook_size`` with ``other`` at most.

        Raises:
            InputError: no item has a category or a brand (``taxonomy``), or a title with words (``title_words``).
        """
        if settings.quantizer == "title_words":
            return cls(settings, _vocabulary(items, settings))
        paths: list[Names] = [_clean(path) for path in items["categories"].to_pylist()]
        levels, has_brand = settings.levels - 1, any(_clean([brand]) for brand in items["brand"].to_pylist())
        if not has_brand and not any(paths):
            raise InputError(
                "sid.quantizer=taxonomy: no item has a category or a brand; choose another sid.quantizer, or a source "
                "that has categories"
            )
        root = _root([path for path in paths if path])
        deepest = max((len(path) - len(root) for path in paths if path), default=0)
        brand = has_brand and (levels > 1 or not deepest)
        depth = min(deepest, levels - brand)
        found = cls(settings, [()] * levels, root, depth, brand).paths(items)
        sizes = settings.level_sizes[:levels]
        names = [_most_frequent([path[level] for path in found], size) for level, size in enumerate(sizes)]
        return cls(settings, names, root, depth, brand)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of names at each level, ``other`` included."""
        return tuple(map(len, self.names))

    @cached_property
    def _numbers(self) -> list[dict[str, int]]:
        return [{name: code for code, name in enumerate(names) if code} for names in self.names]

    def encode(self, items: pa.Table) -> Ints:
        """The codes (N, L - 1) int32 of the items' names; 0 for a name that is missing or unknown.

        Args:
            items: a table with the columns title, brand and categories.
        """
        if self.settings.quantizer == "title_words":
            rows = [self._word_codes(title) for title in items["title"].to_pylist()]
        else:
            rows = [
                [numbers.get(name, 0) for numbers, name in zip(self._numbers, path, strict=True)]
                for path in self.paths(items)
            ]
        return np.array(rows, np.int32).reshape(items.num_rows, len(self.names))

    def paths(self, items: pa.Table) -> list[Names]:
        """Each item's L - 1 names by its categories and brand; '' where it has none."""
        width, found = len(self.names), list[Names]()
        for categories, brand in zip(items["categories"].to_pylist(), items["brand"].to_pylist(), strict=True):
            path = _clean(categories)
            rest = path[len(self.root) :] if path[: len(self.root)] == self.root else ()
            parts = [*(rest + ("",) * self.depth)[: self.depth], *(_clean([brand]) if self.brand else ())]
            found.append((*parts, *[""] * width)[:width])
        return found

    def path_of(self, codes: Sequence[int]) -> Names:
        """The names of a whole SID, and its number among the items of its path: ("Drinkware", "Mugs", "3")."""
        named = [names[code] for names, code in zip(self.names, codes, strict=False)]
        return (*named, *map(str, codes[len(named) :]))

    def save(self, directory: Path) -> None:
        """Write ``sid_names.json``."""
        about = {"sid": self.settings.model_dump(mode="json"), "root": self.root, "depth": self.depth}
        write_json({**about, "brand": self.brand, "names": [list(names) for names in self.names]}, directory / FILE)

    @classmethod
    def load(cls, directory: Path) -> SidNames | None:
        """What ``save`` wrote; None if the SIDs of this directory have no names.

        Raises:
            InputError: the file cannot be read.
        """
        path = directory / FILE
        if not path.is_file():
            return None
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            names = [list(map(str, level)) for level in about["names"]]
            found = tuple(about["root"]), int(about["depth"]), bool(about["brand"])
            return cls(Sid.model_validate(about["sid"]), names, *found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read: {error}; run `genrec assign` again") from error

    def _word_codes(self, title: str) -> list[int]:
        """At each level the first word of the title that is a code there and stands behind the word before."""
        words, codes = title_words(title), list[int]()
        for numbers in self._numbers:
            at = next((index for index, word in enumerate(words) if word in numbers), None)
            codes.append(0 if at is None else numbers[words[at]])
            words = words if at is None else words[at + 1 :]
        return codes


class PathCosts:
    """What a SID costs an item (``LevelCosts``): 2^(L - l) for each level l of names that is not the item's.

    So a missing place at one path is looked for at the paths that differ as late as possible. The number of the last
    level is free. The "vectors" of items are their codes (N, L - 1), the result of ``SidNames.encode``.
    """

    def __init__(self, level_sizes: Sequence[int]) -> None:
        self.level_sizes = tuple(level_sizes)

    def level_costs(self, vectors_ND: Floats, prefix_Nl: Ints) -> Floats:
        """The costs (N, K) if each of the next level's K codes followed each row's prefix (N, l)."""
        level, levels = prefix_Nl.shape[1], len(self.level_sizes)
        weight_l = 2.0 ** (levels - 1 - np.arange(level))
        wrong_N1 = ((vectors_ND[:, :level] != prefix_Nl) @ weight_l)[:, None]
        if level == levels - 1:
            return np.repeat(wrong_N1, self.level_sizes[-1], axis=1).astype(np.float32)
        other_NK = vectors_ND[:, level, None] != np.arange(self.level_sizes[level])
        return (wrong_N1 + other_NK * 2.0 ** (levels - 1 - level)).astype(np.float32)


def number_items(path_Nl: Ints, level_sizes: Sequence[int], rank_N: Longs) -> tuple[Ints, tuple[int, ...]]:
    """SIDs (N, L) from paths (N, L - 1): the last code numbers the items of a path in the order of ``rank_N`` (N,).

    The last level is a quarter (at least 8) larger than the largest path, so that items can be inserted.

    Raises:
        InputError: a path with more items than a level may have codes.
    """
    number_N = prefix_numbers(path_Nl, level_sizes)
    order = np.lexsort((rank_N, number_N))
    digit_N = np.empty(len(path_Nl), np.int32)
    digit_N[order] = np.arange(len(order)) - np.searchsorted(number_N[order], number_N[order])
    largest = int(digit_N.max()) + 1
    if largest > MOST:
        raise InputError(
            f"{largest} items have the same names, wanted at most {MOST}; raise sid.levels or sid.codebook_size, or "
            "choose another sid.quantizer"
        )
    sizes = (*level_sizes, min(MOST, largest + max(8, largest // 4)))
    refuse_full(len(path_Nl), sizes)
    return np.concatenate([path_Nl, digit_N[:, None]], axis=1).astype(np.int32), sizes


def title_words(title: str) -> list[str]:
    """The words of a title in lower case, each once, without fillers, numbers and single characters."""
    words = WORD.findall(unicodedata.normalize("NFKC", title).lower())
    return [word for word in dict.fromkeys(words) if len(word) > 1 and not word.isdigit() and word not in FILLERS]


def _vocabulary(items: pa.Table, settings: Sid) -> list[list[str]]:
    """The words that are codes at each level but the last: the same words in the same order, as many as fit."""
    words = [word for title in items["title"].to_pylist() for word in title_words(title)]
    if not words:
        raise InputError("sid.quantizer=title_words: no item has a title with words; choose another sid.quantizer")
    return [_most_frequent(words, size) for size in settings.level_sizes[:-1]]


def _most_frequent(names: Sequence[str], size: int) -> list[str]:
    """``other``, and the size - 1 most frequent names but ''; of equals the first by alphabet."""
    counts = Counter(name for name in names if name)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    return [OTHER, *ranked[: size - 1]]


def _clean(names: Sequence[str] | None) -> Names:
    """Names in one form of Unicode and with single spaces; empty ones are left out."""
    plain = (" ".join(unicodedata.normalize("NFC", name or "").split()) for name in names or ())
    return tuple(name for name in plain if name)


def _root(paths: Sequence[Names]) -> Names:
    """The names that all paths begin with; at least the last name of the longest path is not among them."""
    if not paths:
        return ()
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    return tuple(level[0] for level in shared)[: max(map(len, paths)) - 1]
