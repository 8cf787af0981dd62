"""The whole of ``assign`` on catalogues that grow, in a process of its own: memory, and processor time per item.

The vectors are those of ``genrec bench assign``, in files; the log has five events to an item. Collaborative factors
are measured apart.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.assign import DIMS, write_vector_files
from benchmarks.harness import Bench, in_process
from benchmarks.scale import Work, in_fresh_process, log_parts
from cluster.artifacts import Artifact
from genrec.config import Config
from genrec.data.files import write_parquet
from genrec.data.tables import ITEMS, SEQUENCES

NEEDS: tuple[str, ...] = ()
SIZES = (100_000, 1_000_000)
EVENTS_PER_ITEM = 5
SETTINGS = {
    "sid.quantizer": "rqkmeans",
    "sid.levels": 4,
    "sid.codebook_size": 256,
    "sid.fit_items": 65_536,
    "sid.iterations": 10,
    "sid.cf_weight": 0.0,
    "sid.fit_workers": 0,
    "compute.threads": 1,
}
TITLES = 997


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """``bench.item_counts`` items of 384 dimensions; 100,000 and a million if there are none."""
    return measure(config, config.bench.item_counts or SIZES, DIMS)


def measure(config: Config, sizes: tuple[int, ...], dims: int) -> Bench:
    """Each part of ``assign`` at each size, and how the time per item grows from the first to the last of them."""
    bench = Bench("assign-scale")
    root = in_process(config, "assign-scale").storage_path
    own = in_process(config).replace(SETTINGS)
    for size in sizes:
        shutil.rmtree(root, ignore_errors=True)
        write_vector_files(root / "vectors", size, dims, config.seed)
        write_data(root / "data", size, config.seed)
        for name, place in PLACES.items():
            found = in_fresh_process(place, own, root)
            bench.figures[f"{name}_us_per_item_{size}"] = 1e6 * found.cpu_seconds / found.handled
            bench.figures[f"{name}_peak_mb_{size}"] = found.peak_mb
        steps = [f"{name}_us_per_item_{size}" for name in ("fit", "encode", "finish")]
        bench.figures[f"assign_us_per_item_{size}"] = sum(bench.figures[step] for step in steps)
    shutil.rmtree(root, ignore_errors=True)
    if len(sizes) > 1:
        for name in ("encode", "finish", "assign", "factors"):
            first, last = (bench.figures[f"{name}_us_per_item_{size}"] for size in (sizes[0], sizes[-1]))
            bench.ratios[f"{name}_time_per_item_last_over_first"] = last / first
    return bench


def write_data(folder: Path, items: int, seed: int) -> None:
    """What ``prepare`` writes of a shop of that many items, as far as ``assign`` reads it."""
    rows = np.arange(items)
    titles = pa.array([f"thing {number} of a kind" for number in range(TITLES)])
    texts = {"title": pa.DictionaryArray.from_arrays(pa.array(rows % TITLES, pa.int32()), titles).cast(pa.string())}
    table = {
        "item": pa.array(rows, pa.int32()),
        "id": pa.array(np.char.add("i", rows.astype(str))),
        **texts,
        "description": texts["title"],
        "brand": texts["title"],
        "categories": pa.nulls(items, pa.list_(pa.string())).fill_null([]),
        "first_seen": pa.nulls(items, pa.int64()),
    }
    write_parquet(pa.table(table).cast(ITEMS), folder / "items.parquet")
    (folder / "sequences").mkdir()
    with pq.ParquetWriter(folder / "sequences" / "part-00000.parquet", SEQUENCES) as file:
        for users_E, items_E, times_E in log_parts(EVENTS_PER_ITEM * items, items, np.random.default_rng(seed)):
            file.write_table(_sequences(users_E, items_E, times_E))


def _sequences(users_E: np.ndarray, items_E: np.ndarray, times_E: np.ndarray) -> pa.Table:
    """Sequences of which all events are train events."""
    users_U, starts_U = np.unique(users_E, return_index=True)
    offsets = pa.array(np.append(starts_U, len(users_E)), pa.int32())
    is_target_E = np.isin(np.arange(len(users_E)), starts_U, invert=True)
    flat = {"items": items_E.astype(np.int32), "split": is_target_E.astype(np.int8), "times": times_E}
    lists = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in flat.items()}
    unknown = {name: pa.nulls(len(users_U), SEQUENCES.field(name).type) for name in ("events", "values")}
    ids = pa.array(users_U.astype(str))
    return pa.table({"user": pa.array(users_U), "user_id": ids, **lists, **unknown}, schema=SEQUENCES)


def _fit(config: Config, root: Path) -> Work:
    from genrec.sid.fit import fit_quantizer

    options: dict[str, Any] = {"seed": config.seed, "threads": 1, "device": "cpu"}
    return lambda: fit_quantizer(root / "data", root / "vectors", root / "out", config.sid, **options)


def _encode(config: Config, root: Path) -> Work:
    from genrec.data.shards import missing_shards
    from genrec.sid.build import make_assigner
    from genrec.sid.vectors import VectorFiles

    items = len(VectorFiles(root / "vectors"))

    def work() -> int:
        encode = make_assigner(root / "vectors", root / "out", config.sid, threads=1)
        for shard in missing_shards([root / "out" / "codes"], items, config.sid.shard_items):
            encode(shard)
        return items

    return work


def _finish(config: Config, root: Path) -> Work:
    from genrec.sid.build import finish_quantized

    return lambda: finish_quantized(root / "data", root / "vectors", root / "out", config.sid, threads=1)["items"]


def _factors(config: Config, root: Path) -> Work:
    from genrec.sid.collaborative import write_factors
    from genrec.sid.inputs import TextFiles

    texts = TextFiles(root / "vectors")

    def work() -> int:
        write_factors(root / "data", texts, root / "factors", config.sid, config.seed)
        return len(texts)

    return work


PLACES = {"fit": _fit, "encode": _encode, "finish": _finish, "factors": _factors}
