"""Evaluation on Ray Data: policies answer shards of queries, then one process judges them beside the baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.answers import answer
from cluster.stages import Output
from genrec.config import Config
from genrec.data.files import write_json
from genrec.data.tables import read_items, read_queries, read_sequences

if TYPE_CHECKING:
    from genrec.evaluation.predict import Split
    from genrec.evaluation.prior import Beams
    from genrec.evaluation.tuning import Lineup

SAMPLES = 10
"""Queries shown in the report."""


def evaluate(config: Config, stages: Mapping[str, Output], out: Path) -> dict[str, Any]:
    """Judge the policies among ``stages`` ("sft", and "grpo" when it ran) on the test queries; fills ``out``.

    Returns the deciding figures. ``metrics.json``, ``report.html`` and ``recommender.json`` are written.
    """
    import numpy as np

    from genrec.evaluation.baselines import recent_history
    from genrec.evaluation.judge import Contest, add_gain, add_prior, judge
    from genrec.evaluation.metrics import per_query, sid_numbers, target_ranks
    from genrec.evaluation.report import print_table, write_report
    from genrec.evaluation.slices import category_numbers, sid_use
    from genrec.evaluation.tuning import fit_baselines
    from genrec.sid.catalog import Catalog

    data, catalog = stages["prepare"].path, Catalog.load(stages["assign"].path)
    items, test, valid = read_items(data), read_queries(data, "test"), read_queries(data, "valid")
    policies = [name for name in ("grpo", "sft") if name in stages]
    best = policies[0]
    lineup = fit_baselines(read_sequences(data), valid, len(items), config.data.max_history, seed=config.seed)
    answers = {name: _answers(config, stages, name, "test", lineup, out) for name in policies}
    prior = _tuned_prior(config, stages, best, lineup, valid, out)
    recent_QH = recent_history(test, config.data.max_history)
    others = {"sft": answers["sft"].items_QK} if best != "sft" else {}
    model = answers[best].items_QK
    if prior["weight"]:
        others |= {"policy": model}
        model = _mixed(answers[best], recent_QH, lineup, prior, config.decode.width)
    targets_Q = test["target"].to_numpy().astype(np.int64)
    contest = Contest(
        targets_Q=targets_Q,
        model_QK=model,
        baselines=lineup.rank(recent_QH, max(config.evaluation.ks)),
        sid_of_item_N=sid_numbers(catalog.codes_NL.numpy()),
        train_counts_N=lineup.log.counts_N,
        category_N=category_numbers(items),
        policies=others,
    )
    costs = {name: {k: stage.metrics[k] for k in ("wall_s", "peak_rss_mb")} for name, stage in stages.items()}
    ks, draws = config.evaluation.ks, config.evaluation.bootstrap
    details = {"baseline_settings": dict(lineup.settings), "prior": prior, "seen_items_masked": lineup.mask_seen}
    metrics = judge(contest, ks=ks, resamples=draws, seed=config.seed, stages=costs, details=details)
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
    _write_pointer(config, stages, best, prior, lineup, out)
    print(print_table(metrics), flush=True)
    return {"verdict": metrics["verdict"], "model": metrics["model"]["item"]}


def _answers(config: Config, stages: Mapping[str, Output], name: str, split: Split, lineup: Lineup, out: Path) -> Beams:
    """A policy's ``decode.width`` best items per query; masked seen items come from a wider beam."""
    return answer(
        config,
        stages["prepare"].path,
        stages["assign"].path,
        stages[name].path,
        out / "predictions" / name / split,
        split=split,
        mask_seen=lineup.mask_seen,
        label=f"evaluate {name} on {split}",
    )


def _tuned_prior(
    config: Config, stages: Mapping[str, Output], name: str, lineup: Lineup, valid: Any, out: Path
) -> dict[str, Any]:
    """The weight and power of the prior that the model is served with; weight 0 when there is none."""
    import numpy as np

    from genrec.evaluation.baselines import recent_history
    from genrec.evaluation.prior import WEIGHTS, tune_weight

    if config.decode.prior == "none":
        return {"kind": "none", "weight": 0.0, "power": 1.0}
    recent_QH = recent_history(valid, config.data.max_history)
    beams = _answers(config, stages, name, "valid", lineup, out)
    scores = _prior_scores(lineup, recent_QH)
    targets_Q = valid["target"].to_numpy().astype(np.int64)
    fixed = config.decode.prior_weight
    weights = WEIGHTS if fixed == "tuned" else (float(fixed),)
    found = tune_weight(beams.items_QK, beams.logp_QK, scores, targets_Q, weights=weights)
    return {"kind": "itemknn", "weight": found.weight, "power": found.power, "valid_ndcg@10": found.ndcg}


def _prior_scores(lineup: Lineup, recent_QH: Any) -> Any:
    from genrec.evaluation.itemknn import ItemKNN
    from genrec.evaluation.predict import strike_seen

    knn = lineup.models["itemknn"]
    assert isinstance(knn, ItemKNN)
    scores = knn.scores(recent_QH)
    return strike_seen(scores, recent_QH) if lineup.mask_seen else scores


def _mixed(beams: Beams, recent_QH: Any, lineup: Lineup, prior: Mapping[str, Any], k: int) -> Any:
    from genrec.evaluation.prior import mix

    scores = _prior_scores(lineup, recent_QH)
    return mix(beams.items_QK, beams.logp_QK, scores, prior["weight"], power=prior["power"], k=k)


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
    config: Config, stages: Mapping[str, Output], best: str, prior: Mapping[str, Any], lineup: Lineup, out: Path
) -> None:
    """What ``genrec.load`` needs: where the parts lie under the storage root, and how the prior was tuned."""
    parts = {"data": stages["prepare"], "catalog": stages["assign"], "policy": stages[best]}
    knn = {k: v for k, v in lineup.settings["itemknn"].items() if k not in ("valid_ndcg@10", "tried", "seconds")}
    about = {
        "parts": {name: f"{stage.name}/{stage.key}" for name, stage in parts.items()},
        "prior": dict(prior) | ({"settings": knn} if prior["weight"] else {}),
        "mask_seen": lineup.mask_seen,
        "config": config.model_dump(mode="json"),
    }
    write_json(about, out / "recommender.json")
