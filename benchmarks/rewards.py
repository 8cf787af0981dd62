"""Rewards compared: the same SFT policies, each improved by GRPO with every variant's rewards.

The first variant is the SFT policy itself. The others are GRPO stages of the config with other rewards or settings;
``v1`` to ``v4`` take rewards and objective of the recipes in ``configs/versions``; ``supervised`` has the same updates
by the supervised term and the KL but no reward, so what rewards add is the difference to it. ``bench.variants``
chooses, ``bench.seeds`` is the number of SFT policies. ``benchmarks.compare`` says what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.compare import (
    Comparison,
    Scores,
    Variant,
    audit,
    common_seeds,
    compare,
    paired_gains,
    score_variants,
)
from benchmarks.harness import chosen_variants
from benchmarks.tables import estimate_text, gain_text, markdown, or_dash
from cluster.artifacts import Artifact
from genrec.config import Config, Rewards, load_config

DIRECTORY = "rewards"
NEEDS = ("prepare", "assign", "embed")
FIRST = "sft"
GUARDED = ("ndcg@10", "hr@50")
"""Metrics with a paired bootstrap, over all queries and over those for tail items."""

Change = tuple[Mapping[str, Any], Mapping[str, float] | Rewards]
"""What a variant changes: fields of ``learning.rl``, and weights of the rewards or the whole section."""


SHARE = "advantage_share/"
REWARD_SCORES = ("ndcg@10", "hr@10", "hr@50", "hr@50/tail", "coverage@10", "category_entropy@10")


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train and score the chosen variants.

    Raises:
        InputError: ``bench.variants`` names one that does not exist.
    """
    known = changes(config)
    chosen = {FIRST: Variant(config, artifacts)}
    for name in chosen_variants(config, known):
        if name != FIRST:
            chosen[name] = Variant(changed(config, known[name]), artifacts, "grpo")
    comparison = Comparison(DIRECTORY)
    for scores in score_variants(DIRECTORY, chosen):
        if all(scores.values()):
            comparison = _compared(config, scores)
    return comparison


def changes(config: Config) -> dict[str, Change]:
    """What each variant changes in the config, by name."""
    found: dict[str, Change] = {FIRST: ({}, {}), "config": ({}, {})}
    for name in ("v1", "v2", "v3", "v4"):
        recipe = load_config([f"versions/{name}"])
        found[name] = ({key: getattr(recipe.learning.rl, key) for key in ("objective", "advantage")}, recipe.rewards)
    hit = Rewards(hit=1.0, rank_log=0.0, settings=config.rewards.settings)
    none = hit.replace(hit=0.0, control=True)
    found |= {"hit": ({}, hit), "supervised": ({}, none)}
    for name in ("ndcg_rank", "prefix", "future", "collaborative", "semantic"):
        found[name] = ({}, hit.weighted({name: 1.0 if name == "ndcg_rank" else 0.5}))
    found |= {name: ({"generation": name}, {}) for name in ("sample", "stochastic_beam", "mixed")}
    found |= {name: ({"advantage": name}, {}) for name in ("group_mean", "leave_one_out", "rank")}
    return found | {"no_sft": ({"sft": 0.0}, {}), "no_kl": ({"kl": 0.0}, {}), "plain": ({"sft": 0.0, "kl": 0.0}, hit)}


def changed(config: Config, change: Change) -> Config:
    """The config of a variant."""
    settings, weights = change
    rl = config.learning.rl.replace(settings)
    rewards = weights if isinstance(weights, Rewards) else config.rewards.weighted(weights)
    return config.replace({"learning.rl": rl, "rewards": rewards})


def _compared(config: Config, scores: Scores) -> Comparison:
    """The comparison of the policies so far, of which every variant has one."""
    found, seeds = compare(scores), common_seeds(scores)
    base = [scores[FIRST][seed] for seed in seeds]
    for name, by_seed in scores.items():
        own = [by_seed[seed] for seed in seeds]
        found[name]["paired"] = paired_gains(own, base, GUARDED, config.evaluation.bootstrap, config.seed)
        if name != FIRST:
            found[name]["audit"] = audit(own)
    comparison = Comparison(DIRECTORY, text=rewards_page(found))
    comparison.figures = {f"{name}.{metric}": one[metric]["mean"] for name, one in found.items() for metric in GUARDED}
    comparison.write(config, found)
    return comparison


def rewards_page(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """Three tables of policies by rewards: their scores, their gains over the first, and their audits."""
    first = next(iter(policies))
    base, seeds = policies[first], min(len(one["seeds"]) for one in policies.values())
    scores, gains = [name for name in REWARD_SCORES if name in base], list(base["paired"])
    scored = ([name, *(estimate_text(one[score], ".4f") for score in scores)] for name, one in policies.items())
    gained = (
        [name, *(gain_text(one, base, gain) for gain in gains)] for name, one in policies.items() if name != first
    )
    lines = [
        *markdown(("rewards", *scores), scored),
        "",
        f"Test split, item level: mean of {seeds} seeds [95 % t interval].",
        "",
        *markdown(("rewards", *gains), gained),
        "",
        f"Gains over {first}: mean over seeds [95 % paired bootstrap over queries] (relative).",
        "",
        *_audits({name: one["audit"] for name, one in policies.items() if "audit" in one}),
        "",
        "Means over updates and seeds; *best_step*: the step that was kept, *stopped*: share that the guard stopped.",
    ]
    return "\n".join(lines) + "\n"


def _audits(audits: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(name for audit in audits.values() for name in audit)
    columns = [name for name in names if not name.startswith(SHARE)]
    body = (
        [name, *(or_dash(audit.get(column), ".3g") for column in columns), _shares(audit)]
        for name, audit in audits.items()
    )
    return markdown(("rewards", *columns, "shares of the advantages' variance"), body)


def _shares(audit: Mapping[str, float]) -> str:
    shares = {name.removeprefix(SHARE): share for name, share in audit.items() if name.startswith(SHARE)}
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share)
