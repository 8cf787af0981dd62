"""Tokenizers side by side: how each quantizer of the registry places the items, and what a policy makes of it.

Every row is one ``sid`` section: the config's, with another quantizer or other inputs. Levels, codes, inputs and the
way out of collisions are the config's for all of them (but ``vq`` has one level and a suffix). For the rows of
``bench.variants`` the same policy is trained from ``bench.seeds`` seeds, and each is compared with the first, seed by seed.

SIDs are outputs of the ``assign`` stage; figures and scores are stages under ``<storage>/bench/tokenizers``, one per
row, and one per row and seed, so a killed run goes on. The table and all figures are written there as ``<name>.md`` and
``<name>.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import METRICS, Comparison, Variant, compare, score_rows
from benchmarks.harness import in_process, timed
from benchmarks.tables import page
from cluster.artifacts import Artifact, run_stage
from cluster.stages import steps
from genrec.config import Config, Sid
from genrec.data.tables import read_items
from genrec.errors import InputError

VERSION = 1
PLACE = "tokenizers"


def run(config: Config, data: Artifact, vectors: Artifact) -> Comparison:
    """Measure every row, then train and score the policies of ``bench.variants``.

    Raises:
        InputError: a row of ``bench.variants`` that does not exist, or whose quantizer refuses this data.
    """
    from genrec.sid.quantizers import make_quantizer

    settings = sections(config.sid, read_items(data.path).column_names)
    if unknown := [name for name in config.bench.variants if name not in settings]:
        raise InputError(f"bench.variants names {unknown}; the rows for this data are {list(settings)}")
    for sid in settings.values():
        if sid.quantizer != "given":
            make_quantizer(sid)  # imports what it needs, so that no row's seconds hold that
    made: dict[str, Variant] = {}
    found: dict[str, Any] = {"rows": {}, "policies": {}}
    for name, sid in settings.items():
        own = config.model_copy(update={"sid": sid})
        try:
            made[name] = Variant(own, steps.assign(in_process(own), data, vectors))
            found["rows"][name] = _measured(made[name], vectors)
        except InputError as error:
            if name in config.bench.variants:
                raise
            found["rows"][name] = {"refused": str(error)}
            print(f"[tokenizers] {name} is left out: {error}", flush=True)
    comparison = _written(config, found)
    if not config.bench.variants:
        return comparison
    chosen = {name: made[name] for name in config.bench.variants}
    *_, scores = score_rows(PLACE, data, chosen)
    return _written(config, {**found, "policies": compare(scores)})


def sections(sid: Sid, columns: Sequence[str]) -> dict[str, Sid]:
    """The ``sid`` section of each row, by name; ``given`` is one where the item table's ``columns`` have its column."""
    from genrec.sid.quantizers import REGISTRY

    changes: dict[str, dict[str, Any]] = {name: {"quantizer": name} for name in REGISTRY}
    changes["vq"] |= {"levels": 1, "collisions": "suffix"}
    changes["rqvae"] |= {"codebook": "gradient"}
    changes["rqvae_ema"] = {"quantizer": "rqvae", "codebook": "ema"}
    inputs = {
        "text": {"text_weight": 1.0, "cf_weight": 0.0},
        "cf": {"text_weight": 0.0, "cf_weight": 1.0},
        "fused": {"text_weight": sid.text_weight or 1.0, "cf_weight": sid.cf_weight or 1.0},
    }
    changes |= {f"rqkmeans_{name}": {"quantizer": "rqkmeans", **weights} for name, weights in inputs.items()}
    if sid.column in columns:
        changes["given"] = {"quantizer": "given"}
    return {name: sid.model_copy(update=change) for name, change in changes.items()}


def _measured(row: Variant, vectors: Artifact) -> dict[str, Any]:
    """The figures of one row."""
    work = partial(_measure, row, vectors.path)
    stage = run_stage(
        in_process(row.config, PLACE), "rows", version=VERSION, settings={}, inputs=[row.catalog], work=work
    )
    return {**stage.metrics["figures"], "assign": row.catalog.key}


def _measure(row: Variant, vectors: Path, out: Path) -> Mapping[str, Any]:
    """What the health of the SIDs says, and the seconds to fit, and to encode and settle collisions."""
    health = json.loads((row.catalog.path / "sid_health.json").read_text(encoding="utf-8"))
    figures = {
        "items": health["items"],
        "level_sizes": health["level_sizes"],
        "collisions_before": health["collisions_before"]["rate"],
        "collisions_after": health["collisions_after"]["rate"],
        "codes_used": [int(level["used"]) for level in health["levels"]],
        "perplexity": [level["perplexity"] for level in health["levels"]],
        "error_before": health["reconstruction_before"][-1] if "reconstruction_before" in health else None,
        "error": health["reconstruction"][-1] if "reconstruction" in health else None,
        "neighbours_of_inputs": health.get("neighbour_agreement"),
        "neighbours_of_text": _text_neighbours(row, vectors, health["level_sizes"]),
        "bought_together": health["bought_together"]["together"],
        "fit_s": None,
        "assign_s": None,
    }
    if row.config.sid.quantizer != "given":
        metrics = row.catalog.metrics
        figures["fit_s"] = metrics["fit"]["fit_s"]
        figures["assign_s"] = round(_encode_s(row, vectors) + metrics["resolve_s"], 3)
    return {"figures": figures}


def _text_neighbours(row: Variant, vectors: Path, level_sizes: Sequence[int]) -> list[float]:
    """Neighbour agreement in the space of the text vectors, which is the same for all rows."""
    import numpy as np
    import pyarrow.parquet as pq

    from genrec.sid.health import POOL, neighbour_agreement
    from genrec.sid.vectors import VectorFiles

    text_ND = VectorFiles(vectors).read(0, POOL)
    codes = (
        pq.ParquetFile(row.catalog.path / "sids.parquet").read(["codes"])["codes"].slice(0, len(text_ND)).to_pylist()
    )
    return neighbour_agreement(text_ND, np.array(codes, np.int32), level_sizes)


def _encode_s(row: Variant, vectors: Path) -> float:
    """Seconds to encode all items on the CPU, from those of the first block of them."""
    from genrec.sid.inputs import BLOCK, open_inputs
    from genrec.sid.quantizers import load_quantizer
    from genrec.threads import limit_threads

    threads, inputs = row.config.compute.threads, open_inputs(vectors, row.catalog.path, row.config.sid)
    limit_threads(threads)
    quantizer = load_quantizer(row.catalog.path / "quantizer", threads=threads)
    inputs_ND = inputs.read(range(min(len(inputs), BLOCK)))
    return timed(lambda: quantizer.encode(inputs_ND)) * len(inputs) / len(inputs_ND)


def _written(config: Config, found: Mapping[str, Any]) -> Comparison:
    """The comparison so far, its page and all figures beside its stages."""
    comparison = Comparison(PLACE)
    comparison.text = page(found["rows"], found["policies"])
    for name, figures in found["rows"].items():
        plain = {key: value for key, value in figures.items() if isinstance(value, (int, float))}
        comparison.figures |= {f"{name}.{key}": float(value) for key, value in plain.items()}
    for name, policies in found["policies"].items():
        comparison.figures |= {f"{name}.{metric}": policies[metric]["mean"] for metric in METRICS}
    comparison.keep(config, found)
    return comparison
