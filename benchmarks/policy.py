"""The policy beside tuned ItemKNN, whole and with each of its parts left out.

Every variant is the config with one part of the policy or of its training off, or soft targets on; ``bench.variants``
chooses some of them, ``bench.seeds`` the number of policies of each. Each policy answers the test queries by its
semantic IDs alone, by its item head alone, by both (the policy), and by both with ItemKNN (the model), as validation
tuned the weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison
from benchmarks.harness import WITHOUT_ROWS, chosen_variants, in_process, seeds_of
from benchmarks.tables import policy_page
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
