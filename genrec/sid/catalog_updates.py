"""Inserts into and removals from the catalogue of a trained model: no SID changes.

New items get free SIDs, and removed items lose their leaf in the trie but keep their SID. The files of ``assign`` are
never changed. Each update writes a new numbered directory, atomically (under another name, then renamed); the one with
the highest number is the current catalogue:

    00001/  catalog.*       all SIDs, the first assigned ones first; removed items keep theirs but have no leaf
            vectors.*       the vectors that they were made from
            sids.parquet    item, id, codes of all items
            added.parquet   all items inserted so far: id, title, description, brand, categories, price if any
            change.json     what was changed, and a SHA-256 of the inserted items
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from genrec.config import Embed, Sid
from genrec.data.files import temporary_beside, write_json, write_parquet
from genrec.data.sources.parquet import find_tables, read_catalog
from genrec.errors import InputError
from genrec.sid.catalog import Catalog
from genrec.sid.codes import write_sids
from genrec.sid.collaborative import neighbour_factors
from genrec.sid.embed import item_texts
from genrec.sid.encoders import Encoder
from genrec.sid.free_sids import nearest_free
from genrec.sid.inputs import fuse
from genrec.sid.prefixes import prefix_codes, prefix_numbers, refuse_full
from genrec.sid.quantizers import Quantizer, load_quantizer
from genrec.sid.quantizers.controls import title_words
from genrec.sid.readable import PathCosts, SidNames
from genrec.sid.suffix import Suffixed
from genrec.sid.vectors import Floats, Ints, VectorFiles, check_vectors

CHANGE = "change.json"
STORED = ".stored"
"""A file in an update of this machine that the store has, too; one without it was made here and got no further."""
TEXT = ["id", "title", "description", "brand", "categories"]


def current(assigned: Path, live: Path, *, stored: bool = False) -> Path:
    """The directory of the current catalogue: the last update under ``live``, or ``assigned`` if there is none.

    Args:
        stored: storage is an object store: an update that it has not taken yet is none.
    """
    try:
        with os.scandir(live) as entries:
            names = [entry.name for entry in entries if entry.name.isdecimal() and entry.is_dir()]
    except FileNotFoundError:
        return assigned
    for name in sorted(names, key=int, reverse=True):
        if not stored or (live / name / STORED).is_file():
            return live / name
    return assigned


def read(directory: Path) -> tuple[Catalog, list[str], list[pa.Table]]:
    """The catalogue of a directory that ``current`` returned, its item ids in row order, and the inserted items.

    The inserted items are the last rows of the catalogue: a list of one table (``added.parquet``), or an empty list.

    Raises:
        InputError: no readable catalogue.
    """
    catalog = Catalog.load(directory)
    ids = pq.ParquetFile(directory / "sids.parquet").read(["id"])["id"].to_pylist()
    file = directory / "added.parquet"
    return catalog, ids, [pq.ParquetFile(file).read()] if file.is_file() else []


def read_new_items(file: Path, columns: Mapping[str, str]) -> pa.Table:
    """The items of a Parquet or CSV file or folder: id, title, description, brand, categories (only id is needed).

    Raises:
        InputError: the file or the id column is missing, there are no rows, or an id occurs twice.
    """
    return read_catalog(find_tables(str(file), "check the path"), columns)


def insert(
    assigned: Path, live: Path, items: pa.Table, encode: Callable[[], Encoder], *, vectors: Path, embed: Embed
) -> dict[str, Any]:
    """Give each new item the nearest free SID, and removed items their old SID; returns counts.

    The same insert again changes nothing. SIDs are assigned in the order of the item ids, so the order of the rows does
    not matter.

    Args:
        assigned: the output of ``assign``; live: the directory of the updates.
        items: the result of ``read_new_items``.
        encode: makes the text encoder; called only if there is a text to embed.
        vectors: the text vectors of the assigned items (read for ``sid.cf_weight`` > 0); embed: the text fields.

    Raises:
        InputError: an item is in the catalogue already, there are more items than free SIDs, SIDs are published (so
            there is no quantizer), or items share SIDs.
    """
    before = current(assigned, live)
    catalog, ids, added = read(before)
    rows = {item_id: row for row, item_id in enumerate(ids)}
    new_ids, digest = items["id"].to_pylist(), _digest(items)
    gone = set(catalog.removed)
    known = [item_id for item_id in new_ids if item_id in rows and rows[item_id] not in gone]
    if len(known) == len(new_ids) and digest in _digests(live):
        return {"inserted": 0, "returned": 0, "items": len(catalog), "catalog": str(before)}
    _refuse_known(known, len(new_ids))
    fresh = items.filter(pa.array([item_id not in rows for item_id in new_ids]))
    back = {rows[item_id] for item_id in new_ids if item_id in rows}
    codes_NL, grown = catalog.codes_NL.numpy().astype(np.int32), catalog.grown_from
    vectors_NF = catalog.vectors_NF
    if fresh.num_rows:
        refuse_full(len(catalog) + fresh.num_rows, catalog.level_sizes)
        placer = SidNames.load(assigned) or _quantizer(assigned)
        inputs_MD = _inputs(fresh, encode, placer.settings, assigned, vectors, embed)
        free_ML = _assign_free(fresh, inputs_MD, codes_NL, placer, catalog.level_sizes)
        codes_NL = np.concatenate([codes_NL, free_ML])
        added, grown = [*added, _kept(fresh)], (*grown, len(catalog))
        if vectors_NF is not None:
            vectors_NF = torch.cat([vectors_NF, torch.from_numpy(inputs_MD).to(vectors_NF)])
    removed = sorted(gone - back)
    changed = Catalog(torch.from_numpy(codes_NL), catalog.level_sizes, removed, grown, vectors_NF=vectors_NF)
    about = {"change": "insert", "source": digest, "inserted": fresh.num_rows, "returned": len(back)}
    same = None if fresh.num_rows else before
    path = _write(_next(before, live), changed, [*ids, *fresh["id"].to_pylist()], added, about, same)
    return {**about, "items": len(changed), "catalog": str(path)}


def remove(assigned: Path, live: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Remove the leaves of these items, so that no search finds them; they keep their SIDs. Returns counts.

    Items that are removed already stay removed.

    Raises:
        InputError: an id is not in the catalogue, or no item is left.
    """
    before = current(assigned, live)
    catalog, known, added = read(before)
    rows = {item_id: row for row, item_id in enumerate(known)}
    unknown = [item_id for item_id in ids if item_id not in rows]
    if unknown or not ids:
        raise InputError(
            f"{len(unknown)} of {len(ids)} items to remove are not in the catalogue ({unknown[:3]}); name items of it"
        )
    gone = sorted(set(catalog.removed) | {rows[item_id] for item_id in ids})
    if gone == list(catalog.removed):
        return {"removed": 0, "items": len(catalog), "catalog": str(before)}
    sizes, vectors_NF = catalog.level_sizes, catalog.vectors_NF
    changed = Catalog(catalog.codes_NL, sizes, gone, catalog.grown_from, vectors_NF=vectors_NF)
    about = {"change": "remove", "removed": len(gone) - len(catalog.removed)}
    path = _write(_next(before, live), changed, known, added, about, before)
    return {**about, "items": len(changed), "catalog": str(path)}


