"""From a fitted quantizer to a catalogue: encode shard by shard, resolve collisions, measure the result.

Readable SIDs and published ones need no quantizer, and take a shorter way to the same files.

All files are written to the directory of ``genrec.sid.fit``: ``codes/part-*.parquet`` (the quantizer's codes, one file
per item shard), ``sids.parquet`` (item, id, codes: distinct, unless ``sid.collisions=none``), the catalogue's files,
``sid_health.json`` and ``sid_health.html``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from genrec.config import Sid
from genrec.data.arrow import pc
from genrec.data.files import write_json
from genrec.data.readers import read_item_rows, read_items
from genrec.data.shards import shard_path
from genrec.sid.catalog import VECTORS, Catalog, save_codes
from genrec.sid.codes import read_codes, write_codes, write_sids
from genrec.sid.collaborative import write_factors
from genrec.sid.collisions import resolve
from genrec.sid.distributed.vector_stream import Reader
from genrec.sid.float16_vectors import write_float16_vectors
from genrec.sid.health import measure, summary
from genrec.sid.health_page import write_page
from genrec.sid.inputs import FusedFiles, TextFiles, open_inputs
from genrec.sid.published import published_codes, resolve_published
from genrec.sid.quantizers import Quantizer, load_quantizer
from genrec.sid.readable import SidNames, number_items
from genrec.sid.suffix import add_suffix
from genrec.sid.train_events import TrainEvents
from genrec.sid.vectors import Ints, Longs, VectorFiles
from genrec.threads import limit_threads

LOG = logging.getLogger(__name__)


def make_assigner(vectors: Path, out: Path, settings: Sid, threads: int) -> Callable[[int], Mapping[str, Any]]:
    """Load the fitted quantizer; returns a function that encodes one shard of items and writes its codes."""
    limit_threads(threads)
    quantizer = load_quantizer(out / "quantizer", threads=threads)
    inputs = open_inputs(vectors, out, settings)
    return partial(_encode_shard, inputs=inputs, out=out, settings=settings, quantizer=quantizer)


def finish_quantized(data: Path, vectors: Path, out: Path, settings: Sid, threads: int) -> dict[str, Any]:
    """Resolve collisions as ``sid.collisions`` says, and write all files; returns the metrics.

    Raises:
        InputError: the code files do not fit the item table.
    """
    limit_threads(threads)
    ids = read_items(data, ["id"])["id"]
    quantizer = load_quantizer(out / "quantizer", threads=threads)
    before_NL = read_codes(out / "codes", len(ids), settings.level_sizes)
    inputs, rank_N = open_inputs(vectors, out, settings), _rank(ids)
    start = perf_counter()
    codes_NL, sizes = before_NL, settings.level_sizes
    if settings.collisions == "resolve":
        codes_NL = resolve(before_NL, inputs, quantizer, rank_N)
    elif settings.collisions == "suffix":
        codes_NL, sizes = add_suffix(before_NL, sizes, rank_N)
    timing = {
        "fit": json.loads((out / "quantizer" / "fit.json").read_text(encoding="utf-8")),
        "resolve_s": round(perf_counter() - start, 2),
    }
    hashed = settings.quantizer in ("random", "title")
    shown = FusedFiles(vectors, out, settings) if settings.quantizer == "title" else inputs
    health = measure(before_NL, codes_NL, sizes, TrainEvents.read(data), shown, None if hashed else quantizer)
    kept = None if settings.quantizer == "title" else inputs
    return _finish(data, ids, codes_NL, health, out, kept) | timing


def finish_published(data: Path, out: Path, settings: Sid) -> dict[str, Any]:
    """Take SIDs from ``sid.column``, resolve collisions (the first item keeps its SID), and write the same files.

    Raises:
        InputError: the column does not hold SIDs of these levels, or there are more items than SIDs.
    """
    items = read_items(data)
    before_NL = published_codes(items, settings.column, settings.level_sizes)
    codes_NL, sizes = before_NL, settings.level_sizes
    if settings.collisions == "resolve":
        codes_NL = resolve_published(before_NL, sizes)
    elif settings.collisions == "suffix":
        codes_NL, sizes = add_suffix(before_NL, sizes)
    health = measure(before_NL, codes_NL, sizes, TrainEvents.read(data))
    return _finish(data, items["id"], codes_NL, health, out)


def finish_readable(data: Path, vectors: Path, out: Path, settings: Sid, *, seed: int, threads: int) -> dict[str, Any]:
    """SIDs of names (``sid.quantizer=taxonomy``, ``title_words``); writes the same files and ``sid_names.json``.

    Raises:
        InputError: the items have no names, more of them have the same names than a level may have codes, or the
            vectors do not fit the item table.
    """
    limit_threads(threads)
    items = read_items(data)
    VectorFiles(vectors).require(items.num_rows)
    if settings.cf_weight > 0:
        write_factors(data, TextFiles(vectors), out, settings, seed)
    inputs = open_inputs(vectors, out, settings)
    start = perf_counter()
    names = SidNames.learn(items, settings)
    learned = perf_counter()
    path_Nl = names.encode(items)
    codes_NL, sizes = number_items(path_Nl, names.level_sizes, _rank(items["id"]))
    timing = {"fit": {"fit_s": round(learned - start, 2)}, "resolve_s": round(perf_counter() - learned, 2)}
    names.save(out)
    health = measure(path_Nl, codes_NL, sizes, TrainEvents.read(data), inputs)
    return _finish(data, items["id"], codes_NL, health, out, inputs) | timing


def _rank(ids: pa.ChunkedArray) -> Longs:
    """The place (N,) of each id in their alphabetical order."""
    order_N = pc.sort_indices(ids).to_numpy().astype(np.int64)
    rank_N = np.empty_like(order_N)
    rank_N[order_N] = np.arange(len(order_N))
    return rank_N


def _finish(
    data: Path, ids: pa.ChunkedArray, codes_NL: Ints, health: dict[str, Any], out: Path, vectors: Reader | None = None
) -> dict[str, Any]:
    for warning in health["warnings"]:
        LOG.warning(warning)
    write_json(health, out / "sid_health.json")
    write_page(partial(read_item_rows, data), codes_NL, health, out / "sid_health.html")
    write_sids(ids, codes_NL, out / "sids.parquet")
    if health["collisions_after"]["items"] == 0:
        if vectors is not None:
            write_float16_vectors(vectors, out / VECTORS)
        Catalog(torch.from_numpy(codes_NL), health["level_sizes"]).save(out)
    else:
        save_codes(torch.from_numpy(codes_NL), health["level_sizes"], out)
    return summary(health)


def _encode_shard(shard: int, *, inputs: Reader, out: Path, settings: Sid, quantizer: Quantizer) -> Mapping[str, Any]:
    start = shard * settings.shard_items
    codes_NL = quantizer.encode(inputs.read(range(start, min(start + settings.shard_items, len(inputs)))))
    write_codes(codes_NL, start, shard_path(out / "codes", shard))
    return {"items": len(codes_NL)}
