"""The policy beside tuned ItemKNN, whole and with each of its parts left out.

Every variant is the config with one part of the policy or of its training off, or soft targets on; ``bench.variants``
chooses some of them, ``bench.seeds`` the number of policies of each. Each policy answers the test queries by its
semantic IDs alone, by its item head alone, by both (the policy), and by both with ItemKNN (the model), as validation
tuned the weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison
from benchmarks.harness import WITHOUT_ROWS, chosen_variants, in_process, seeds_of
from benchmarks.tables import estimate_text, markdown
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.pipeline import run_stage
from cluster.progress import STAGE
from cluster.stages.evaluate import TestData, predict_test, read_test
from genrec.config import Config

LOG = logging.getLogger(__name__)

DIRECTORY = "policy"
NEEDS = ("prepare", "assign")

PARTS: Mapping[str, Mapping[str, Any]] = {
    "whole": {},
    "without_rows": {"policy.items": WITHOUT_ROWS},
    "without_input": {"policy.items.input": "none"},
    "without_mean": {"policy.items.mean": False},
    "without_head": {"policy.items.head": False},
    "without_repeats": {"policy.items.repeats": False},
    "without_cosine": {"policy.items.score": "dot"},
    "with_itemknns_soft_targets": {"learning.sft.distill": 0.3},
    "without_itemknns_soft_targets": {"learning.sft.distill": 0.0},
    "without_averaged_weights": {"learning.sft.ema_decay": 0.0},
    "without_pretraining": {"policy.weights": "random"},
}
"""What is changed in the config, by the name of the variant."""


POLICY_SCORES = ("hr@10", "ndcg@10", "hr@50", "hr@50/tail", "coverage@10")


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train and score the chosen variants, all from one seed before any from the next.

    Raises:
        InputError: ``bench.variants`` names one that does not exist.
    """
    names = chosen_variants(config, parts_of(config))
    test = read_test(in_process(config, DIRECTORY), artifacts)
    comparison, found = Comparison(DIRECTORY), dict[str, dict[str, Any]]()
    pairs = [(seed, name) for seed in seeds_of(config) for name in names]
    for number, (seed, name) in enumerate(pairs, start=1):
        variant = in_process(config.replace({"seed": seed, **PARTS[name]}), DIRECTORY)
        policy = run_stage(variant, "sft", artifacts)
        inputs = {**artifacts, "sft": policy}
        settings = {
            "decode": variant.decode.search_settings(),
            "bootstrap": variant.evaluation.bootstrap,
            "counted": variant.baselines.counted,
            "seed": seed,
        }
        work = partial(_score, variant, inputs, test)
        made = make_artifact(
            variant, Recipe("parts", settings, (__name__, "benchmarks.scores"), list(inputs.values())), work
        )
        one = {**made.metrics["parts"], "train_s": policy.metrics["wall_s"]}
        found.setdefault(name, {})[str(seed)] = one
        shown = "  ".join(f"{row} {one['rows'][row]['ndcg@10']:.4f}" for row in one["rows"])
        LOG.info("%d/%d %s, seed %d: NDCG@10 %s", number, len(pairs), name, seed, shown, extra={STAGE: DIRECTORY})
        comparison.text = policy_page(found)
        comparison.figures = {
            f"{variant_name}.{row}.{metric}": sum(one["rows"][row][metric] for one in seeds.values()) / len(seeds)
            for variant_name, seeds in found.items()
            for row in next(iter(seeds.values()))["rows"]
            for metric in ("ndcg@10", "hr@10")
        }
        comparison.write(config, found)
    return comparison


def parts_of(config: Config) -> list[str]:
    """The variants that differ from the config: a policy from scratch has no pretraining to leave out."""
    differs = {
        "without_pretraining": config.policy.kind == "pretrained" and config.policy.finetuning == "full",
        "with_itemknns_soft_targets": config.learning.sft.distill == 0,
        "without_itemknns_soft_targets": config.learning.sft.distill > 0,
    }
    return [name for name in PARTS if differs.get(name, True)]


def _score(config: Config, inputs: Mapping[str, Artifact], test: TestData, out: Path) -> Mapping[str, Any]:
    """Metrics of each way to answer and of ItemKNN, and the paired intervals of the differences to ItemKNN."""
    from benchmarks.scores import RankingScorer
    from genrec.baselines.ranking import rank
    from genrec.evaluation.intervals import paired

    started = time.perf_counter()
    answers = predict_test(config, inputs, test, out)
    seconds = time.perf_counter() - started
    rankings = {name: part.items_QK for name, part in answers.parts.items()}
    rankings |= {"policy": answers.alone[answers.best].items_QK, "model": answers.model_QK}
    suite, width = test.suite, config.decode.width
    rankings["itemknn"] = rank(suite.itemknn, test.recent_QH, width, mask_seen=suite.mask_seen)
    scorer = RankingScorer.of(test.test, test.items, suite.log.counts_N)
    values = {name: scorer.per_query(ranked_QK) for name, ranked_QK in rankings.items()}
    rows = {name: scorer.scores(ranked_QK) for name, ranked_QK in rankings.items()}
    draws = config.evaluation.bootstrap
    differences = {
        name: paired(values[name], values["itemknn"], draws, config.seed) for name in rankings if name != "itemknn"
    }
    tuned = answers.tuned.as_json() | {"alone": answers.tuned.alone}
    return {"parts": {"rows": rows, "minus_itemknn": differences, "tuned": tuned, "answer_s": seconds}}


def policy_page(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Three tables: how the first variant answers in each way, its differences to ItemKNN by seed, and all variants.

    Args:
        variants: by name and seed, what ``benchmarks.policy`` measured.
    """
    from genrec.evaluation.intervals import over_runs

    first, *others = variants.values()
    seeds = list(first.values())
    rows = [row for row in seeds[0]["rows"] if all(row in one["rows"] for one in seeds)]
    scores = [score for score in POLICY_SCORES if score in seeds[0]["rows"][rows[0]]]

    def mean(runs: Iterable[Mapping[str, Any]], row: str, score: str) -> str:
        return estimate_text(over_runs([one["rows"][row][score] for one in runs]), ".4f")

    answered = ([row, *(mean(seeds, row, score) for score in scores)] for row in rows)
    lines = [*markdown(("answered by", *(score.upper() for score in scores)), answered), ""]
    lines += [f"Test split, item level: mean of {len(seeds)} seeds [95 % t interval].", ""]
    compared = (
        [f"{row}, seed {seed}", *(_difference(one["minus_itemknn"][row], score) for score in ("hr@10", "ndcg@10"))]
        for seed, one in first.items()
        for row in ("policy", "model")
    )
    lines += [*markdown(("minus ItemKNN", "HR@10", "NDCG@10"), compared), ""]
    lines += ["Paired bootstrap over queries, 95 %.", ""]
    if others:
        shown = [(row, score) for row in ("sid_path", "item_head", "policy", "model") for score in ("hr@10", "ndcg@10")]
        body = (
            [
                name,
                *(
                    mean(runs.values(), row, score) if all(row in one["rows"] for one in runs.values()) else "–"
                    for row, score in shown
                ),
                f"{sum(one['train_s'] for one in runs.values()) / len(runs):.0f}",
            ]
            for name, runs in variants.items()
        )
        lines += [*markdown(("variant", *(f"{row} {score.upper()}" for row, score in shown), "training s"), body), ""]
    return "\n".join(lines) + "\n"


def _difference(found: Mapping[str, Any], name: str) -> str:
    one = found.get(name)
    return "–" if one is None else f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
