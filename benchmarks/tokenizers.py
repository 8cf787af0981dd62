"""Tokenizers compared: how each quantizer and each kind of names places the items, and how well a policy does with it.

Every variant is the config's ``sid`` section with another quantizer or other inputs. Levels, codes, inputs and the
treatment of collisions are the config's for all of them (but ``vq`` has one level and a suffix). For each variant in
``bench.variants`` the same policy is trained from ``bench.seeds`` seeds, and compared with the first, seed by seed.

SIDs are artifacts of the stage ``assign``; figures and scores are artifacts under ``<storage>/bench/tokenizers``, one
per variant, and one per variant and seed, so a killed run continues. ``benchmarks.compare`` says what else is kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import METRICS, Comparison, Variant, compare, score_variants
from benchmarks.harness import chosen_variants, in_process, timed
from benchmarks.tables import markdown, or_dash, scores_table
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.pipeline import run_stage
from cluster.progress import STAGE
from genrec.config import Config, Sid
from genrec.config.sid import READABLE
from genrec.data.readers import read_items
from genrec.errors import InputError

LOG = logging.getLogger(__name__)

DIRECTORY = "tokenizers"
NEEDS = ("prepare", "embed")


FIGURES = (
    "tokenizer",
    "collide",
    "after",
    "codes used",
    "perplexity",
    "error",
    "neighbours",
    "bought together",
    "fit s",
    "assign s",
)
NOTES = """\
*collide*, *after*: 1 − distinct SIDs / items, before and after collisions are resolved. *codes used*, *perplexity*: per
level, after. *error*: squared error as a share of the variance of the quantized vectors (0: as without quantization),
before → after; text, cf and fused quantize different vectors. *neighbours*: share of the 10 items with the nearest text
vectors that have the same prefix, for each length of the prefix below the whole SID. *bought together*: the same share
of pairs bought one after the other. *assign s*: seconds to encode all items and to resolve collisions."""


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Measure every variant, then train and score the policies of ``bench.variants``.

    Raises:
        InputError: ``bench.variants`` names one that does not exist, or whose quantizer refuses this data.
    """
    known = variants(config.sid, read_items(artifacts["prepare"].path).column_names)
    chosen_variants(config, known)
    _import_quantizers(known)
    made: dict[str, Variant] = {}
    found: dict[str, dict[str, Any]] = {"variants": {}, "policies": {}}
    for name, sid in known.items():
        own = config.replace(sid=sid)
        try:
            catalog = run_stage(in_process(own), "assign", artifacts)
            made[name] = Variant(own, {**artifacts, "assign": catalog})
            found["variants"][name] = _measured(made[name])
        except InputError as error:
            if name in config.bench.variants:
                raise
            found["variants"][name] = {"refused": str(error)}
            LOG.warning("%s is left out: %s", name, error, extra={STAGE: DIRECTORY})
    comparison = _written(config, found)
    if not config.bench.variants:
        return comparison
    *_, scores = score_variants(DIRECTORY, {name: made[name] for name in config.bench.variants})
    return _written(config, {**found, "policies": compare(scores)})


def _import_quantizers(known: Mapping[str, Sid]) -> None:
    """Import what the quantizers need, so that no variant's seconds include it."""
    from genrec.sid.quantizers import make_quantizer

    for sid in known.values():
        if sid.quantizer != "given" and not sid.is_readable:
            make_quantizer(sid)


def variants(sid: Sid, columns: Sequence[str]) -> dict[str, Sid]:
    """The ``sid`` section of each variant, by name.

    ``given`` is there only where the items' ``columns`` have ``sid.column``, and names only beside a level of numbers.
    """
    from genrec.sid.quantizers import REGISTRY

    changes: dict[str, dict[str, Any]] = {name: {"quantizer": name} for name in REGISTRY}
    if sid.levels > 1:
        changes |= {name: {"quantizer": name} for name in READABLE}
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
    return {name: sid.replace(change) for name, change in changes.items()}


def _measured(variant: Variant) -> dict[str, Any]:
    """The figures of one variant, and the key of its SIDs."""
    catalog = variant.inputs["assign"]
    recipe = Recipe("tokenizer", {}, (__name__,), [variant.inputs["embed"], catalog])
    made = make_artifact(in_process(variant.config, DIRECTORY), recipe, partial(_measure, variant))
    return {**made.metrics["figures"], "assign": catalog.key}


