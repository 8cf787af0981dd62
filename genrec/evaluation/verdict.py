"""The verdict of an evaluation: one short sentence, and a paragraph that needs no knowledge of the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from genrec.evaluation.intervals import Difference
from genrec.evaluation.summary import HEADLINE_METRICS, NAMES, origin_of_prior

DECIDES, SHARE = HEADLINE_METRICS
"""The metric that decides, and the one that people read as so many of a hundred users."""

Standing = Literal["beats", "noise", "level", "loses"]


def verdict(metrics: Mapping[str, Any]) -> str:
    """One sentence of at most some twenty words on NDCG@10: who is best, and whether the lead is more than noise.

    Where an ItemKNN prior helps the model, the sentence says how the trained policy does without it.

    Args:
        metrics: the result of ``summarise``, with what was added to it.
    """
    if not metrics["baselines"]:
        return "No baseline ran, so there is nothing to compare the model with."
    rival = best_baseline(metrics)
    opening = _against(standing(metrics, "model"), "the model", rival)
    if _helper(metrics) is None:
        return f"{_capital(opening)}."
    alone = standing(metrics, "policy")
    helped = f"{_capital(opening)} with ItemKNN's help"
    if alone == "noise":
        return f"{helped}; without it, it is ahead within the noise."
    return f"{helped}; alone, the trained policy {'is level with' if alone == 'level' else 'loses to'} {rival}."


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
    """How a ranking stands on NDCG@10 against the best baseline; "beats": more than noise, against each of them."""
    value = metrics[name]["item"][DECIDES]
    best = max(row[DECIDES] for row in metrics["baselines"].values())
    if math.isclose(value, best, rel_tol=1e-9, abs_tol=1e-12):
        return "level"
    if value < best:
        return "loses"
    if name != "model":
        return "noise"  # Paired differences are those of the model: a lead of another one is not tested.
    lows = (metrics["paired"].get(other, {}).get(DECIDES, {}).get("low", 0.0) for other in metrics["baselines"])
    return "beats" if all(low > 0 for low in lows) else "noise"


def name_of_best(metrics: Mapping[str, Any]) -> str:
    """The key of the baseline with the best NDCG@10."""
    return max(metrics["baselines"], key=lambda name: metrics["baselines"][name][DECIDES])


def best_baseline(metrics: Mapping[str, Any]) -> str:
    """The best baseline's name in words."""
    name = name_of_best(metrics)
    return NAMES.get(name, name)


def _against(stands: Standing, who: str, rival: str) -> str:
    return {
        "beats": f"{who} beats every baseline",
        "noise": f"{who} is ahead of every baseline, but within the noise",
        "level": f"{who} is level with the best baseline, {rival}",
        "loses": f"{rival} beats {who}",
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
