"""The catalogue at one moment, with all that a recommender derives from it."""

from __future__ import annotations

import reprlib
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

from genrec.baselines.itemknn import ItemKNN
from genrec.data.arrow import pc
from genrec.errors import InputError
from genrec.inference.answers import CatalogItem
from genrec.inference.prior import grown_knn
from genrec.policy.decoding.request_constraints import ItemAttributes, read_item_attributes
from genrec.policy.decoding.trie_masks import TrieMaskCache
from genrec.policy.prompts import Prompts
from genrec.sid import catalog_updates
from genrec.sid.catalog import Catalog
from genrec.sid.readable import SidNames
from genrec.sid.trie import Trie


@dataclass(frozen=True)
class CatalogView:
    """One state of the catalogue: a request uses the same view from its beginning to its end.

    ``ids`` and ``titles`` are those of all rows, removed items included; ``rows`` maps an id to its row. ``trie`` is
    the catalogue's on the device of the policy.
    """

    path: Path
    catalog: Catalog
    prompts: Prompts
    ids: list[str]
    titles: list[str]
    rows: dict[str, int]
    attributes: ItemAttributes
    trie: Trie
    masks: TrieMaskCache
    knn: ItemKNN | None = None
    names: SidNames | None = None

    @classmethod
    def read(
        cls,
        path: Path,
        items: pa.Table,
        prompts: Prompts,
        digest: str,
        knn: ItemKNN | None = None,
        names: SidNames | None = None,
        device: str = "cpu",
    ) -> CatalogView:
        """The catalogue in the directory ``path``.

        Args:
            items: the item table of the assigned catalogue; items inserted later are read from ``path``.
            prompts: of the policy.
            digest: of the catalogue that the policy was trained for.
            knn: of the assigned catalogue; the view has it for its own.
            names: of the codes, if they have some.
            device: where the trie is searched.

        Raises:
            InputError: no readable catalogue, or one that did not grow from the catalogue of the policy.
        """
        catalog, ids, added = catalog_updates.read(path)
        catalog.require_digest(digest, "the policy of this run")
        rows = {item_id: row for row, item_id in enumerate(ids)}
        trie = catalog.trie if device == "cpu" else catalog.trie.to(device)
        return cls(
            path,
            catalog,
            prompts.for_catalog(catalog),
            ids,
            [title for table in (items, *added) for title in table["title"].to_pylist()],
            rows,
            read_item_attributes(items, added, rows),
            trie,
            TrieMaskCache(trie),
            None if knn is None else grown_knn(knn, catalog),
            names,
        )

    def require(self, diversity: str) -> None:
        """Check that the items have what a kind of diversity looks at.

        Raises:
            InputError: vectors or categories are asked for, and the catalogue has none.
        """
        if diversity == "vectors" and self.catalog.vectors_NF is None:
            raise InputError("diversity=vectors: this catalogue has no item vectors; wanted categories or beams")
        if diversity in ("categories", "calibrated") and not self.attributes.category_names:
            raise InputError(
                f"diversity={diversity}: no item of this catalogue has a category; wanted vectors or beams"
            )

    def row_of(self, item_id: str) -> int:
        """The row of an item; InputError where no item has this id."""
        if not isinstance(cast("object", item_id), str) or item_id not in self.rows:
            raise InputError(f"no item has the id {reprlib.repr(item_id)}; wanted one of the catalogue")
        return self.rows[item_id]

    def item(self, row: int) -> CatalogItem:
        """What the catalogue knows of the item ``row``."""
        categories, price = self.attributes.of(row)
        codes = tuple(self.catalog.codes_NL[row].tolist())
        removed = row in self.removed
        return CatalogItem(self.ids[row], self.titles[row], categories, price, codes, self.path_of(row), removed)

    def search(self, text: str, limit: int) -> list[CatalogItem]:
        """See ``Recommender.search_titles``."""
        if not isinstance(cast("object", text), str):
            raise InputError(f"got {reprlib.repr(text)} to search titles for; wanted text")
        text = text.encode(errors="replace").decode()  # Arrow takes valid Unicode alone
        found_N = np.ones(len(self.titles), bool)
        begin = _folded(text.strip())
        for word in begin.split():
            found_N &= pc.match_substring(self._title_column, word).to_numpy(zero_copy_only=False)
        rows = [row for row in np.flatnonzero(found_N).tolist() if begin]
        begins_N = pc.starts_with(self._title_column, begin).to_numpy(zero_copy_only=False)
        rows.sort(key=lambda row: (not begins_N[row], len(self.titles[row]), row))
        own = [self.rows[text.strip()]] if text.strip() in self.rows else []
        return [self.item(row) for row in list(dict.fromkeys([*own, *rows]))[:limit]]

    @cached_property
    def removed(self) -> frozenset[int]:
        """The rows of removed items."""
        return frozenset(self.catalog.removed)

    @cached_property
    def category_numbers(self) -> dict[str, int]:
        """A number for each category of the catalogue, from 0."""
        return {name: number for number, name in enumerate(self.attributes.category_names)}

    @cached_property
    def _title_column(self) -> pa.Array:
        return pa.array(map(_folded, self.titles), pa.string())

    def path_of(self, row: int) -> tuple[str, ...]:
        """The names of the codes of the item ``row``; empty if they have none."""
        return () if self.names is None else self.names.path_of(self.catalog.codes_NL[row].tolist())


def _folded(text: str) -> str:
    """``text`` without its case, and with each letter written in one way: é may be one character or two."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
