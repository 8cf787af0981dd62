"""A small catalogue with vectors and a log, and what ``assign`` makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import Sid
from genrec.data.shards import missing_shards, shard_path
from genrec.data.tables import ITEMS, SEQUENCES
from genrec.sid.build import finish_quantized, make_assigner
from genrec.sid.fit import fit_quantizer
from genrec.sid.vectors import write_vectors

SETTINGS = Sid(levels=3, codebook_size=8, shard_items=50, iterations=5)
N = 120


def sequences(*users: list[tuple[int, int]]) -> pa.Table:
    """One row per user from (item, split code) events."""
    rows = [
        {
            "user": user,
            "user_id": str(user),
            "items": [item for item, _ in events],
            "split": [split for _, split in events],
            "times": list(range(len(events))),
            "events": None,
            "values": None,
        }
        for user, events in enumerate(users)
    ]
    return pa.Table.from_pylist(rows, schema=SEQUENCES)


def sid_world(directory: Path) -> Path:
    """120 items in 6 groups: text vectors near those of their group, users who stay in one group; vectors in two files.

    Writes ``vectors`` and ``data`` (items, sequences) as ``embed`` and ``prepare`` do.
    """
    rng = np.random.default_rng(0)
    group = np.arange(N) % 6
    points = (np.eye(6, 16)[group] * 3 + 0.2 * rng.standard_normal((N, 16))).astype(np.float32)
    points[::10] = points[0]
    for shard in range(2):
        write_vectors(points[shard * 60 : shard * 60 + 60], shard * 60, shard_path(directory / "vectors", shard))
    table = {
        "item": pa.array(range(N), pa.int32()),
        "id": [f"sku{row:03}" for row in range(N)],
        "title": [f"<b>thing {row}</b>" for row in range(N)],
        "description": [""] * N,
        "brand": [""] * N,
        "categories": [["all", f"group {g}"] for g in group],
        "first_seen": pa.nulls(N, pa.int64()),
    }
    items = pa.table(table).cast(ITEMS).append_column("published", pa.array([["<a_1>", f"<b_{g}>"] for g in group]))
    (directory / "data" / "sequences").mkdir(parents=True)
    pq.write_table(items, directory / "data" / "items.parquet")
    walks = [[(int(i), 1) for i in rng.choice(np.flatnonzero(group == g), 6)] for g in list(range(6)) * 20]
    pq.write_table(sequences(*walks), directory / "data" / "sequences" / "part-00000.parquet")
    return directory


def build(world: Path, out: Path, settings: Sid = SETTINGS, kill_after: int | None = None) -> dict[str, Any]:
    """What ``assign`` does, in this process; with ``kill_after`` it stops after that number of shards, with {}."""
    data, vectors = world / "data", world / "vectors"
    items = fit_quantizer(data, vectors, out, settings, seed=0, threads=1, device="cpu")
    work = make_assigner(vectors, out, settings, 1)
    for shard in missing_shards([out / "codes"], items, settings.shard_items)[:kill_after]:
        work(shard)
    return {} if kill_after else finish_quantized(data, vectors, out, settings, 1)
