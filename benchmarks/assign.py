"""Semantic IDs of a million items, compared with bare faiss: throughput, memory, how the cost per item grows."""

from __future__ import annotations

import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss  # its thread pool must be loaded to be limited
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Bench, interleaved_timings, ratio, timed
from cluster.artifacts import Artifact
from genrec.config import Config, Sid
from genrec.sid.quantizers import Quantizer
from genrec.sid.vectors import Floats
from genrec.threads import limit_threads

NEEDS: tuple[str, ...] = ()
SIZES, DIMS, FIT_ITEMS = (10_000, 100_000, 1_000_000), 384, 65_536
TIMED_ITEMS = 300_000
"""A smaller catalogue is encoded several times, until this many items have been."""


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """10,000 to a million items of 384 dimensions, 3 levels of 256 codes, on one core."""
    return measure(config, SIZES, DIMS, 256)


def measure(config: Config, sizes: Sequence[int], dims: int, codes: int) -> Bench:
    """Fit, encode by shards, resolve collisions and build the trie at each size.

    The vectors are made up: clusters on a curved surface of 16 dimensions, with noise. Every shard is encoded by genrec
    (read, quantize, write) and by faiss (flat search, reconstruct, subtract; in memory), in turn.
    """
    limit_threads(1)
    bench = Bench("assign")
    work = config.storage_path / "bench" / "assign"
    settings = Sid(codebook_size=codes, fit_items=FIT_ITEMS, iterations=10)
    for size in sizes:
        shutil.rmtree(work, ignore_errors=True)
        write_vector_files(work / "vectors", size, dims, config.seed)
        _measure(bench, work, size, settings, config.seed)
    shutil.rmtree(work, ignore_errors=True)
    small, large = _label(sizes[0]), _label(sizes[-1])
    figures = bench.figures
    bench.ratios["assign_vs_faiss"] = figures[f"faiss_us_per_item_{large}"] / figures[f"encode_us_per_item_{large}"]
    bench.ratios["cost_1m_over_10k"] = figures[f"encode_us_per_item_{large}"] / figures[f"encode_us_per_item_{small}"]
    bench.ratios["trie_bytes_per_item"] = figures[f"trie_bytes_per_item_{large}"]
    figures["peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if _in_bytes() else 2**20)
    return bench


def _in_bytes() -> bool:
    return sys.platform == "darwin"


def _label(size: int) -> str:
    return f"{size // 1_000_000}m" if size >= 1_000_000 else f"{size // 1000}k"


def write_vector_files(folder: Path, size: int, dims: int, seed: int) -> None:
    """Made-up vectors (size, dims): clusters on a curved surface of 16 dimensions, with noise."""
    from genrec.data.shards import shard_path
    from genrec.sid.vectors import write_vectors

    rng, step = np.random.default_rng(seed), Sid().shard_items
    centres_C16 = rng.standard_normal((max(64, size // 500), 16))
    first, second = rng.standard_normal((16, 64)) / 2.7, rng.standard_normal((64, dims)) / 8
    weight_C = np.arange(1, len(centres_C16) + 1) ** -0.7
    for shard, start in enumerate(range(0, size, step)):
        rows = min(step, size - start)
        at_N16 = centres_C16[rng.choice(len(centres_C16), rows, p=weight_C / weight_C.sum())]
        at_N16 = at_N16 + 0.35 * rng.standard_normal(at_N16.shape)
        vectors_ND = np.tanh(at_N16 @ first) @ second + 0.02 * rng.standard_normal((rows, dims))
        vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        write_vectors(vectors_ND.astype(np.float32), start, shard_path(folder, shard))


def _measure(bench: Bench, work: Path, size: int, settings: Sid, seed: int) -> None:
    from genrec.sid.quantizers import make_quantizer
    from genrec.sid.vectors import VectorFiles

    label, vectors = _label(size), VectorFiles(work / "vectors")
    sample_ND = vectors.read(0, min(size, FIT_ITEMS))
    quantizer = make_quantizer(settings, seed=seed, threads=1)
    fits = interleaved_timings(
        {"genrec": lambda: quantizer.fit(sample_ND), "faiss": lambda: _faiss_fit(sample_ND, settings, seed)}, rounds=1
    )
    bench.figures[f"fit_s_{label}"] = statistics.median(fits["genrec"])
    bench.ratios["fit_vs_faiss"] = ratio(fits["genrec"], fits["faiss"])
    quantizer.save(work / "quantizer")
    _encode(bench, work, label, settings)
    _finish(bench, work, label, size, quantizer)


def _faiss_fit(vectors_ND: Floats, settings: Sid, seed: int) -> None:
    """Residual k-means as a user of faiss would write it."""
    left_ND = vectors_ND.copy()
    for level, codes in enumerate(settings.level_sizes):
        trainer: Any = faiss.Kmeans(vectors_ND.shape[1], codes, niter=settings.iterations, seed=seed + level + 1)
        trainer.train(left_ND)
        left_ND -= trainer.centroids[trainer.index.search(left_ND, 1)[1][:, 0]]


def _encode(bench: Bench, work: Path, label: str, settings: Sid) -> None:
    """Every shard by both in turn, genrec from file to file, faiss from memory to memory."""
    from genrec.sid.build import make_assigner
    from genrec.sid.quantizers import read_model
    from genrec.sid.vectors import VectorFiles

    vectors = VectorFiles(work / "vectors")
    encode = make_assigner(work / "vectors", work, settings, threads=1)
    search = _faiss_search(list(read_model(work / "quantizer")[1].values()))
    seconds: dict[str, list[float]] = {"encode": [], "faiss": []}
    for _ in range(max(1, TIMED_ITEMS // len(vectors))):
        turn = {"encode": 0.0, "faiss": 0.0}
        for shard, start in enumerate(range(0, len(vectors), settings.shard_items)):
            turn["encode"] += timed(lambda shard=shard: encode(shard))
            part_ND = vectors.read(start, start + settings.shard_items)
            turn["faiss"] += timed(lambda part_ND=part_ND: search(part_ND))
        for name, value in turn.items():
            seconds[name].append(value)
    for name, values in seconds.items():
        bench.figures[f"{name}_us_per_item_{label}"] = statistics.median(values) / len(vectors) * 1e6


def _faiss_search(codebooks: Sequence[Floats]) -> Callable[[Floats], list[NDArray[np.int64]]]:
    indexes = [faiss.IndexFlatL2(codebook_KD.shape[1]) for codebook_KD in codebooks]
    for index, codebook_KD in zip(indexes, codebooks, strict=True):
        index.add(codebook_KD)

    def search(part_ND: Floats) -> list[NDArray[np.int64]]:
        left_ND, codes = part_ND.copy(), list[NDArray[np.int64]]()
        for index in indexes:
            codes.append(index.search(left_ND, 1)[1][:, 0])
            left_ND -= index.reconstruct_batch(codes[-1])
        return codes

    return search


def _finish(bench: Bench, work: Path, label: str, size: int, quantizer: Quantizer) -> None:
    import torch

    from genrec.sid.catalog import Catalog
    from genrec.sid.codes import read_codes
    from genrec.sid.collisions import prefix_numbers, resolve
    from genrec.sid.inputs import TextFiles
    from genrec.sid.trie import Trie

    sizes, figures = quantizer.level_sizes, bench.figures
    before_NL = read_codes(work / "codes", size, sizes)
    figures[f"collisions_{label}"] = 1 - len(np.unique(prefix_numbers(before_NL, sizes))) / size
    vectors = TextFiles(work / "vectors")
    start = time.perf_counter()
    codes_NL = torch.from_numpy(resolve(before_NL, vectors, quantizer))
    figures[f"resolve_us_per_item_{label}"] = (time.perf_counter() - start) / size * 1e6
    figures[f"trie_build_s_{label}"] = timed(lambda: Trie.from_codes(codes_NL, sizes))
    catalog = Catalog(codes_NL, sizes)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in catalog.trie.tensors.values())
    figures[f"trie_bytes_per_item_{label}"] = stored / size
    catalog.save(work / "catalog")
    figures[f"catalog_load_s_{label}"] = timed(lambda: Catalog.load(work / "catalog"))
