"""What event types and time gaps in the prompt give, by the event type of the target, beside ItemKNN.

Every variant is the config with another ``policy.context``; its event types are those of the config, so it needs some.
Under ``wanted`` a policy is told the event type of each target, as a request would; ItemKNN and the other variants are
not. ``bench.variants`` chooses some, ``bench.seeds`` the number of policies of each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison
from benchmarks.harness import chosen_variants, in_process, seeds_of
from benchmarks.tables import estimate_text, markdown
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.pipeline import run_stage
from cluster.progress import STAGE
from cluster.stages.evaluate import TestData, predict_test, read_test
from genrec.config import Config
from genrec.errors import InputError

LOG = logging.getLogger(__name__)

DIRECTORY = "events"
NEEDS = ("prepare", "assign")

VARIANTS: Mapping[str, tuple[str, bool]] = {
    "items": ("none", False),
    "gaps": ("none", True),
    "events": ("history", False),
    "events_gaps": ("history", True),
    "wanted": ("wanted", False),
    "wanted_gaps": ("wanted", True),
}
"""``policy.context.events`` and ``policy.context.gaps``, by the name of the variant."""


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train and score the chosen variants, all from one seed before any from the next.

    Raises:
        InputError: ``bench.variants`` names one that does not exist, or the config names no event types.
    """
    if not config.policy.context.types:
        raise InputError("bench events: got no event types; name those of the log in policy.context.types")
    names, test = chosen_variants(config, VARIANTS), read_test(in_process(config, DIRECTORY), artifacts)
    comparison, found = Comparison(DIRECTORY), dict[str, dict[str, Any]]()
    pairs = [(seed, name) for seed in seeds_of(config) for name in names]
    for number, (seed, name) in enumerate(pairs, start=1):
        scores = _train_and_score(variant_of(config.replace(seed=seed), name), artifacts, test)
        found.setdefault("ItemKNN", {})[str(seed)] = scores.pop("itemknn")
        found.setdefault(name, {})[str(seed)] = scores.pop("policy")
        shown = "  ".join(f"{event} {one['ndcg@10']:.4f}" for event, one in found[name][str(seed)].items())
        LOG.info("%d/%d %s, seed %d: NDCG@10 %s", number, len(pairs), name, seed, shown, extra={STAGE: DIRECTORY})
        comparison.text = events_page(found)
        comparison.figures = {
            f"{variant}.{event}.ndcg@10": sum(one[event]["ndcg@10"] for one in seeds.values()) / len(seeds)
            for variant, seeds in found.items()
            for event in next(iter(seeds.values()))
        }
        comparison.write(config, found)
    return comparison


def variant_of(config: Config, name: str) -> Config:
    """The config with the context of a variant."""
    events, gaps = VARIANTS[name]
    return config.replace({"policy.context.events": events, "policy.context.gaps": gaps})


def _train_and_score(config: Config, artifacts: Mapping[str, Artifact], test: TestData) -> dict[str, Any]:
    variant = in_process(config, DIRECTORY)
    inputs = {**artifacts, "sft": run_stage(variant, "sft", artifacts)}
    settings = {
        "decode": variant.decode.search_settings(),
        "counted": variant.baselines.counted,
        "seed": config.seed,
    }
    work = partial(_score, variant, inputs, test)
    made = make_artifact(variant, Recipe("by_event", settings, (__name__,), list(inputs.values())), work)
    return dict(made.metrics["by_event"])


def _score(config: Config, inputs: Mapping[str, Artifact], test: TestData, out: Path) -> Mapping[str, Any]:
    """Metrics of the policy alone and of tuned ItemKNN, over all test queries and by the event type of the target."""
    from genrec.evaluation.slices import by_event
    from genrec.metrics import means, per_query, target_ranks

    answers = predict_test(config, inputs, test, out)
    rankings = {"policy": answers.alone["sft"].items_QK}
    rankings["itemknn"] = test.suite.rank(test.recent_QH, config.decode.width)["itemknn"]
    found: dict[str, Any] = {}
    for name, ranked_QK in rankings.items():
        values = per_query(target_ranks(ranked_QK, test.targets_Q), (10,))
        slices = by_event(values, test.test["event"].to_pylist())
        found[name] = {"all": {"queries": len(test.targets_Q), **means(values)}, **slices}
    return {"by_event": found}


def events_page(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of NDCG@10 over all test queries and by event type, a row for each variant.

    Args:
        variants: by name and seed, what ``benchmarks.events`` measured.
    """
    from genrec.evaluation.intervals import over_runs

    first = next(iter(next(iter(variants.values())).values()))
    header = ("NDCG@10", *(f"{event} ({one['queries']:,})" for event, one in first.items()))
    body = (
        [name, *(estimate_text(over_runs([one[event]["ndcg@10"] for one in seeds.values()]), ".4f") for event in first)]
        for name, seeds in variants.items()
    )
    return "\n".join([*markdown(header, body), ""])
