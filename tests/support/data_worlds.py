"""Small logs whose answers are known, written as the files that sources read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.stages.prepare import prepare
from genrec.config import Config, load_config
from genrec.data.readers import read_items, read_queries
from genrec.data.sources import open_source
from genrec.data.tables import SPLITS

Row = tuple[str, str, int]


def write_world(folder: Path, log: Sequence[Row] | Mapping[str, Any], items: Any = None) -> Path:
    """items.parquet and interactions.parquet from rows (user, item, time), or from columns as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(log, Mapping):
        log = {name: [row[i] for row in log] for i, name in enumerate(("user_id", "item_id", "timestamp"))}
    if items is None:
        names = sorted({str(item) for item in log["item_id"]})
        items = {"item_id": names, "title": [f"Thing {name}" for name in names]}
    pq.write_table(pa.table(dict(log)), folder / "interactions.parquet", row_group_size=50)
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


def random_log(seed: int = 0, users: int = 40, items: int = 25, events: int = 600, times: int = 300) -> list[Row]:
    """Uneven users and items, many events at the same time, in no order."""
    rng = np.random.default_rng(seed)
    user = (users * rng.random(events) ** 2).astype(int)
    item = (items * rng.random(events) ** 2).astype(int)
    time = rng.integers(1_000_000, 1_000_000 + times, events)
    return [(f"u{u}", f"i{i:02d}", int(t)) for u, i, t in zip(user, item, time, strict=True)]


def config_for(path: Path, *overrides: str) -> Config:
    """Settings to prepare ``path`` in this process."""
    return load_config([], [f"data.path={path}", "compute.data_actors=0", *overrides])


def run_prepare(out: Path, path: Path, *overrides: str) -> Path:
    """Prepare ``path`` into ``out``; the overrides are the config's."""
    config = config_for(path, *overrides)
    out.mkdir(parents=True, exist_ok=True)
    prepare(open_source(config.data), config, out)
    return out


def samples(directory: Path) -> list[tuple[str, str, tuple[str, ...], str]]:
    """All queries as (split, user, history, target) in the source's ids, sorted."""
    ids = read_items(directory)["id"].to_pylist()
    found = []
    for split in SPLITS:
        for row in read_queries(directory, split).to_pylist():
            history = tuple(ids[item] for item in row["history"])
            found.append((split, row["user_id"], history, ids[row["target"]]))
    return sorted(found)


def histories(log: Sequence[Row]) -> dict[str, list[tuple[str, int]]]:
    """Each user's (item, time), oldest first, ties in the log's order; users in order of appearance."""
    users: dict[str, list[tuple[str, int]]] = {}
    for user, item, time in log:
        users.setdefault(user, []).append((item, time))
    return {user: sorted(events, key=lambda event: event[1]) for user, events in users.items()}
