"""The summary of an evaluation: the content of ``metrics.json``, with a headline of one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.baselines.buckets import popularity_bucket
from genrec.errors import InputError
from genrec.evaluation.intervals import Difference, intervals, paired
from genrec.evaluation.slices import by_bucket, category_entropy, coverage
from genrec.metrics import KS, FloatArray, IntArray, means, per_query, sid_target_ranks, target_ranks

NAMES = {
    "popularity": "popularity",
    "transition": "last-item transitions",
    "itemknn": "ItemKNN",
    "sft": "the SFT policy",
    "policy": "the policy without the prior",
    "model": "the model",
}
HEADLINE_METRICS = ("ndcg@10", "hr@10")

Values = dict[str, FloatArray]
"""A metric's value per query, (Q,), by the metric's name."""


@dataclass(frozen=True)
class Rankings:
    """Rankings of the same Q queries: the model's, the baselines', and further policies' (``{"sft": …}``).

    A ranking holds K items per query, best first, -1 for none. ``sid_of_item_N``: number of each item's semantic ID;
    ``train_counts_N``: train events; ``category_N``: number of its category, -1 for none.
    """

    targets_Q: IntArray
    model_QK: IntArray
    baselines: Mapping[str, IntArray]
    sid_of_item_N: IntArray
    train_counts_N: IntArray
    category_N: IntArray | None = None
    policies: Mapping[str, IntArray] = field(default_factory=dict[str, NDArray[np.int64]])


def summarise(
    rankings: Rankings,
    *,
    ks: Sequence[int] = KS,
    resamples: int = 1000,
    seed: int = 0,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``metrics.json``: means, 95% intervals, paired differences, buckets, stage costs, headline.

    Args:
        ks: cut-offs of the metrics; 10 is always among them.
        resamples: of the bootstrap; 0 gives no intervals.
        stages: costs of each stage, copied into the result, as are ``details``.

    Raises:
        InputError: there is no query, or a ranking is shorter or longer than the targets.
    """
    if not len(rankings.targets_Q):
        raise InputError("got no test queries, wanted at least one: is the test split empty? check data.split")
    ks = sorted({*ks, 10})
    policies = {"model": rankings.model_QK, **rankings.policies}
    by_policy = {name: _levels(ranked_QK, rankings, ks) for name, ranked_QK in policies.items()}
    model = by_policy["model"]["item"]
    by_baseline = {name: _item_values(ranked_QK, rankings, ks) for name, ranked_QK in rankings.baselines.items()}
    others = {**by_baseline, **{name: levels["item"] for name, levels in by_policy.items() if name != "model"}}
    differences = {name: paired(model, values, resamples, seed) for name, values in others.items()}
    baselines = {name: means(values) for name, values in by_baseline.items()}
    result: dict[str, Any] = {name: {lv: means(v) for lv, v in levels.items()} for name, levels in by_policy.items()}
    result["baselines"] = baselines
    result["ci95"] = {
        **{name: {lv: intervals(v, resamples, seed) for lv, v in levels.items()} for name, levels in by_policy.items()},
        "baselines": {name: intervals(values, resamples, seed) for name, values in by_baseline.items()},
    }
    result["stages"] = {name: dict(cost) for name, cost in (stages or {}).items()}
    result["paired"] = {name: dict(difference) for name, difference in differences.items()}
    result["buckets"] = _buckets(rankings, model, by_baseline)
    result["spread"] = {name: _spread(ranked, rankings) for name, ranked in {**policies, **rankings.baselines}.items()}
    result["queries"], result["items"] = len(rankings.targets_Q), len(rankings.train_counts_N)
    result["headline"] = headline(result["model"]["item"], baselines, differences)
    result["baseline_wins"] = metrics_lost(result["model"]["item"], baselines)
    return {**result, **(details or {})}


