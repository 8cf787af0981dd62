"""The recipes of ``configs/versions``, each trained whole on one data set with one backbone, beside what was claimed.

The config gives data, backbone, the number of codes (``sid.levels``, ``sid.codebook_size``), and how long and at which
rates they are trained, equal for all. A recipe gives its method: semantic IDs, what prompts say of events (nothing),
the supervised loss, fine-tuning and joint training where the backbone knows text, objective, rewards and search.
``bench.variants`` chooses recipes, ``bench.seeds`` the number of policies of each. ``v3_plain`` is ``v3`` without the
reward for new items. ``benchmarks.compare`` says what is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.claims import CLAIMS, verdicts
from benchmarks.compare import (
    METRICS,
    Comparison,
    RunScore,
    Scores,
    Variant,
    common_seeds,
    compare,
    paired_gains,
    score_variants,
)
from benchmarks.harness import chosen_variants, in_process
from benchmarks.tables import estimate_text, gain_text, markdown
from cluster.artifacts import MANIFEST, Artifact
from cluster.pipeline import run_stage
from cluster.stages.evaluate import read_test
from genrec.config import Config, load_config

DIRECTORY = "recipes"
NEEDS = ("prepare", "embed")

RECIPES: Mapping[str, tuple[str, ...]] = {
    "v0a": ("versions/v0a",),
    "v0b": ("versions/v0b",),
    "v1": ("versions/v1",),
    "v2": ("versions/v2",),
    "v3": ("versions/v3",),
    "v3_plain": ("versions/v3", "rewards.novelty=0"),
    "v4": ("versions/v4",),
}
"""Each recipe's file, and what is changed in it."""

METHOD = (
    *("sid.quantizer", "sid.codebook", "sid.decay", "sid.text_weight", "sid.cf_weight"),
    *("policy.items", "policy.context"),
    *("learning.sft.loss", "learning.sft.ema_decay"),
    *(f"learning.rl.{name}" for name in ("objective", "advantage", "group", "generation", "ratio_clip", "gae_lambda")),
    *(
        "learning.rl.critic",
        "learning.rl.critic_layers",
        "learning.rl.kl",
        "learning.rl.prefix_weight",
        "learning.rl.sft",
        "learning.rl.ema_decay",
        "rewards",
    ),
    *("decode.width", "decode.prior", "evaluation.ks"),
)
"""What a recipe sets for any backbone."""

PRETRAINED = ("policy.finetuning", "policy.lora")
TEXT = ("learning.tasks", "learning.sft.example_format")
"""What it also sets where the backbone is pretrained, and where it knows text."""

RL = "+ RL"


