"""Inserts and removals by the service: one writer at a time over all replicas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from cluster.node_files import artifact_cache
from cluster.serve.messages import NewItem
from cluster.store_folders import change_of_catalog
from genrec.config import Embed
from genrec.data.columns import CATALOG
from genrec.errors import InputError
from genrec.inference.run_record import RunRecord
from genrec.sid import catalog_updates
from genrec.sid.embed import make_text_encoder
from genrec.sid.encoders import Encoder


class CatalogWriter:
    """Changes the catalogues of runs; the text encoder is loaded at the first insert that needs it, and kept."""

    def __init__(self) -> None:
        self._encoders: dict[str, Encoder] = {}

    def insert(self, run: RunRecord, items: Sequence[NewItem]) -> dict[str, int]:
        """Give each item the nearest free semantic ID; returns the numbers ``inserted`` and ``returned``.

        Raises:
            InputError: as ``catalog_updates.insert``, an id that occurs twice, or another writer that takes too long.
        """
        ids = [item.id for item in items]
        if len(set(ids)) < len(ids):
            raise InputError(f"items: got {len(ids)} items with {len(set(ids))} distinct ids; wanted each once")
        priced = any(item.price is not None for item in items)
        columns = CATALOG.append(pa.field("price", pa.float64())) if priced else CATALOG
        return self.insert_table(run, pa.Table.from_pylist([item.model_dump() for item in items], columns))

    def insert_table(self, run: RunRecord, table: pa.Table) -> dict[str, int]:
        """``insert`` of items with the columns of ``columns.CATALOG``; errors of ``catalog_updates.insert``."""
        encode, embed = partial(self._encoder, run.config.embed), run.config.embed
        with change_of_catalog(run.config, run.live):
            done = catalog_updates.insert(run.catalog, run.live, table, encode, vectors=_vectors(run), embed=embed)
        return {name: int(done.get(name, 0)) for name in ("inserted", "returned")}

    def _encoder(self, embed: Embed) -> Encoder:
        """The encoder of these settings; called by one writer at a time."""
        key = embed.model_dump_json()
        if key not in self._encoders:
            self._encoders[key] = make_text_encoder(embed, "cpu", 1)
        return self._encoders[key]

    def remove(self, run: RunRecord, ids: Sequence[str]) -> dict[str, int]:
        """Hide items from every search; returns the number ``removed``.

        Raises:
            InputError: as ``catalog_updates.remove``, or another writer that takes too long.
        """
        with change_of_catalog(run.config, run.live):
            done = catalog_updates.remove(run.catalog, run.live, ids)
        return {"removed": int(done["removed"])}


def _vectors(run: RunRecord) -> Path:
    """The text vectors that the run's semantic IDs were made from; the empty path where there are none.

    Those of an object store are fetched, once.
    """
    manifest = run.catalog / "manifest.json"
    if not manifest.is_file():
        return Path()
    inputs = json.loads(manifest.read_text(encoding="utf-8")).get("inputs", {})
    if "embed" not in inputs:
        return Path()
    vectors, cache = run.storage / inputs["embed"], artifact_cache(run.config)
    if cache is not None and not cache.fetch(vectors):
        raise InputError(f"{inputs['embed']} is gone from {run.config.storage}; make it again with `genrec embed`")
    return vectors