def metrics_lost(model: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The headline metrics on which a baseline is better than the model, each with the best baseline's name."""
    lost: dict[str, str] = {}
    for metric in HEADLINE_METRICS:
        best = max(baselines, key=lambda name: baselines[name][metric], default=None)
        if best is not None and baselines[best][metric] > model[metric]:
            lost[metric] = best
    return lost


def headline(
    model: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Mapping[str, Difference]],
) -> str:
    """One sentence: does the model beat the best baseline on NDCG@10 and HR@10, by how much, and is it significant?"""
    if not baselines:
        return f"No baseline ran: the model's NDCG@10 is {model['ndcg@10']:.4f}, its HR@10 {model['hr@10']:.4f}."
    lost = metrics_lost(model, baselines)
    clauses: dict[str, str] = {}
    for metric in HEADLINE_METRICS:
        best = max(baselines, key=lambda name: baselines[name][metric])
        interval = _interval(differences.get(best, {}).get(metric))
        clauses[metric] = (
            f"{_label(metric)} {model[metric]:.4f} against {baselines[best][metric]:.4f} of {NAMES.get(best, best)}"
            f"{interval}"
        )
    if not lost:
        tied = any(model[metric] == max(row[metric] for row in baselines.values()) for metric in HEADLINE_METRICS)
        opening = "The model is at least level with every baseline" if tied else "The model leads every baseline"
        return f"{opening}: {'; '.join(clauses.values())}."
    losing = "; ".join(clauses[metric] for metric in lost)
    winning = "; ".join(clause for metric, clause in clauses.items() if metric not in lost)
    tail = f"; the model leads on {winning}" if winning else ""
    return f"A baseline wins: the model has {losing}{tail}."


def add_prior(metrics: dict[str, Any], policy: str, weight: float) -> None:
    """For a model that mixes a policy with an ItemKNN prior: compare the policy alone with the baselines, too.

    The headline then begins with the policy alone, and ``baseline_wins`` has the metrics that it loses as
    ``policy <metric>``.

    Args:
        metrics: the result of ``summarise``, changed in place.
        policy: its entry for the policy without the prior.
        weight: of the prior.
    """
    alone, baselines = metrics[policy]["item"], metrics["baselines"]
    lost = metrics_lost(alone, baselines)
    parts: list[str] = []
    for metric in HEADLINE_METRICS:
        best = max(baselines, key=lambda name: baselines[name][metric])
        parts.append(f"{_label(metric)} {alone[metric]:.4f} against {baselines[best][metric]:.4f} of {NAMES[best]}")
    opening = (
        "A baseline wins over the trained policy alone" if lost else "The trained policy alone leads every baseline"
    )
    metrics["headline"] = (
        f"{opening}: {'; '.join(parts)}. The model is this policy with an ItemKNN prior of weight {weight:g}, tuned on "
        f"validation. {metrics['headline']}"
    )
    metrics["baseline_wins"] |= {f"policy {metric}": name for metric, name in lost.items()}


def add_gain(metrics: dict[str, Any], grpo: Values, sft: Values, resamples: int, seed: int) -> None:
    """Add the paired difference between the GRPO policy and the SFT policy, both without a prior, to ``metrics``."""
    gain = paired(grpo, sft, resamples, seed)
    metrics["grpo_minus_sft"] = dict(gain)
    ndcg = gain["ndcg@10"]
    metrics["headline"] += (
        f" GRPO changed the SFT policy's NDCG@10 by {ndcg['difference']:+.4f} "
        f"(95% interval {ndcg['low']:+.4f} to {ndcg['high']:+.4f})."
    )


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return ""
    low, high = difference["low"], difference["high"]
    zero = "excludes zero" if low > 0 or high < 0 else "includes zero"
    return f" (difference {difference['difference']:+.4f}, 95% interval {low:+.4f} to {high:+.4f}, which {zero})"


def _label(metric: str) -> str:
    return metric.upper()


def _item_values(ranked_QK: IntArray, rankings: Rankings, ks: Sequence[int]) -> Values:
    return per_query(target_ranks(ranked_QK, rankings.targets_Q), ks)


def _levels(ranked_QK: IntArray, rankings: Rankings, ks: Sequence[int]) -> dict[str, Values]:
    sid_ranks_Q = sid_target_ranks(ranked_QK, rankings.targets_Q, rankings.sid_of_item_N)
    return {"item": _item_values(ranked_QK, rankings, ks), "sid": per_query(sid_ranks_Q, ks)}


def _buckets(rankings: Rankings, model: Values, baselines: Mapping[str, Values]) -> dict[str, Any]:
    bucket_N = popularity_bucket(rankings.train_counts_N)
    systems = {"model": model, **baselines}
    return {name: by_bucket(values, rankings.targets_Q, bucket_N) for name, values in systems.items()}


def _spread(ranked_QK: IntArray, rankings: Rankings) -> dict[str, float | None]:
    entropy = None if rankings.category_N is None else category_entropy(ranked_QK, rankings.category_N)
    return {"coverage@10": coverage(ranked_QK, len(rankings.train_counts_N)), "category_entropy@10": entropy}