def _refuse_known(known: list[str], items: int) -> None:
    if known:
        raise InputError(
            f"{len(known)} of {items} items are in the catalogue already ({known[:3]}…): an item keeps its SID; "
            "leave them out, or remove them first"
        )


def _quantizer(assigned: Path) -> Quantizer:
    if not (assigned / "quantizer").is_dir():
        raise InputError(
            f"{assigned}: got published SIDs (sid.quantizer=given), wanted those of a quantizer, which can encode new "
            "items; assign with another sid.quantizer to insert items"
        )
    return load_quantizer(assigned / "quantizer")


def _inputs(
    items: pa.Table, encode: Callable[[], Encoder], settings: Sid, assigned: Path, vectors: Path, embed: Embed
) -> Floats:
    """The vectors (M, D) to quantize: as for the other items, with the collaborative vectors of cold items."""
    if settings.quantizer == "title":
        return title_words(items["title"].to_pylist(), settings)
    text_MD = encode().encode(item_texts(items, embed.fields))
    check_vectors(text_MD)
    cf_MD = None
    if settings.cf_weight > 0:
        cf_MD = neighbour_factors(VectorFiles(assigned / "cf").read(), VectorFiles(vectors).read(), text_MD)
    return fuse(text_MD, cf_MD, settings.text_weight, settings.cf_weight)


def _assign_free(
    items: pa.Table, inputs_MD: Floats, codes_NL: Ints, placer: Quantizer | SidNames, level_sizes: tuple[int, ...]
) -> Ints:
    """Free codes (M, L): the nearest to the vectors (M, D), or to the path of names."""
    if isinstance(placer, SidNames):
        costs, inputs_MD = PathCosts(level_sizes), placer.encode(items).astype(np.float32)
    else:
        placer.check(inputs_MD)
        costs = placer if placer.settings.collisions != "suffix" else Suffixed(placer, level_sizes[-1])
    order = np.argsort(np.array(items["id"].to_pylist(), dtype=object), kind="stable")
    number_M = np.empty(len(order), np.int64)
    number_M[order] = nearest_free(inputs_MD[order], costs, prefix_numbers(codes_NL, level_sizes))
    return prefix_codes(number_M, level_sizes)


def _kept(items: pa.Table) -> pa.Table:
    """What an update keeps of its items: their texts, and their prices where the table has some."""
    if "price" not in items.column_names:
        return items.select(TEXT)
    try:
        return items.select(TEXT).append_column("price", items["price"].cast(pa.float64()))
    except pa.ArrowInvalid as error:
        raise InputError(f"the column 'price' of the new items: {error}; wanted numbers") from error


def _digest(items: pa.Table) -> str:
    rows = _kept(items).to_pylist()
    return hashlib.sha256(json.dumps(sorted(rows, key=lambda row: row["id"])).encode()).hexdigest()


def _digests(live: Path) -> set[str]:
    files = live.glob(f"[0-9]*/{CHANGE}")
    return {json.loads(file.read_text(encoding="utf-8")).get("source", "") for file in files}


def _next(before: Path, live: Path) -> Path:
    """The update that follows what was read, so that one of another process meanwhile is never passed over."""
    return live / f"{int(before.name) + 1 if before.parent == live else 1:05d}"


def _write(
    path: Path,
    catalog: Catalog,
    ids: list[str],
    added: list[pa.Table],
    about: Mapping[str, Any],
    same_vectors: Path | None,
) -> Path:
    partial = temporary_beside(path)
    try:
        catalog.save(partial, same_vectors)
        write_sids(pa.chunked_array([ids]), catalog.codes_NL.numpy().astype(np.int32), partial / "sids.parquet")
        if added:
            write_parquet(pa.concat_tables(added, promote_options="permissive"), partial / "added.parquet")
        write_json(about, partial / CHANGE)
        partial.rename(path)
    except OSError as error:
        raise InputError(
            f"{path} could not be written ({error}): is another process changing it? run this again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path
