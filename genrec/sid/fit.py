"""Fitting the quantizer of a catalogue, in one process or by several workers: from text vectors to ``quantizer/``.

The same directory gets ``cf/`` (collaborative vectors, if they are used) and, for ``title``, ``titles/``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

from genrec.config.sid import VQ_SHARES, Sid
from genrec.data.files import write_json
from genrec.data.readers import count_items, read_items
from genrec.data.shards import shard_path
from genrec.errors import InputError
from genrec.sid.collaborative import refuse_wide, write_factors
from genrec.sid.distributed.collectives import ProcessGroup
from genrec.sid.distributed.vector_stream import Stream
from genrec.sid.inputs import TextFiles, open_inputs
from genrec.sid.prefixes import refuse_full, refuse_many
from genrec.sid.quantizers import Quantizer, make_quantizer
from genrec.sid.quantizers.base import refuse_few
from genrec.sid.quantizers.controls import title_words
from genrec.sid.vectors import Longs, VectorFiles, write_vectors
from genrec.threads import limit_threads


def require_items(items: int, settings: Sid) -> None:
    """Refuse numbers of items that a quantizer with these settings cannot give SIDs, before any vector is made.

    Raises:
        InputError: fewer items than codes, or more than SIDs, or too few for the collaborative factors.
    """
    if settings.collisions == "resolve":
        if settings.quantizer == "vq" and items > settings.level_sizes[0]:
            raise InputError(f"got {items} items and {settings.level_sizes[0]} codes: {VQ_SHARES}")
        refuse_full(items, settings.level_sizes)
    refuse_many(settings.level_sizes)
    refuse_few(min(items, settings.fit_limit or items), settings.level_sizes)
    if settings.cf_weight > 0:
        refuse_wide(settings.cf_dims, items)


def prepare_fit(data: Path, vectors: Path, out: Path, settings: Sid, seed: int) -> int:
    """Check the inputs, and write collaborative vectors or title hashes if they are quantized; returns N.

    Raises:
        InputError: vectors that do not fit the item table, or as ``require_items``.
    """
    items = count_items(data)
    VectorFiles(vectors).require(items)
    require_items(items, settings)
    if settings.cf_weight > 0 and not is_fitted(out):
        write_factors(data, TextFiles(vectors), out, settings, seed)
    if settings.quantizer == "title" and not is_fitted(out):
        words_NL = title_words(read_items(data, ["title"])["title"].to_pylist(), settings)
        write_vectors(words_NL, 0, shard_path(out / "titles", 0))
    return items


def is_fitted(out: Path) -> bool:
    """Whether ``out`` holds a fitted quantizer."""
    return (out / "quantizer" / "quantizer.json").is_file()


def fit_rows(items: int, settings: Sid, seed: int) -> range | Longs:
    """The item rows that the quantizer learns from, ascending: all, or ``sid.fit_items`` of them drawn by ``seed``."""
    most = settings.fit_limit
    if most is None or most >= items:
        return range(items)
    return np.sort(np.random.default_rng(seed).permutation(items)[:most])


def fit_quantizer(data: Path, vectors: Path, out: Path, settings: Sid, *, seed: int, threads: int, device: str) -> int:
    """Fit the quantizer in this process and save it under ``out``, unless it is there already; returns N.

    Raises:
        InputError: as ``prepare_fit``, or for vectors that cannot be quantized.
    """
    items = prepare_fit(data, vectors, out, settings, seed)
    if not is_fitted(out):
        limit_threads(threads)
        inputs_ND = open_inputs(vectors, out, settings).read(fit_rows(items, settings, seed))
        quantizer = make_quantizer(settings, seed=seed, threads=threads, device=device)
        _save(quantizer, lambda: quantizer.fit(inputs_ND), out)
    return items


def fit_share(vectors: Path, out: Path, settings: Sid, group: ProcessGroup, *, seed: int, threads: int) -> None:
    """Fit the quantizer as one rank of ``group``; rank 0 saves it under ``out``.

    Raises:
        InputError: on every rank, for vectors that cannot be quantized.
    """
    limit_threads(threads)
    inputs = open_inputs(vectors, out, settings)
    rows = fit_rows(len(inputs), settings, seed)
    stream = Stream(inputs, rows, rank=group.rank, workers=group.size, seed=seed)
    quantizer = make_quantizer(settings, seed=seed, threads=threads, device=group.device)
    _save(quantizer, lambda: quantizer.fit_parallel(stream, group), out if group.rank == 0 else None)


def _save(quantizer: Quantizer, fit: Callable[[], dict[str, float]], out: Path | None) -> None:
    start = perf_counter()
    measures = fit()
    if out is not None:
        write_json({**measures, "fit_s": round(perf_counter() - start, 2)}, out / "quantizer" / "fit.json")
        quantizer.save(out / "quantizer")
