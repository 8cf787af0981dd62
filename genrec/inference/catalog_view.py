"""The catalogue at one moment, with all that a recommender derives from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from genrec.baselines.itemknn import ItemKNN
from genrec.inference.prior import grown_knn
from genrec.policy.decoding.request_constraints import ItemAttributes, read_item_attributes
from genrec.policy.decoding.trie_masks import TrieMaskCache
from genrec.policy.prompts import Prompts
from genrec.sid import catalog_updates
from genrec.sid.catalog import Catalog
from genrec.sid.readable import SidNames


@dataclass(frozen=True)
class CatalogView:
    """One state of the catalogue: a request uses the same view from its beginning to its end.

    ``ids`` and ``titles`` are those of all rows, removed items included; ``rows`` maps an id to its row.
    """

    path: Path
    catalog: Catalog
    prompts: Prompts
    ids: list[str]
    titles: list[str]
    rows: dict[str, int]
    attributes: ItemAttributes
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
    ) -> CatalogView:
        """The catalogue in the directory ``path``.

        Args:
            items: the item table of the assigned catalogue; items inserted later are read from ``path``.
            prompts: of the policy.
            digest: of the catalogue that the policy was trained for.
            knn: of the assigned catalogue; the view has it for its own.
            names: of the codes, if they have some.

        Raises:
            InputError: no readable catalogue, or one that did not grow from the catalogue of the policy.
        """
        catalog, ids, added = catalog_updates.read(path)
        catalog.require_digest(digest, "the policy of this run")
        rows = {item_id: row for row, item_id in enumerate(ids)}
        return cls(
            path,
            catalog,
            prompts.for_catalog(catalog),
            ids,
            [title for table in (items, *added) for title in table["title"].to_pylist()],
            rows,
            read_item_attributes(items, added, rows),
            TrieMaskCache(catalog.trie),
            None if knn is None else grown_knn(knn, catalog),
            names,
        )

    def path_of(self, row: int) -> tuple[str, ...]:
        """The names of the codes of the item ``row``; empty if they have none."""
        return () if self.names is None else self.names.path_of(self.catalog.codes_NL[row].tolist())
