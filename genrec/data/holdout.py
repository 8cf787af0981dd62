"""A data directory without some of its items, as if they did not exist yet, and the queries that test their insertion.

    data/           a data directory without the held-out items in its log, histories and targets
    held.parquet    the held-out items, with the columns of the item table
    asked/          the test queries with any target, as ``queries/test``, without held-out items in their histories

Items are renumbered: first the others in their order, then the held-out ones in theirs. These are the rows that they
get when ``held.parquet`` is inserted into a catalogue of the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.data.arrow import pc
from genrec.data.files import write_json, write_parquet
from genrec.data.readers import read_items, read_queries, read_sequences
from genrec.data.tables import ITEMS, SEQUENCES, SPLITS
from genrec.data.train_counts import write_train_counts
from genrec.errors import InputError

Ints = NDArray[np.int64]


def pick_items(queries: pa.Table, items: int, count: int, seed: int) -> Ints:
    """``count`` of ``items`` item rows, ascending (int64), drawn by ``seed``: first targets of ``queries``.

    Raises:
        InputError: ``count`` is more than half of the items.
    """
    if count > items // 2:
        raise InputError(
            f"got bench.items={count} of {items} items to hold out, wanted half at most; lower bench.items"
        )
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.unique(queries["target"].to_numpy()))
    others = rng.permutation(np.setdiff1d(np.arange(items), targets))
    return np.sort(np.concatenate([targets, others])[:count]).astype(np.int64)


def hold_out(data: Path, held: Ints, out: Path) -> dict[str, Any]:
    """Hold out the item rows ``held`` (M,) of ``data``: write the files listed above into ``out``, and return counts.

    Raises:
        InputError: no train or no valid queries are left.
    """
    items = read_items(data)
    order = np.concatenate([np.setdiff1d(np.arange(items.num_rows), held), held])
    kept, row_of_item_N = items.num_rows - len(held), np.argsort(order)
    ordered = items.take(pa.array(order)).set_column(
        0, ITEMS.field("item"), pa.array(np.arange(len(order), dtype=np.int32))
    )
    counts: dict[str, Any] = {"items": kept, "held": len(held)}
    for split in SPLITS:
        queries = _queries(read_queries(data, split), row_of_item_N, kept)
        if split == "test":
            write_parquet(queries, out / "asked" / "queries" / "test" / "part-00000.parquet")
        queries = queries.filter(pc.less(queries["target"], kept))
        write_parquet(queries, out / "data" / "queries" / split / "part-00000.parquet")
        counts[split] = queries.num_rows
    if not counts["train"] or not counts["valid"]:
        raise InputError(
            f"without {len(held)} items, {counts['train']} train and {counts['valid']} valid queries are left; "
            "hold out fewer items (bench.items)"
        )
    sequences = _sequences(read_sequences(data), row_of_item_N, kept)
    for part in ("data", "asked"):
        write_parquet(sequences, out / part / "sequences" / "part-00000.parquet")
    write_parquet(ordered.slice(kept), out / "held.parquet")
    write_json(counts, out / "data" / "stats.json")
    write_parquet(ordered.slice(0, kept), out / "data" / "items.parquet")
    write_train_counts(out / "data")
    return counts


def _queries(queries: pa.Table, row_of_item_N: Ints, kept: int) -> pa.Table:
    """The queries in new item rows, without held-out items in the histories, and without empty histories."""
    keep_E, bounds = _kept_events(queries["history"], row_of_item_N, kept)
    history = pa.ListArray.from_arrays(bounds, _new_rows(queries["history"], row_of_item_N).filter(keep_E))
    target = pa.array(row_of_item_N[queries["target"].to_numpy()].astype(np.int32))
    context = {name: _kept(queries[name], queries["history"], keep_E, bounds) for name in ("events", "times", "values")}
    for name, column in {"history": history, "target": target, **context}.items():
        index = queries.schema.get_field_index(name)
        queries = queries.set_column(index, queries.schema.field(index), column)
    return queries.filter(pc.greater(pc.list_value_length(queries["history"]), 0))


def _sequences(sequences: pa.Table, row_of_item_N: Ints, kept: int) -> pa.Table:
    """The sequences in new item rows, without the events of held-out items."""
    keep_E, bounds = _kept_events(sequences["items"], row_of_item_N, kept)
    items = pa.ListArray.from_arrays(bounds, _new_rows(sequences["items"], row_of_item_N).filter(keep_E))
    others = ("split", "times", "events", "values")
    lists = {name: _kept(sequences[name], sequences["items"], keep_E, bounds) for name in others}
    users = {name: sequences[name] for name in ("user", "user_id")}
    table = pa.table({**users, "items": items, **lists}, schema=SEQUENCES)
    return table.filter(pc.greater(pc.list_value_length(table["items"]), 0))


def _kept(lists: pa.ChunkedArray, items: pa.ChunkedArray, keep_E: pa.Array, bounds: pa.Array) -> pa.Array:
    """The entries of ``lists`` whose event is kept; a list that is null, as it is where a log has no such column, is
    one of nulls.
    """
    if lists.null_count == len(lists):
        return pa.nulls(len(lists), lists.type)
    if lists.null_count:
        sizes = pc.list_value_length(items).to_pylist()
        rows = [[None] * size if row is None else row for row, size in zip(lists.to_pylist(), sizes, strict=True)]
        lists = pa.chunked_array([pa.array(rows, lists.type)])
    return pa.ListArray.from_arrays(bounds, pc.list_flatten(lists).combine_chunks().filter(keep_E))


def _new_rows(lists: pa.ChunkedArray, row_of_item_N: Ints) -> pa.Array:
    return pa.array(row_of_item_N[pc.list_flatten(lists).to_numpy()].astype(np.int32))


def _kept_events(lists: pa.ChunkedArray, row_of_item_N: Ints, kept: int) -> tuple[pa.Array, pa.Array]:
    """Which events have kept items, (E,) bool, and the offsets of the lists among these events, (lists + 1,) int32."""
    keep_E = row_of_item_N[pc.list_flatten(lists).to_numpy()] < kept
    before_E = np.concatenate([[0], np.cumsum(keep_E)])
    ends = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())])
    return pa.array(keep_E), pa.array(before_E[ends].astype(np.int32))
