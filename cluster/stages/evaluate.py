"""Evaluation on Ray Data: policies answer shards of queries, then one process judges them beside the baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifacts import Artifact
from cluster.policy_predictor import PolicyPredictor
from genrec.config import Config
from genrec.data.files import write_json
from genrec.data.tables import read_items, read_queries, read_sequences

if TYPE_CHECKING:
    from genrec.baselines.tuning import BaselineSuite

SAMPLES = 10
"""Queries shown in the report."""


def evaluate(config: Config, stages: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Judge the policies among ``stages`` ("sft", and "grpo" when it ran) on the test queries; fills ``out``.

    Returns the deciding figures. ``metrics.json``, ``report.html`` and ``recommender.json`` are written.
    """
    import numpy as np

    from genrec.baselines.train_log import recent_history
    from genrec.baselines.tuning import fit_baselines
    from genrec.evaluation.report.page import text_table, write_report
    from genrec.evaluation.slices import category_numbers, sid_use
    from genrec.evaluation.summary import Rankings, add_gain, add_prior, summarise
    from genrec.metrics import per_query, sid_numbers, target_ranks
    from genrec.sid.catalog import Catalog

    data, catalog = stages["prepare"].path, Catalog.load(stages["assign"].path)
    items, test, valid = read_items(data), read_queries(data, "test"), read_queries(data, "valid")
    policies = [name for name in ("grpo", "sft") if name in stages]
    best = policies[0]
    suite = fit_baselines(read_sequences(data), valid, len(items), config.data.max_history, seed=config.seed)
    asked = {name: PolicyPredictor(config, stages, name, suite, out / "predictions") for name in policies}
    answers = {name: one.answers("test") for name, one in asked.items()}
    prior = asked[best].tuned_prior(valid)
    recent_QH = recent_history(test, config.data.max_history)
    others = {"sft": answers["sft"].items_QK} if best != "sft" else {}
    model = answers[best].items_QK
    if prior["weight"]:
        others |= {"policy": model}
        model = asked[best].with_prior(answers[best], recent_QH, prior)
    targets_Q = test["target"].to_numpy().astype(np.int64)
    rankings = Rankings(
        targets_Q=targets_Q,
        model_QK=model,
        baselines=suite.rank(recent_QH, max(config.evaluation.ks)),
        sid_of_item_N=sid_numbers(catalog.codes_NL.numpy()),
        train_counts_N=suite.log.counts_N,
        category_N=category_numbers(items),
        policies=others,
    )
    costs = {name: {k: stage.metrics[k] for k in ("wall_s", "peak_rss_mb")} for name, stage in stages.items()}
    ks, draws = config.evaluation.ks, config.evaluation.bootstrap
    details = {"baseline_settings": dict(suite.settings), "prior": prior, "seen_items_masked": suite.mask_seen}
    metrics = summarise(rankings, ks=ks, resamples=draws, seed=config.seed, stages=costs, details=details)
    if prior["weight"]:
        add_prior(metrics, "policy", prior["weight"])
    if best == "grpo":
        values = {name: per_query(target_ranks(answers[name].items_QK, targets_Q), ks) for name in policies}
        add_gain(metrics, values["grpo"], values["sft"], draws, config.seed)
    write_json(metrics, out / "metrics.json")
    curves = {name: json.loads((stages[name].path / "curve.json").read_text())["curve"] for name in policies}
    write_report(
        out,
        metrics,
        curves=curves,
        sid_stats=sid_use(catalog.codes_NL.numpy(), catalog.level_sizes),
        samples=_samples(items, test, model),
        config_text=_config_text(config),
        title=config.name,
    )
    _write_pointer(config, stages, best, prior, suite, out)
    print(text_table(metrics), flush=True)
    return {"headline": metrics["headline"], "model": metrics["model"]["item"]}


def _samples(items: Any, test: Any, model_QK: Any) -> list[dict[str, Any]]:
    titles = items["title"].to_pylist()
    rows = test.slice(0, SAMPLES).to_pylist()
    shown: list[dict[str, Any]] = []
    for row, ranked in zip(rows, model_QK[:SAMPLES].tolist(), strict=True):
        rank = ranked.index(row["target"]) + 1 if row["target"] in ranked else 0
        names = [titles[item] for item in ranked[:5] if item >= 0]
        history = [titles[item] for item in row["history"][-5:]]
        shown.append({"history": history, "recommended": names, "target": titles[row["target"]], "rank": rank})
    return shown


def _config_text(config: Config) -> str:
    from genrec.config import to_yaml

    return to_yaml(config)


def _write_pointer(
    config: Config, stages: Mapping[str, Artifact], best: str, prior: Mapping[str, Any], suite: BaselineSuite, out: Path
) -> None:
    """What ``genrec.load`` needs: where the parts lie under the storage root, and how the prior was tuned."""
    parts = {"data": stages["prepare"], "catalog": stages["assign"], "policy": stages[best]}
    knn = {k: v for k, v in suite.settings["itemknn"].items() if k not in ("valid_ndcg@10", "tried", "seconds")}
    about = {
        "parts": {name: f"{stage.name}/{stage.key}" for name, stage in parts.items()},
        "prior": dict(prior) | ({"settings": knn} if prior["weight"] else {}),
        "mask_seen": suite.mask_seen,
        "config": config.model_dump(mode="json"),
    }
    write_json(about, out / "recommender.json")
