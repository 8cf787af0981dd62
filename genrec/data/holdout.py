"""A data directory without some of its items: what it would have been before they existed, and who asks for them.

    data/           a data directory of the other items: without the held-out ones in its log, histories and targets
    held.parquet    the held-out items, columns of the item table
    asked/          all test queries whose history is not empty then (as ``queries/test``), those for held-out items too

Items are counted anew: the others first, in their order, then the held-out ones in theirs, which are the rows that a
live insert of ``held.parquet`` gives them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.data.arrow import pc
from genrec.data.files import write_json, write_parquet
from genrec.data.tables import ITEMS, QUERIES, SEQUENCES, SPLITS, read_items, read_queries, read_sequences
from genrec.errors import InputError

Ints = NDArray[np.int64]


def pick_items(asked: pa.Table, items: int, count: int, seed: int) -> Ints:
    """``count`` item rows, ascending, drawn with ``seed``: targets of the queries ``asked``, then any others.

    Raises:
        InputError: more than half of the ``items`` items.
    """
    if count > items // 2:
        raise InputError(
            f"bench.items={count} of {items} items are to be held out, half at most; set bench.items lower"
        )
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.unique(asked["target"].to_numpy()))
    others = rng.permutation(np.setdiff1d(np.arange(items), targets))
    return np.sort(np.concatenate([targets, others])[:count]).astype(np.int64)


def hold_out(data: Path, held: Ints, out: Path) -> dict[str, Any]:
    """Write what the module's text names into ``out``, without the item rows ``held`` of ``data``; returns counts.

    Raises:
        InputError: nothing is left to train or to validate on.
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
            f"without {len(held)} items {counts['train']} train and {counts['valid']} valid queries are left"
        )
    write_parquet(
        _sequences(read_sequences(data), row_of_item_N, kept), out / "data" / "sequences" / "part-00000.parquet"
    )
    write_parquet(ordered.slice(kept), out / "held.parquet")
    write_json(counts, out / "data" / "stats.json")
    write_parquet(ordered.slice(0, kept), out / "data" / "items.parquet")
    return counts


def _queries(queries: pa.Table, row_of_item_N: Ints, kept: int) -> pa.Table:
    """In new rows, the held-out items taken out of the histories; queries without a history are left out."""
    keep_E, bounds = _kept_events(queries["history"], row_of_item_N, kept)
    history = pa.ListArray.from_arrays(bounds, _new_rows(queries["history"], row_of_item_N).filter(keep_E))
    target = pa.array(row_of_item_N[queries["target"].to_numpy()].astype(np.int32))
    for name, column in (("history", history), ("target", target)):
        queries = queries.set_column(queries.schema.get_field_index(name), QUERIES.field(name), column)
    return queries.filter(pc.greater(pc.list_value_length(queries["history"]), 0))


def _sequences(sequences: pa.Table, row_of_item_N: Ints, kept: int) -> pa.Table:
    """In new rows, without the events of held-out items; ``events`` and ``values`` are not kept."""
    keep_E, bounds = _kept_events(sequences["items"], row_of_item_N, kept)
    flat = {
        "items": _new_rows(sequences["items"], row_of_item_N),
        **{name: pc.list_flatten(sequences[name]).combine_chunks() for name in ("split", "times")},
    }
    lists = {name: pa.ListArray.from_arrays(bounds, column.filter(keep_E)) for name, column in flat.items()}
    absent = {name: pa.nulls(sequences.num_rows, SEQUENCES.field(name).type) for name in ("events", "values")}
    users = {name: sequences[name] for name in ("user", "user_id")}
    table = pa.table({**users, **lists, **absent}, schema=SEQUENCES)
    return table.filter(pc.greater(pc.list_value_length(table["items"]), 0))


def _new_rows(lists: pa.ChunkedArray, row_of_item_N: Ints) -> pa.Array:
    return pa.array(row_of_item_N[pc.list_flatten(lists).to_numpy()].astype(np.int32))


def _kept_events(lists: pa.ChunkedArray, row_of_item_N: Ints, kept: int) -> tuple[pa.Array, pa.Array]:
    """Which events are of kept items, (E,), and the bounds of each list among these."""
    keep_E = row_of_item_N[pc.list_flatten(lists).to_numpy()] < kept
    before_E = np.concatenate([[0], np.cumsum(keep_E)])
    ends = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())])
    return pa.array(keep_E), pa.array(before_E[ends].astype(np.int32))
