"""How well is a new item found before anything is trained on it? Items are held out, and inserted into the catalogue.

``bench.items`` items are taken out of the catalogue, the log and all histories; SIDs are assigned to the others and a
policy is trained on them. Then the same policy answers the test queries, with the same histories, three times: from
the catalogue as assigned, with the held-out items at their nearest free SIDs, and with them at random ones; each time
alone, and with ItemKNN, untuned, on the nodes (``_itemknn``).
Everything lies under ``<storage>/bench/insert``, artifact by artifact, so a killed run continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Bench, in_process
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.batch_inference import predict
from cluster.pipeline import run_stage
from cluster.policy_predictor import PRIOR_WEIGHT
from genrec.config import Config
from genrec.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from genrec.metrics import IntArray
    from genrec.sid.catalog import Catalog
    from genrec.sid.vectors import Floats

DIRECTORY = "insert"
NEEDS = ("prepare", "embed")
REDUCED = {"prepare": "data", "embed": "vectors"}
"""Where the reduced data lie that stand for the artifacts of these stages."""


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """HR of the queries for held-out items, and of the others, before and after the insert; also with ItemKNN.

    Raises:
        InputError: published SIDs, which cannot place a new item, or more held-out items than half.
    """
    if config.sid.quantizer == "given":
        raise InputError("sid.quantizer=given cannot place a new item; choose another sid.quantizer for this benchmark")
    config = in_process(config, DIRECTORY)
    whole = [artifacts[name] for name in NEEDS]
    held = Recipe("reduced", {"items": config.bench.items, "seed": config.seed}, (__name__,), whole)
    reduced = make_artifact(config, held, partial(_hold_out, config, *(artifact.path for artifact in whole)))
    inputs = {name: replace(reduced, path=reduced.path / part) for name, part in REDUCED.items()}
    catalog = run_stage(config, "assign", inputs)
    policy = run_stage(config, "sft", {**inputs, "assign": catalog})
    settings = {
        "width": config.decode.width,
        "fields": config.embed.fields,
        "bootstrap": config.evaluation.bootstrap,
        "seed": config.seed,
    }
    recipe = Recipe("insert", settings, (__name__,), [reduced, catalog, policy])
    made = make_artifact(config, recipe, partial(_measure, config, reduced.path, catalog.path, policy.path))
    return Bench(DIRECTORY, made.metrics["figures"], made.metrics["ratios"])


def _hold_out(config: Config, data: Path, vectors: Path, out: Path) -> Mapping[str, Any]:
    """The reduced data directory (``genrec.data.holdout``), and the vectors of its items and of those held out."""
    import numpy as np

    from genrec.data.holdout import hold_out, pick_items
    from genrec.data.readers import read_queries
    from genrec.data.shards import shard_path
    from genrec.sid.vectors import VectorFiles, write_vectors

    vectors_ND = VectorFiles(vectors).read()
    held = pick_items(read_queries(data, "test"), len(vectors_ND), config.bench.items, config.seed)
    write_vectors(np.delete(vectors_ND, held, axis=0), 0, shard_path(out / "vectors", 0))
    write_vectors(vectors_ND[held], 0, shard_path(out / "held_vectors", 0))
    return hold_out(data, held, out)


class PrecomputedEncoder:
    """Stands for a text encoder (``Encoder`` protocol) where the vectors (M, D) of all M texts are known, in order."""

    def __init__(self, vectors_MD: Floats) -> None:
        self._vectors_MD = vectors_MD

    def encode(self, texts: Sequence[str]) -> Floats:
        """The vectors (M, D) of all M texts."""
        assert len(texts) == len(self._vectors_MD)
        return self._vectors_MD


def _measure(config: Config, reduced: Path, assigned: Path, policy: Path, out: Path) -> Mapping[str, Any]:
    from genrec.baselines.itemknn import KnnSettings
    from genrec.data.readers import read_queries
    from genrec.data.train_counts import read_train_counts
    from genrec.inference.batch import KnnPrior, own_answering
    from genrec.sid.catalog import Catalog

    catalog, nearest = Catalog.load(assigned), _insert_nearest(config, reduced, assigned, out)
    vectors_NF = Catalog.load(nearest).vectors_NF
    catalogs = {
        "absent": assigned,
        "nearest": nearest,
        "random": _insert_random(catalog, vectors_NF, reduced, config.seed, out),
    }
    mask_seen = read_train_counts(reduced / "data", len(catalog)).mask_seen
    own = own_answering(config)
    ways = {"": own, "_itemknn": replace(own, prior_weight=PRIOR_WEIGHT)}
    ranked: dict[str, IntArray] = {}
    for name, path in catalogs.items():
        answers = predict(
            config,
            reduced / "asked",
            path,
            policy,
            out / "answers" / name,
            {f"own{way}": answering for way, answering in ways.items()},
            mask_seen=mask_seen,
            prior=KnnPrior(KnnSettings(), mask_seen),
            label=name,
        )
        ranked |= {f"{name}{way}": answers[f"own{way}"].items_QK for way in ways}
    targets_Q = read_queries(reduced / "asked", "test")["target"].to_numpy().astype("int64")
    return figures(ranked, targets_Q, len(catalog), config)


def _insert_nearest(config: Config, reduced: Path, assigned: Path, out: Path) -> Path:
    """An insert as by ``workflows.catalog insert``, with the text vectors that are known."""
    import pyarrow.parquet as pq

    from genrec.sid import catalog_updates
    from genrec.sid.vectors import VectorFiles

    items = pq.ParquetFile(reduced / "held.parquet").read()
    held_MD = VectorFiles(reduced / "held_vectors").read()
    catalog_updates.insert(
        assigned,
        out / "live",
        items,
        lambda: PrecomputedEncoder(held_MD),
        vectors=reduced / "vectors",
        embed=config.embed,
    )
    return catalog_updates.current(assigned, out / "live")


def _insert_random(catalog: Catalog, vectors_NF: Tensor | None, reduced: Path, seed: int, out: Path) -> Path:
    """The same items and vectors (N, F) at SIDs drawn at random from all free ones: the control."""
    import math

    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from genrec.sid.catalog import Catalog
    from genrec.sid.collisions import prefix_codes, prefix_numbers

    count, sizes = pq.read_metadata(reduced / "held.parquet").num_rows, catalog.level_sizes
    taken = set(prefix_numbers(catalog.codes_NL.numpy().astype(np.int32), sizes).tolist())
    rng, total, drawn = np.random.default_rng(seed), math.prod(sizes), dict[int, None]()
    while len(drawn) < count:
        number = int(rng.integers(total))
        if number not in taken:
            drawn[number] = None
    codes_ML = prefix_codes(np.array(list(drawn)), sizes)
    codes_NL = torch.cat([catalog.codes_NL, torch.from_numpy(codes_ML).long()])
    Catalog(codes_NL, sizes, grown_from=[len(catalog)], vectors_NF=vectors_NF).save(out / "random")
    return out / "random"


def figures(ranked: Mapping[str, IntArray], targets_Q: IntArray, kept: int, config: Config) -> dict[str, Any]:
    """HR@10 and HR@50 by catalogue, of queries for held-out items (row ``kept`` and above) and of all others.

    ``others_hr@10_change`` is nearest minus absent, with its 95 % interval over queries.
    """
    from genrec.evaluation.intervals import paired
    from genrec.metrics import means, per_query, target_ranks

    held_Q = targets_Q >= kept
    found: dict[str, float] = {"held_queries": float(held_Q.sum()), "other_queries": float((~held_Q).sum())}
    values = {name: per_query(target_ranks(items_QK, targets_Q), (10, 50)) for name, items_QK in ranked.items()}
    for group, chosen_Q in (("held", held_Q), ("others", ~held_Q)):
        for name, by_metric in values.items():
            mean = means({metric: value_Q[chosen_Q] for metric, value_Q in by_metric.items()})
            found |= {f"{group}_{metric}_{name}": mean[metric] for metric in ("hr@10", "hr@50")}
    others = {name: {"hr@10": values[name]["hr@10"][~held_Q]} for name in ("nearest", "absent")}
    changed = paired(others["nearest"], others["absent"], config.evaluation.bootstrap, config.seed)
    if changed:
        found["others_hr@10_change"] = changed["hr@10"]["difference"]
        found |= {f"others_hr@10_change_{end}": changed["hr@10"][end] for end in ("low", "high")}
    before, after = found["others_hr@10_absent"], found["others_hr@10_nearest"]
    return {"figures": found, "ratios": {"others_hr@10_nearest_over_absent": after / before if before else 0.0}}
