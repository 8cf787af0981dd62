"""The data directory of an update: that of the run before, with new events and with the items inserted so far."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from genrec.data.arrow import pc
from genrec.data.files import link_file, write_json, write_parquet
from genrec.data.new_events import Appended, append_events
from genrec.data.readers import query_files, read_items, read_queries, read_sequences, read_stats
from genrec.data.tables import SPLITS
from genrec.data.train_counts import write_train_counts
from genrec.inference.catalog_view import CatalogView
from genrec.inference.run_record import RunRecord

NEW = "part-new"
"""Begin of the names of query files that updates added."""


def appended(run: RunRecord, log: pa.Table, view: CatalogView) -> Appended:
    """The run's sequences with the events of ``log``, and the new queries; errors of ``append_events``."""
    ids = (read_queries(run.data, split, ["id"])["id"] for split in SPLITS)
    return append_events(
        read_sequences(run.data),
        log,
        view.rows,
        absent=view.removed,
        max_history=run.config.data.max_history,
        first_query=max((pc.max(one).as_py() or 0) for one in ids) + 1,
        held_out=run.config.learning.update.held_out,
        seed=run.config.seed,
    )


def write_update_data(run: RunRecord, new: Appended, view: CatalogView, added: list[pa.Table], out: Path) -> None:
    """Write the data directory; query files of before are linked where the file system can."""
    for split in SPLITS:
        files = query_files(run.data, split)
        for file in files:
            link_file(file, out / "queries" / split / file.name)
        fresh = {"train": new.train, "valid": new.valid}.get(split)
        if fresh is not None and fresh.num_rows:
            write_parquet(fresh, out / "queries" / split / f"{NEW}-{len(files):05d}.parquet")
    write_parquet(new.sequences, out / "sequences" / "part-00000.parquet")
    write_parquet(_items(read_items(run.data), view, added), out / "items.parquet")
    write_train_counts(out)
    write_json(_stats(read_stats(run.data), new), out / "stats.json")


def _items(items: pa.Table, view: CatalogView, added: list[pa.Table]) -> pa.Table:
    """The item table with the inserted items that it lacks, in row order."""
    items = _with_fractions(items)
    inserted = pa.concat_tables(added) if added else items.slice(0, 0)
    fresh = inserted.slice(items.num_rows - view.catalog.assigned)
    if not fresh.num_rows:
        return items
    columns: dict[str, Any] = {}
    for field in items.schema:
        if field.name == "item":
            columns[field.name] = pa.array(range(items.num_rows, items.num_rows + fresh.num_rows), pa.int32())
        elif field.name in fresh.column_names:
            columns[field.name] = fresh[field.name].cast(field.type)
        else:
            columns[field.name] = pa.nulls(fresh.num_rows, field.type)
    return pa.concat_tables([items, pa.table(columns, schema=items.schema)])


def _with_fractions(items: pa.Table) -> pa.Table:
    """The item table with prices that may be fractions: those of inserted items are, where the shop's were whole."""
    place = items.schema.get_field_index("price")
    if place < 0 or not pa.types.is_integer(items.schema.field(place).type):
        return items
    return items.set_column(place, "price", items["price"].cast(pa.float64()))


def _stats(stats: Mapping[str, Any], new: Appended) -> dict[str, Any]:
    events = pc.sum(pc.list_value_length(new.sequences["items"])).as_py()
    counts = {"users": new.sequences.num_rows, "interactions": events}
    return {**stats, **counts, **{split: stats[split] + new.counts[split] for split in ("train", "valid")}}
