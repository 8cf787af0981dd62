"""From vectors to a catalogue: fit on the driver, encode by shards, resolve collisions, look at the result.

Everything lands in one directory: ``quantizer/`` (the fitted quantizer), ``cf/`` (collaborative vectors, when they are
used), ``codes/part-*.parquet`` (what the quantizer gave, one file per item shard), ``sids.parquet`` (item, id, codes:
no two items alike, unless ``sid.collisions=none``), the catalogue's files, ``sid_health.json`` and ``sid_health.html``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from genrec.config import Sid
from genrec.data.files import write_json
from genrec.data.tables import read_items, read_sequences
from genrec.errors import InputError
from genrec.sid.assign import prefix_numbers, refuse_full, refuse_many, resolve
from genrec.sid.catalog import Catalog, save_codes
from genrec.sid.codes import read_codes, write_codes, write_sids
from genrec.sid.health import measure, summary
from genrec.sid.health_page import write_page
from genrec.sid.inputs import collaborative_vectors, fuse
from genrec.sid.published import published_codes, resolve_published
from genrec.sid.quantizers import Quantizer, load_quantizer, make_quantizer
from genrec.sid.quantizers.controls import title_words
from genrec.sid.suffix import add_suffix
from genrec.sid.vectors import Floats, Ints, VectorFiles, check_vectors, shard_path, write_vectors
from genrec.threads import limit_threads

BLOCK = 65536
"""Items read at once, where all are read: keeps one copy of the vectors in memory, not three."""


def fit_quantizer(data: Path, vectors: Path, out: Path, settings: Sid, *, seed: int, threads: int, device: str) -> int:
    """Fit the quantizer and save it under ``out``, unless a killed run has done so; returns N.

    A catalogue larger than ``sid.fit_items`` is fitted on that many of its items, drawn with ``seed``.

    Raises:
        InputError: vectors that do not fit the item table or cannot be quantized, or more items than SIDs.
    """
    items, found = read_items(data).num_rows, len(VectorFiles(vectors))
    if items != found:
        raise InputError(f"{vectors} holds vectors of {found} items, the item table has {items}; embed them again")
    if settings.collisions == "resolve":
        refuse_full(items, settings.level_sizes)
    refuse_many(settings.level_sizes)
    if (out / "quantizer" / "quantizer.json").is_file():
        return items
    if settings.cf_weight > 0:
        _write_factors(data, vectors, out, settings, seed)
    if settings.quantizer == "title":
        words_NL = title_words(read_items(data)["title"].to_pylist(), settings)
        write_vectors(words_NL, 0, shard_path(out / "titles", 0))
    rows = np.random.default_rng(seed).permutation(items)[: settings.fit_items]
    inputs_ND = read_inputs(vectors, out, settings, np.sort(rows))
    limit_threads(threads)
    start = perf_counter()
    quantizer = make_quantizer(settings, seed=seed, threads=threads, device=device)
    measures = quantizer.fit(inputs_ND)
    write_json({**measures, "fit_s": round(perf_counter() - start, 2)}, out / "quantizer" / "fit.json")
    quantizer.save(out / "quantizer")
    return items


def read_inputs(vectors: Path, out: Path, settings: Sid, rows: Any) -> Floats:
    """What is quantized, of the items ``rows`` (ascending): vectors, or the words of the titles, (n, D)."""
    if settings.quantizer == "title":
        return VectorFiles(out / "titles").read()[rows]
    return read_fused(vectors, out, settings, rows)


def read_fused(vectors: Path, out: Path, settings: Sid, rows: Any) -> Floats:
    """Text, collaborative vectors, or both, of the items ``rows`` (ascending), (n, D)."""
    texts, factors = VectorFiles(vectors), VectorFiles(out / "cf") if settings.cf_weight > 0 else None
    width = (texts.width if settings.text_weight > 0 else 0) + (factors.width if factors else 0)
    inputs_ND = np.empty((len(rows), width), np.float32)
    for start in range(0, len(texts), BLOCK):
        low, high = np.searchsorted(rows, (start, start + BLOCK))
        if low < high:
            text_BD = texts.read(start, start + BLOCK)
            check_vectors(text_BD, start)
            inside = rows[low:high] - start
            cf_BD = factors.read(start, start + BLOCK)[inside] if factors else None
            inputs_ND[low:high] = fuse(text_BD[inside], cf_BD, settings.text_weight, settings.cf_weight)
    return inputs_ND


def make_assigner(vectors: Path, out: Path, settings: Sid, threads: int) -> Callable[[int], Mapping[str, Any]]:
    """Load the fitted quantizer once; the result encodes one shard of items and writes its codes."""
    limit_threads(threads)
    quantizer = load_quantizer(out / "quantizer", threads=threads)
    return partial(_encode_shard, vectors=vectors, out=out, settings=settings, quantizer=quantizer)


def finish_quantized(data: Path, vectors: Path, out: Path, settings: Sid, threads: int) -> dict[str, Any]:
    """Settle collisions of the encoded shards as ``sid.collisions`` says, and write all files; returns the metrics.

    Raises:
        InputError: the code files do not fit the item table.
    """
    limit_threads(threads)
    items = read_items(data)
    quantizer = load_quantizer(out / "quantizer", threads=threads)
    before_NL = read_codes(out / "codes", items.num_rows, settings.level_sizes)
    inputs_ND = read_inputs(vectors, out, settings, np.arange(items.num_rows))
    rank_N = np.argsort(np.argsort(items["id"].to_numpy()))
    start = perf_counter()
    codes_NL, sizes = before_NL, settings.level_sizes
    if settings.collisions == "resolve":
        codes_NL = resolve(before_NL, inputs_ND, quantizer, rank_N)
    elif settings.collisions == "suffix":
        codes_NL, sizes = add_suffix(before_NL, sizes, rank_N)
    timing = {
        "fit": json.loads((out / "quantizer" / "fit.json").read_text(encoding="utf-8")),
        "resolve_s": round(perf_counter() - start, 2),
    }
    named = settings.quantizer in ("random", "title")
    if settings.quantizer == "title":
        inputs_ND = read_fused(vectors, out, settings, np.arange(items.num_rows))
    health = measure(before_NL, codes_NL, sizes, read_sequences(data), inputs_ND, None if named else quantizer)
    return _finish(items, codes_NL, health, out) | timing


def finish_published(data: Path, out: Path, settings: Sid) -> dict[str, Any]:
    """Take the SIDs of ``sid.column``, settle collisions (the first item keeps its SID), and write the same files."""
    items = read_items(data)
    before_NL = published_codes(items, settings.column, settings.level_sizes)
    codes_NL, sizes = before_NL, settings.level_sizes
    if settings.collisions == "resolve":
        codes_NL = resolve_published(before_NL, sizes)
    elif settings.collisions == "suffix":
        codes_NL, sizes = add_suffix(before_NL, sizes)
    health = measure(before_NL, codes_NL, sizes, read_sequences(data))
    return _finish(items, codes_NL, health, out)


def _finish(items: pa.Table, codes_NL: Ints, health: dict[str, Any], out: Path) -> dict[str, Any]:
    for warning in health["warnings"]:
        print(f"[assign] warning: {warning}", flush=True)
    write_json(health, out / "sid_health.json")
    write_page(items, codes_NL, health, out / "sid_health.html")
    write_sids(items["id"], codes_NL, out / "sids.parquet")
    if len(np.unique(prefix_numbers(codes_NL, health["level_sizes"]))) == len(codes_NL):
        Catalog(torch.from_numpy(codes_NL), health["level_sizes"]).save(out)
    else:
        save_codes(torch.from_numpy(codes_NL), health["level_sizes"], out)
    return summary(health)


def _encode_shard(shard: int, *, vectors: Path, out: Path, settings: Sid, quantizer: Quantizer) -> Mapping[str, Any]:
    start = shard * settings.shard_items
    rows = np.arange(start, min(start + settings.shard_items, len(VectorFiles(vectors))))
    codes_NL = quantizer.encode(read_inputs(vectors, out, settings, rows))
    write_codes(codes_NL, start, shard_path(out / "codes", shard))
    return {"items": len(codes_NL)}


def _write_factors(data: Path, vectors: Path, out: Path, settings: Sid, seed: int) -> None:
    text_ND = VectorFiles(vectors).read()
    check_vectors(text_ND)
    factors_ND = collaborative_vectors(
        read_sequences(data),
        len(text_ND),
        dims=settings.cf_dims,
        window=settings.cf_window,
        seed=seed,
        text_ND=text_ND,
    )
    for shard, start in enumerate(range(0, len(factors_ND), settings.shard_items)):
        write_vectors(factors_ND[start : start + settings.shard_items], start, shard_path(out / "cf", shard))
