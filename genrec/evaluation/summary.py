"""The summary of an evaluation: the content of ``metrics.json``, with a headline of one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genrec.baselines.buckets import popularity_bucket
from genrec.errors import InputError
from genrec.evaluation.comparisons import Corrected, corrected
from genrec.evaluation.intervals import Difference, intervals, paired
from genrec.evaluation.query_slices import by_label
from genrec.evaluation.slices import by_bucket, by_event
from genrec.evaluation.spread import of_targets, spread
from genrec.metrics import (
    KS,
    FloatArray,
    IntArray,
    means,
    per_query,
    prefix_per_query,
    prefix_ranks,
    sid_numbers,
    sid_target_ranks,
    target_ranks,
)

NAMES = {
    "popularity": "popularity",
    "transition": "last-item transitions",
    "itemknn": "ItemKNN",
    "repeat_last": "repeat-last",
    "star": "STAR",
    "text": "text neighbours",
    "als": "ALS",
    "bpr": "BPR",
    "sasrec": "SASRec",
    "sasrec_bce": "SASRec with the binary loss",
    "bsarec": "BSARec",
    "gru4rec": "GRU4Rec",
    "bert4rec": "BERT4Rec",
    "hstu": "HSTU",
    "tiger": "TIGER",
    "sft": "the SFT policy",
    "policy": "the policy without the prior",
    "sid_path": "the policy's semantic IDs alone",
    "item_head": "the policy's item head alone",
    "model": "the model",
    "refit_policy": "the refitted policy without the prior",
    "refit_model": "the refitted model",
    "refit_itemknn": "the refitted ItemKNN",
}
HEADLINE_METRICS = ("ndcg@10", "hr@10")
WON_IN_WORDS = {"level": "is level on", "ahead": "is ahead, within the noise, on", "beats": "leads on"}

Standing = Literal["loses", "behind", "level", "ahead", "beats"]
"""From worst to best; behind and ahead: within the noise."""

Values = dict[str, FloatArray]
"""A metric's value per query, (Q,), by the metric's name."""


@dataclass(frozen=True)
class Rankings:
    """Rankings of the same Q queries: the model's, the baselines', and further policies' (``{"sft": …}``).

    A ranking holds K items per query, best first, -1 for none. ``codes_NL``: each item's semantic ID;
    ``train_counts_N``: train events; ``category_N``: number of its category, -1 for none; ``event_Q``: the event
    type of each target, empty where the log has none.
    """

    targets_Q: IntArray
    model_QK: IntArray
    baselines: Mapping[str, IntArray]
    codes_NL: IntArray
    train_counts_N: IntArray
    category_N: IntArray | None = None
    event_Q: Sequence[str | None] = ()
    labels: Mapping[str, NDArray[np.str_]] = field(default_factory=dict[str, NDArray[np.str_]])
    recent_QH: IntArray | None = None
    vectors_ND: FloatArray | None = None
    policies: Mapping[str, IntArray] = field(default_factory=dict[str, NDArray[np.int64]])

    @cached_property
    def sid_of_item_N(self) -> IntArray:
        """Number of each item's semantic ID, (N,)."""
        return sid_numbers(self.codes_NL)


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

    ``prefix`` holds Prefix@l@k of every ranking; ``paired`` is the model minus every other ranking, and
    ``paired_policy`` a further policy of this name minus every baseline.

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
    tests = _corrected(model, others) if any(differences.values()) else {}
    baselines = {name: means(values) for name, values in by_baseline.items()}
    result: dict[str, Any] = {name: {lv: means(v) for lv, v in levels.items()} for name, levels in by_policy.items()}
    result["baselines"] = baselines
    result["ci95"] = {
        **{name: {lv: intervals(v, resamples, seed) for lv, v in levels.items()} for name, levels in by_policy.items()},
        "baselines": {name: intervals(values, resamples, seed) for name, values in by_baseline.items()},
    }
    systems = {**policies, **rankings.baselines}
    by_prefix = {name: _prefix_values(ranked_QK, rankings, ks) for name, ranked_QK in systems.items()}
    result["prefix"] = {name: means(values) for name, values in by_prefix.items()}
    result["ci95"]["prefix"] = {name: intervals(values, resamples, seed) for name, values in by_prefix.items()}
    result["stages"] = {name: dict(cost) for name, cost in (stages or {}).items()}
    result["paired"] = {
        name: {metric: {**one, **tests[metric][name]} if metric in tests else one for metric, one in by_metric.items()}
        for name, by_metric in differences.items()
    }
    if "policy" in by_policy:
        policy = {metric: by_policy["policy"]["item"][metric] for metric in HEADLINE_METRICS}
        result["paired_policy"] = {
            name: paired(policy, values, resamples, seed) for name, values in by_baseline.items()
        }
    result |= _sliced(rankings, {"model": model, **others})
    counts_N = rankings.train_counts_N
    more: dict[str, Any] = {"recent_QH": rankings.recent_QH, "vectors_ND": rankings.vectors_ND}
    result["spread"] = {name: spread(one_QK, counts_N, rankings.category_N, **more) for name, one_QK in systems.items()}
    result["targets"] = of_targets(rankings.targets_Q, counts_N)
    result["queries"], result["items"] = len(rankings.targets_Q), len(rankings.train_counts_N)
    result["headline"] = headline(result["model"]["item"], baselines, differences)
    result["baseline_wins"] = metrics_lost(result["model"]["item"], baselines)
    return {**result, **(details or {})}