def _measure(variant: Variant, out: Path) -> Mapping[str, Any]:
    """Figures of ``sid_health.json``, and the seconds to fit, and to encode all items and resolve collisions."""
    catalog = variant.inputs["assign"]
    health = json.loads((catalog.path / "sid_health.json").read_text(encoding="utf-8"))
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
        "neighbours_of_text": _text_neighbours(variant, health["level_sizes"]),
        "bought_together": health["bought_together"]["together"],
        "fit_s": None,
        "assign_s": None,
    }
    if variant.config.sid.quantizer != "given":
        figures["fit_s"] = catalog.metrics["fit"]["fit_s"]
        figures["assign_s"] = round(_encode_s(variant) + catalog.metrics["resolve_s"], 3)
    return {"figures": figures}


def _text_neighbours(variant: Variant, level_sizes: Sequence[int]) -> list[float]:
    """Neighbour agreement of the text vectors, which are the same for all variants."""
    import numpy as np
    import pyarrow.parquet as pq

    from genrec.sid.health import POOL, neighbour_agreement
    from genrec.sid.vectors import VectorFiles

    text_ND = VectorFiles(variant.inputs["embed"].path).read(0, POOL)
    codes = pq.ParquetFile(variant.inputs["assign"].path / "sids.parquet").read(["codes"])["codes"]
    return neighbour_agreement(text_ND, np.array(codes.slice(0, len(text_ND)).to_pylist(), np.int32), level_sizes)


def _encode_s(variant: Variant) -> float:
    """Seconds to encode all items on the CPU, extrapolated from the first block of them."""
    from genrec.sid.inputs import BLOCK, open_inputs
    from genrec.sid.quantizers import load_quantizer
    from genrec.sid.readable import SidNames
    from genrec.threads import limit_threads

    threads, catalog = variant.config.compute.threads, variant.inputs["assign"].path
    if names := SidNames.load(catalog):
        items = read_items(variant.inputs["prepare"].path)
        return timed(lambda: names.encode(items))
    inputs = open_inputs(variant.inputs["embed"].path, catalog, variant.config.sid)
    limit_threads(threads)
    quantizer = load_quantizer(catalog / "quantizer", threads=threads)
    inputs_ND = inputs.read(range(min(len(inputs), BLOCK)))
    return timed(lambda: quantizer.encode(inputs_ND)) * len(inputs) / len(inputs_ND)


def _written(config: Config, found: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """The comparison so far; its page and all figures are written."""
    comparison = Comparison(DIRECTORY, text=tokenizers_page(found["variants"], found["policies"]))
    for name, figures in found["variants"].items():
        plain = {key: value for key, value in figures.items() if isinstance(value, (int, float))}
        comparison.figures |= {f"{name}.{key}": float(value) for key, value in plain.items()}
    for name, policies in found["policies"].items():
        comparison.figures |= {f"{name}.{metric}": policies[metric]["mean"] for metric in METRICS}
    comparison.write(config, found)
    return comparison


def tokenizers_page(variants: Mapping[str, Mapping[str, Any]], policies: Mapping[str, Mapping[str, Any]]) -> str:
    """Both tables: the figures of every variant, and the policies of those that policies were trained on."""
    made = {name: one for name, one in variants.items() if "refused" not in one}
    lines = [*markdown(FIGURES, (_figures(name, one) for name, one in made.items())), "", NOTES]
    lines += [f"\n{name} is left out: {one['refused']}" for name, one in variants.items() if "refused" in one]
    if policies:
        lines += ["", *scores_table("tokenizer", policies)]
    return "\n".join(lines) + "\n"


def _figures(name: str, row: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{row['collisions_before']:.2%}",
        f"{row['collisions_after']:.2%}",
        _each(row["codes_used"], "d"),
        _each(row["perplexity"], ".0f"),
        "–" if row["error"] is None else f"{row['error_before']:.3f} → {row['error']:.3f}",
        _each(row["neighbours_of_text"][:-1], ".2f"),
        _each(row["bought_together"][:-1], ".2f"),
        or_dash(row["fit_s"], ".2f"),
        or_dash(row["assign_s"], ".2f"),
    ]


def _each(values: Sequence[float] | None, form: str) -> str:
    return " / ".join(f"{value:{form}}" for value in values) if values else "–"