KINDS = ("claimed", "SFT", "SFT + RL", "gain in")
"""What the recipes' table shows of each score."""


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train and score the chosen recipes, supervised and then by rewards.

    Raises:
        InputError: ``bench.variants`` names one that does not exist.
    """
    chosen: dict[str, Variant] = {}
    catalogs: dict[str, Artifact] = {}
    for name in chosen_variants(config, RECIPES):
        own = recipe(config, name)
        catalogs[name] = run_stage(in_process(own, DIRECTORY), "assign", artifacts)
        inputs = {**artifacts, "assign": catalogs[name]}
        chosen |= {name: Variant(own, inputs), f"{name} {RL}": Variant(own, inputs, "grpo")}
    first = next(iter(chosen.values()))
    baseline = _itemknn(first)
    comparison = Comparison(DIRECTORY)
    for scores in score_variants(DIRECTORY, chosen):
        if all(scores.values()):
            comparison = _compared(config, scores, catalogs, baseline)
    return comparison


def recipe(config: Config, name: str) -> Config:
    """The config with the method of a recipe."""
    file, *changes = RECIPES[name]
    own = load_config([file], changes)
    keys = [*METHOD, *(PRETRAINED if config.policy.kind == "pretrained" else ())]
    keys += TEXT if config.policy.knows_text else ()
    return config.replace({key: own.value_at(key) for key in keys})


def _itemknn(first: Variant) -> dict[str, float]:
    """The metrics of ItemKNN, tuned on validation, on the test queries."""
    from genrec.baselines.ranking import rank
    from genrec.metrics import means, per_query, target_ranks

    config = in_process(first.config, DIRECTORY)
    test = read_test(config, first.inputs)
    ranked_QK = rank(test.suite.itemknn, test.recent_QH, config.decode.width, mask_seen=test.suite.mask_seen)
    return means(per_query(target_ranks(ranked_QK, test.targets_Q), (10,)))


def _compared(
    config: Config, scores: Scores, catalogs: Mapping[str, Artifact], baseline: Mapping[str, float]
) -> Comparison:
    """The comparison of the policies so far, of which every recipe has one of each kind."""
    means, seeds = compare(scores), common_seeds(scores)
    found: dict[str, Any] = {}
    for name, catalog in catalogs.items():
        sft, rl = ([scores[row][seed] for seed in seeds] for row in (name, f"{name} {RL}"))
        health = json.loads((catalog.path / "sid_health.json").read_text(encoding="utf-8"))
        found[name] = {
            "seeds": [str(seed) for seed in seeds],
            "sft": {metric: means[name][metric] for metric in METRICS},
            "rl": {metric: means[f"{name} {RL}"][metric] for metric in METRICS},
            "gain": paired_gains(rl, sft, METRICS, config.evaluation.bootstrap, config.seed),
            "collisions": health["collisions_before"]["rate"],
            "method": _method(recipe(config, name)),
            **_costs(sft, rl),
        }
        found[name]["claims"] = verdicts(name, found[name], baseline, found)
    about = {"itemknn": dict(baseline), "recipes": found}
    comparison = Comparison(DIRECTORY, text=recipes_page(found, baseline, CLAIMS))
    comparison.figures = {
        f"{name}.{kind}.{metric}": one[kind][metric]["mean"]
        for name, one in found.items()
        for kind in ("sft", "rl")
        for metric in METRICS
    }
    comparison.write(config, about)
    return comparison


def _method(config: Config) -> dict[str, str]:
    """A recipe in words: its semantic IDs, supervised training, and reinforcement learning."""
    sid, loss, rl = config.sid, config.learning.sft.loss, config.learning.rl
    mined = [f"second pass {loss.second_pass:.0%}"] if loss.second_pass else []
    tuned = [config.policy.finetuning] if config.policy.kind == "pretrained" else []
    weights = ", ".join(f"{name} {weight:g}" for name, weight in config.rewards.weights().items() if weight)
    return {
        "sid": sid.quantizer + (" (EMA)" if sid.quantizer == "rqvae" and sid.codebook == "ema" else ""),
        "sft": ", ".join([*tuned, *(loss.weights or ("cross-entropy",)), *mined]),
        "rl": f"{rl.objective}: {weights}",
    }


def _costs(sft: Sequence[RunScore], rl: Sequence[RunScore]) -> dict[str, Any]:
    """The share of parameters that trains, and the largest peak memory and mean seconds of both stages."""
    manifests = {kind: [_metrics(one) for one in runs] for kind, runs in (("sft", sft), ("rl", rl))}
    found: dict[str, Any] = {"trained_share": manifests["sft"][0]["trained_share"]}
    for kind, made in manifests.items():
        found[f"{kind}_peak_mb"] = max(one["peak_rss_mb"] for one in made)
        found[f"{kind}_s"] = sum(one["wall_s"] for one in made) / len(made)
    return found


def _metrics(one: RunScore) -> dict[str, Any]:
    return json.loads((one.policy / MANIFEST).read_text(encoding="utf-8"))["metrics"]


def recipes_page(
    recipes: Mapping[str, Mapping[str, Any]], itemknn: Mapping[str, float], claims: Mapping[str, Any]
) -> str:
    """The documents' table beside what was measured, the costs, and the recipes' claims one by one.

    Args:
        recipes: by name, what ``benchmarks.recipes`` measured.
        itemknn: the metrics of ItemKNN, tuned on validation.
        claims: ``benchmarks.claims.CLAIMS``.
    """
    seeds = len(next(iter(recipes.values()))["seeds"])
    heads = ("recipe", "SIDs", "SFT", "RL", *(f"{kind} {score}" for score in ("HR@10", "NDCG@10") for kind in KINDS))
    body = ([name, *one["method"].values(), *_recipe_scores(one, claims.get(name))] for name, one in recipes.items())
    shown = ", ".join(f"{name.upper()} {value:.4f}" for name, value in itemknn.items())
    lines = [*markdown(heads, body), ""]
    lines += [f"Test split, item level: mean of {seeds} seeds [95 % t interval]; *gain*: of RL over SFT, 95 % paired"]
    lines += [f"bootstrap over queries; *claimed*: SFT → RL (gain). ItemKNN, tuned on validation: {shown}.", ""]
    costs = ("trained_share", "collisions", "sft_s", "rl_s", "sft_peak_mb", "rl_peak_mb")
    forms = (".2%", ".1%", ".0f", ".0f", ".0f", ".0f")
    costed = ([name, *map(format, (one[cost] for cost in costs), forms)] for name, one in recipes.items())
    lines += [*markdown(("recipe", *costs), costed), ""]
    lines += [
        "*collisions*: before they are resolved. *peak_mb*: of the process, the earlier rows' pages included.",
        "",
    ]
    lines += [f"- {name}: {line}" for name, one in recipes.items() for line in one["claims"]]
    return "\n".join(lines).rstrip() + "\n"


def _recipe_scores(one: Mapping[str, Any], claim: Any) -> Iterable[str]:
    for place, score in enumerate(("hr@10", "ndcg@10")):
        if claim is None:
            yield "–"
        else:
            yield f"{claim.sft[place]:.3f} → {claim.rl[place]:.3f} ({claim.gain(score):+.1%})"
        yield from (estimate_text(one[kind][score], ".4f") for kind in ("sft", "rl"))
        yield gain_text({"paired": one["gain"]}, one["sft"], score)