def _sliced(rankings: Rankings, systems: Mapping[str, Values]) -> dict[str, Any]:
    """The means by popularity and event type of the target, and by the labels of the queries."""
    bucket_N = popularity_bucket(rankings.train_counts_N)
    found: dict[str, Any] = {
        "buckets": {name: by_bucket(values, rankings.targets_Q, bucket_N) for name, values in systems.items()}
    }
    if rankings.event_Q:
        found["events"] = {name: by_event(values, rankings.event_Q) for name, values in systems.items()}
    found["slices"] = {
        slice_: {name: by_label(values, label_Q) for name, values in systems.items()}
        for slice_, label_Q in rankings.labels.items()
    }
    return found


def _corrected(model: Values, others: Mapping[str, Values]) -> dict[str, dict[str, Corrected]]:
    """By headline metric and ranking: the paired t tests against every other row, corrected for their number."""
    return {
        metric: corrected({name: model[metric] - values[metric] for name, values in others.items()})
        for metric in HEADLINE_METRICS
    }


def metrics_lost(model: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The headline metrics on which a baseline has a better figure than the model, by however little: its name."""
    if not baselines:
        return {}
    best = {metric: best_baseline(metric, baselines) for metric in HEADLINE_METRICS}
    return {metric: name for metric, name in best.items() if standing(metric, model, baselines, {}) == "behind"}


def headline(
    model: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Mapping[str, Difference]],
) -> str:
    """One sentence: does the model beat the best baseline on NDCG@10 and HR@10, by how much, and is it significant?

    It "leads" where it beats every baseline, and a baseline "wins" where the model loses to it: see ``standing``.
    """
    if not baselines:
        return f"No baseline ran: the model's NDCG@10 is {model['ndcg@10']:.4f}, its HR@10 {model['hr@10']:.4f}."
    stands = {metric: standing(metric, model, baselines, differences) for metric in HEADLINE_METRICS}
    clauses = {metric: _clause(metric, model, baselines, differences) for metric in HEADLINE_METRICS}

    def on(*wanted: str) -> list[str]:
        return [metric for metric in HEADLINE_METRICS if stands[metric] in wanted]

    if on("loses", "behind"):
        parts = ["; ".join(clauses[metric] for metric in on("loses", "behind"))]
        for words, verb in WON_IN_WORDS.items():
            parts += [f"it {verb} {clauses[metric]}" for metric in on(words)]
        opening = "A baseline wins" if on("loses") else "A baseline is ahead, within the noise"
        return f"{opening}: the model has {'; '.join(parts)}."
    if not on("level", "ahead"):
        opening = "The model leads every baseline"
    elif not on("level"):
        opening = f"The model is ahead of every baseline, within the noise on {' and '.join(map(_label, on('ahead')))}"
    elif not on("ahead", "beats"):
        opening = "The model is level with the best baseline"
    else:
        opening = "The model is behind no baseline, and level with one"
    return f"{opening}: {'; '.join(clauses.values())}."


def best_baseline(metric: str, baselines: Mapping[str, Mapping[str, float]]) -> str:
    """The name of the baseline with the best figure."""
    return max(baselines, key=lambda name: baselines[name][metric])


def standing(
    metric: str,
    model: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Mapping[str, Difference]],
) -> Standing:
    """How a ranking, the model or its policy, stands on a metric against the best baseline.

    It "beats" where the paired interval of its lead is above zero, against each baseline; it "loses" where that of the
    best baseline's lead is. Without an interval it does neither. Equal figures are no lead.

    Args:
        differences: to each baseline, by its name and the metric; without those that have no interval.
    """
    best = best_baseline(metric, baselines)
    if math.isclose(model[metric], baselines[best][metric], rel_tol=1e-9, abs_tol=1e-12):
        return "level"
    if model[metric] < baselines[best][metric]:
        against = differences.get(best, {}).get(metric)
        return "loses" if against is not None and against["high"] < 0 else "behind"
    found = [differences.get(name, {}).get(metric) for name in baselines]
    return "beats" if all(one is not None and one["low"] > 0 for one in found) else "ahead"


def _clause(
    metric: str,
    model: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Mapping[str, Difference]],
) -> str:
    best = best_baseline(metric, baselines)
    figures = f"{model[metric]:.4f} against {baselines[best][metric]:.4f} of {NAMES.get(best, best)}"
    return f"{_label(metric)} {figures}{_interval(differences.get(best, {}).get(metric))}"


def origin_of_prior(metrics: Mapping[str, Any]) -> str:
    """Where the weight of the prior comes from, in words."""
    return "given by the config" if metrics.get("prior", {}).get("given") else "chosen on validation"


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
    metrics["headline"] = (
        f"{_policy_alone(alone, baselines, metrics.get(f'paired_{policy}', {}))} "
        f"The model is this policy with an ItemKNN prior of weight {weight:g}, {origin_of_prior(metrics)}. "
        f"{metrics['headline']}"
    )
    metrics["baseline_wins"] |= {f"policy {metric}": name for metric, name in lost.items()}


def _policy_alone(
    alone: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Mapping[str, Difference]],
) -> str:
    """The sentence of a headline about the policy without its prior."""
    if not baselines:
        return f"The trained policy alone: NDCG@10 {alone['ndcg@10']:.4f}, HR@10 {alone['hr@10']:.4f}."
    stands = {standing(metric, alone, baselines, differences) for metric in HEADLINE_METRICS}
    openings: dict[Standing, str] = {
        "loses": "A baseline wins over the trained policy alone",
        "behind": "A baseline is ahead of the trained policy alone, within the noise",
        "level": "The trained policy alone is behind no baseline",
        "ahead": "The trained policy alone is ahead of every baseline, within the noise",
        "beats": "The trained policy alone leads every baseline",
    }
    opening = next(words for place, words in openings.items() if place in stands)
    return f"{opening}: {'; '.join(_clause(metric, alone, baselines, differences) for metric in HEADLINE_METRICS)}."


def add_gain(metrics: dict[str, Any], grpo: Values, sft: Values, resamples: int, seed: int) -> None:
    """Add the paired difference between the GRPO policy and the SFT policy, both without a prior, to ``metrics``."""
    gain = paired(grpo, sft, resamples, seed)
    metrics["grpo_minus_sft"] = dict(gain)
    change = float((grpo["ndcg@10"] - sft["ndcg@10"]).mean())
    ndcg = gain.get("ndcg@10")
    span = f"95% interval {ndcg['low']:+.4f} to {ndcg['high']:+.4f}" if ndcg else "no interval"
    metrics["headline"] += f" GRPO changed the SFT policy's NDCG@10 by {change:+.4f} ({span})."


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return " (no interval)"
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


def _prefix_values(ranked_QK: IntArray, rankings: Rankings, ks: Sequence[int]) -> Values:
    return prefix_per_query(prefix_ranks(ranked_QK, rankings.targets_Q, rankings.codes_NL), ks)
