"""The verdict of an evaluation: one short sentence, and a paragraph that needs no knowledge of the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from genrec.evaluation.intervals import Difference
from genrec.evaluation.summary import HEADLINE_METRICS, NAMES, origin_of_prior

DECIDES, SHARE = HEADLINE_METRICS
"""The metric that decides, and the one that people read as so many of a hundred users."""

Standing = Literal["beats", "ahead", "level", "behind", "loses"]
"""Ahead and behind: within the noise."""


def verdict(metrics: Mapping[str, Any]) -> str:
    """One sentence of at most some twenty words on NDCG@10: who is best, and whether the lead is more than noise.

    A lead is more than noise where a paired interval is on one side of zero, whoever leads. Where an ItemKNN prior
    helps the model, the sentence says how the trained policy does without it.

    Args:
        metrics: the result of ``summarise``, with what was added to it.
    """
    if not metrics["baselines"]:
        return "No baseline ran, so there is nothing to compare the model with."
    rival, stands = best_baseline(metrics), standing(metrics, "model")
    if _helper(metrics) is None:
        return f"{_capital(_against(stands, rival))}."
    return f"{_capital(_with_help(stands, rival))}; {_without_help(standing(metrics, 'policy'), rival)}."


def plain_words(metrics: Mapping[str, Any]) -> str:
    """The verdict's figures in plain words: users of a hundred, the difference with its interval, what RL changed."""
    model = metrics["model"]["item"]
    hits = _of_hundred(model[SHARE])
    sentences = [f"Of 100 users, {hits} find their next item among the model's first ten."]
    if metrics["baselines"]:
        name = best_baseline(metrics)
        other = metrics["baselines"][name_of_best(metrics)]
        sentences.append(
            f"The best baseline, {name}, does so for {_of_hundred(other[SHARE])}. NDCG@10, which counts a hit the more "
            f"the higher it stands, is {model[DECIDES]:.4f} against {other[DECIDES]:.4f}{_chance(metrics)}."
        )
    if (weight := _helper(metrics)) is not None:
        alone = metrics["policy"]["item"]
        sentences.append(
            f"The model is the trained policy with an ItemKNN prior of weight {weight:g}, {origin_of_prior(metrics)}. "
            f"Without it, the policy has {_of_hundred(alone[SHARE])} of 100 users and NDCG@10 {alone[DECIDES]:.4f}."
        )
    return " ".join([*sentences, *_gain(metrics)])


def standing(metrics: Mapping[str, Any], name: str) -> Standing:
    """How a ranking, the model or its policy, stands on NDCG@10 against the best baseline.

    It "beats" where the paired interval of its lead is above zero, against each baseline; it "loses" where that of the
    best baseline's lead is. Without an interval it does neither.
    """
    value = metrics[name]["item"][DECIDES]
    best = max(row[DECIDES] for row in metrics["baselines"].values())
    if math.isclose(value, best, rel_tol=1e-9, abs_tol=1e-12):
        return "level"
    found = [differences_of(metrics, name).get(other, {}).get(DECIDES) for other in metrics["baselines"]]
    if value > best:
        return "beats" if all(one is not None and one["low"] > 0 for one in found) else "ahead"
    rival: Difference | None = differences_of(metrics, name).get(name_of_best(metrics), {}).get(DECIDES)
    return "loses" if rival is not None and rival["high"] < 0 else "behind"


def differences_of(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The paired differences of the model, or of its policy, minus each baseline; none in reports of older versions."""
    return metrics["paired"] if name == "model" else metrics.get(f"paired_{name}", {})


def name_of_best(metrics: Mapping[str, Any]) -> str:
    """The key of the baseline with the best NDCG@10."""
    return max(metrics["baselines"], key=lambda name: metrics["baselines"][name][DECIDES])


def best_baseline(metrics: Mapping[str, Any]) -> str:
    """The best baseline's name in words."""
    name = name_of_best(metrics)
    return NAMES.get(name, name)


def _against(stands: Standing, rival: str) -> str:
    return {
        "beats": "the model beats every baseline",
        "ahead": "the model is ahead of every baseline, but within the noise",
        "level": f"the model is level with the best baseline, {rival}",
        "behind": f"{rival} is ahead of the model, but within the noise",
        "loses": f"{rival} beats the model",
    }[stands]


def _with_help(stands: Standing, rival: str) -> str:
    return {
        "beats": "the model beats every baseline with ItemKNN's help",
        "ahead": "with ItemKNN's help the model is ahead of every baseline, but within the noise",
        "level": f"with ItemKNN's help the model is level with the best baseline, {rival}",
        "behind": f"{rival} is ahead of the model with ItemKNN's help, but within the noise",
        "loses": f"{rival} beats the model even with ItemKNN's help",
    }[stands]


def _without_help(stands: Standing, rival: str) -> str:
    return {
        "beats": "without it, it beats every baseline, too",
        "ahead": "without it, it is ahead within the noise",
        "level": f"alone, the trained policy is level with {rival}",
        "behind": f"alone, the trained policy is behind {rival}, within the noise",
        "loses": f"alone, the trained policy loses to {rival}",
    }[stands]


def _helper(metrics: Mapping[str, Any]) -> float | None:
    """The weight of the prior that helps the model; None where there is none."""
    weight = metrics.get("prior", {}).get("weight") or None
    return weight if "policy" in metrics else None


def _chance(metrics: Mapping[str, Any]) -> str:
    found: Difference | None = metrics["paired"].get(name_of_best(metrics), {}).get(DECIDES)
    if found is None:
        return "; there are too few queries, or no resamples, to say whether that is chance"
    low, high = found["low"], found["high"]
    more = "more than chance" if low > 0 or high < 0 else "no more than chance may give"
    return f"; the difference of {found['difference']:+.4f} is {more} (95% interval {low:+.4f} to {high:+.4f})"


def _gain(metrics: Mapping[str, Any]) -> list[str]:
    """What reinforcement learning changed, where it ran."""
    if "grpo_minus_sft" not in metrics:
        return []
    gain = metrics["grpo_minus_sft"].get(DECIDES)
    if gain is None:
        return ["Whether reinforcement learning changed the policy's accuracy cannot be told from so few queries."]
    span = f"({gain['difference']:+.4f}, 95% interval {gain['low']:+.4f} to {gain['high']:+.4f})"
    if gain["low"] == gain["high"] == 0:
        return ["Reinforcement learning changed nothing: every answer is as good as the SFT policy's."]
    if gain["low"] <= 0 <= gain["high"]:
        return [f"Reinforcement learning did not change the policy's NDCG@10 beyond chance {span}."]
    return [f"Reinforcement learning {'raised' if gain['low'] > 0 else 'lowered'} the policy's NDCG@10 {span}."]


def _of_hundred(share: float) -> str:
    return f"{100 * share:.1f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
