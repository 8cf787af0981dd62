"""The verdict of an evaluation: one short sentence, and a paragraph that needs no knowledge of the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genrec.evaluation.intervals import Difference
from genrec.evaluation.summary import HEADLINE_METRICS, NAMES, Standing, best_baseline, origin_of_prior, standing

DECIDES, SHARE = HEADLINE_METRICS
"""The metric that decides, and the one that people read as so many of a hundred users."""


def verdict(metrics: Mapping[str, Any]) -> str:
    """One sentence of at most some twenty words on NDCG@10: who is best, and whether the lead is more than noise.

    A lead is more than noise where a paired interval is on one side of zero, whoever leads. Where an ItemKNN prior
    helps the model, the sentence says how the trained policy does without it.

    Args:
        metrics: the result of ``summarise``, with what was added to it.
    """
    if not metrics["baselines"]:
        return "No baseline ran, so there is nothing to compare the model with."
    rival, stands = _rival(metrics), standing_of(metrics, "model")
    if _helper(metrics) is None:
        return f"{_capital(_against(stands, rival))}."
    return f"{_capital(_with_help(stands, rival))}; {_without_help(standing_of(metrics, 'policy'), rival)}."


def plain_words(metrics: Mapping[str, Any]) -> str:
    """The verdict's figures in plain words: users of a hundred, the difference with its interval, what RL changed."""
    model = metrics["model"]["item"]
    hits = _of_hundred(model[SHARE])
    sentences = [f"Of 100 users, {hits} find their next item among the model's first ten."]
    if metrics["baselines"]:
        other = metrics["baselines"][_name_of_best(metrics)]
        sentences.append(
            f"The best baseline, {_rival(metrics)}, does so for {_of_hundred(other[SHARE])}. "
            f"NDCG@10, which counts a hit the more the higher it stands, is "
            f"{model[DECIDES]:.4f} against {other[DECIDES]:.4f}{_chance(metrics)}."
        )
    if (weight := _helper(metrics)) is not None:
        alone = metrics["policy"]["item"]
        sentences.append(
            f"The model is the trained policy with an ItemKNN prior of weight {weight:g}, {origin_of_prior(metrics)}. "
            f"Without it, the policy has {_of_hundred(alone[SHARE])} of 100 users and NDCG@10 {alone[DECIDES]:.4f}."
        )
    return " ".join([*sentences, *_gain(metrics)])


def standing_of(metrics: Mapping[str, Any], name: str) -> Standing:
    """How the model, or its policy (by its ``name`` in ``metrics``), stands on NDCG@10 against the best baseline."""
    # Reports of older versions have no paired differences of the policy.
    differences = metrics["paired"] if name == "model" else metrics.get(f"paired_{name}", {})
    return standing(DECIDES, metrics[name]["item"], metrics["baselines"], differences)


def _name_of_best(metrics: Mapping[str, Any]) -> str:
    return best_baseline(DECIDES, metrics["baselines"])


def _rival(metrics: Mapping[str, Any]) -> str:
    """The best baseline's name in words."""
    name = _name_of_best(metrics)
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
    found: Difference | None = metrics["paired"].get(_name_of_best(metrics), {}).get(DECIDES)
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
