"""Variants of a config compared: a policy is trained for each, from several seeds, and scored on the test queries.

Policies and scores are artifacts under ``<storage>/bench/<directory>``, one per variant and seed, so a killed run
continues. The page of tables and all figures lie next to them as ``<config.name>.md`` and ``.json``, and are written
again after every policy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Bench, in_process
from benchmarks.tables import popularity_table, scores_table
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.batch_inference import predict
from cluster.pipeline import STAGES, reads, run_stage
from cluster.policy_predictor import PolicyPredictor, tuned_baselines
from cluster.progress import STAGE
from cluster.train import read_summary
from genrec.config import Config
from genrec.data.files import write_json, write_text
from genrec.data.readers import count_items, read_items, read_queries
from genrec.data.train_counts import read_train_counts
from genrec.metrics import FloatArray, IntArray

if TYPE_CHECKING:
    from genrec.inference.batch import Split

LOG = logging.getLogger(__name__)

METRICS = ("ndcg@10", "hr@10")
AUDITED = ("zero_advantage_groups", "advantage_share/", "prob_shift/")
SCORED_BY = ("benchmarks.compare", "benchmarks.scores")
QUERIES = "queries.parquet"
"""Next to the scores: per query the ``rank`` of its target (0: not found) and the ``bucket`` of its popularity."""


class RunScore(NamedTuple):
    """A policy's metrics (in a slice: ``ndcg@10/tail``), its directory, and that of its scores."""

    values: dict[str, float]
    policy: Path
    scores: Path


Answer = Callable[[Config, Path, Path, Path, "Split", Path], IntArray]
"""From data, catalogue, policy, split and a working directory to answers (Q, K)."""

Scores = dict[str, dict[int, RunScore]]
"""By variant and seed."""


@dataclass
class Comparison(Bench):
    """A benchmark whose table is a Markdown page."""

    text: str = ""

    def table(self) -> str:
        """The page."""
        return self.text

    def write(self, config: Config, found: Mapping[str, Any]) -> None:
        """Write the page and all figures next to the artifacts, as ``<config.name>.md`` and ``.json``."""
        directory = Path(in_process(config, self.name).storage)
        write_json(found, directory / f"{config.name}.json")
        write_text(self.text, directory / f"{config.name}.md")


@dataclass(frozen=True)
class Variant:
    """What is compared: a config, the artifacts that its policies are trained on, and the stage that makes them."""

    config: Config
    inputs: Mapping[str, Artifact]
    policy: Literal["sft", "grpo"] = "sft"

    def train(self, config: Config) -> Artifact:
        """The policy of ``config``, which is this variant's with a seed and a storage."""
        return make_from(config, self.policy, self.inputs)[self.policy]


def make_from(config: Config, stage: str, inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """``inputs`` with the artifact of ``stage``, and of what it reads and ``inputs`` lack."""
    made = dict(inputs)
    for other in reads(STAGES[stage], config):
        if other not in made:
            made = make_from(config, other, made)
    made[stage] = run_stage(config, stage, made)
    return made


def compare_variants(directory: str, label: str, config: Config, variants: Mapping[str, Variant]) -> Comparison:
    """Train, score and compare ``variants``; ``label`` heads the column of their names."""
    comparison = Comparison(directory)
    for scores in score_variants(directory, variants):
        if not all(scores.values()):
            continue
        found = compare(scores)
        tables = [scores_table(label, found), *(popularity_table(found, metric) for metric in METRICS)]
        comparison.text = "\n\n".join("\n".join(lines) for lines in tables) + "\n"
        comparison.figures = {
            f"{name}.{metric}": one[metric]["mean"]
            for name, one in found.items()
            for metric in one
            if metric.startswith(METRICS)
        }
        comparison.write(config, found)
    return comparison


def score_variants(directory: str, variants: Mapping[str, Variant]) -> Iterator[Scores]:
    """The scores so far, after each policy.

    All variants get a policy from one seed before any gets one from the next, so a run that is cut short still
    compares all of them.
    """
    first = next(iter(variants.values())).config
    seeds = range(first.seed, first.seed + first.bench.seeds)
    scores: Scores = {name: {} for name in variants}
    pairs = [(seed, name) for seed in seeds for name in variants]
    for number, (seed, name) in enumerate(pairs, start=1):
        variant = variants[name]
        config = in_process(variant.config.replace(seed=seed), directory)
        scored = score_policy(config, variant.inputs, variant.train(config), "test")
        scores[name][seed] = scored
        shown = "  ".join(f"{metric} {scored.values[metric]:.4f}" for metric in METRICS)
        LOG.info("%d/%d %s, seed %d: %s", number, len(pairs), name, seed, shown, extra={STAGE: directory})
        yield scores


def score_policy(
    config: Config, inputs: Mapping[str, Artifact], policy: Artifact, split: Split, *, served: bool = False
) -> RunScore:
    """The scores of a policy's own answers to the queries of ``split``, or of those as ``served``; an artifact."""
    data, catalog = inputs["prepare"], inputs["assign"]
    answer = answered_as_served if served else answered
    work = partial(_score, config, data.path, catalog.path, policy.path, split, answer)
    settings = {"width": config.decode.width} | ({} if split == "test" else {"split": split})
    if served:
        settings |= {"served": config.decode.search_settings(), "counted": config.baselines.counted}
    made = make_artifact(config, Recipe("scores", settings, SCORED_BY, [data, catalog, policy]), work)
    return RunScore(made.metrics["scores"], policy.path, made.path)


def _score(
    config: Config, data: Path, catalog: Path, policy: Path, split: Split, answer: Answer, out: Path
) -> Mapping[str, Mapping[str, float]]:
    """The scores of a ``RankingScorer``; the ranks of the targets go to ``QUERIES``."""
    from benchmarks.scores import RankingScorer

    items = read_items(data)
    ranked_QK = answer(config, data, catalog, policy, split, out)
    counts_N = read_train_counts(data, items.num_rows).events_N
    scorer = RankingScorer.of(read_queries(data, split), items, counts_N)
    columns = {"rank": scorer.ranks(ranked_QK), "bucket": scorer.bucket_N[scorer.targets_Q]}
    pq.write_table(pa.table(columns), out / QUERIES)
    return {"scores": scorer.scores(ranked_QK)}


def answered(config: Config, data: Path, catalog: Path, policy: Path, split: Split, out: Path) -> IntArray:
    """A policy's own answers (Q, K) to the queries of ``split``.

    As in ``evaluate``, seen items are masked where the log never repeats. An item head has the weight of validation.
    """
    from genrec.inference.batch import own_answering

    ways, masks = {"own": own_answering(config)}, read_train_counts(data, count_items(data)).mask_seen
    found = predict(config, data, catalog, policy, out / "answers", ways, split=split, mask_seen=masks)
    return found["own"].items_QK


def answered_as_served(config: Config, data: Path, catalog: Path, policy: Path, split: Split, out: Path) -> IntArray:
    """A policy's answers (Q, K) fused with its item head and the prior, weighed as validation weighs them for it."""
    from genrec.inference.batch import Answering

    suite = tuned_baselines(config, data)
    predictor = PolicyPredictor(config, {"prepare": data, "assign": catalog, "policy": policy}, "policy", suite, out)
    tuned = predictor.tuned(read_queries(data, "valid"))
    way = {"served": Answering(tuned.head_weight, tuned.weight)}
    return predictor.answers(split, way)["served"].items_QK


def common_seeds(scores: Scores) -> list[int]:
    """The seeds that every variant has a policy of."""
    first = next(iter(scores.values()))
    return [seed for seed in first if all(seed in by_seed for by_seed in scores.values())]


def compare(scores: Scores) -> dict[str, Any]:
    """Each variant's scores by seed, their means with t intervals, and those of the differences to the first variant.

    Differences are paired by seed; only seeds that every variant has are used.
    """
    from genrec.evaluation.intervals import over_runs

    first, seeds = next(iter(scores)), common_seeds(scores)
    found: dict[str, Any] = {}
    for name, by_seed in scores.items():
        found[name] = {"seeds": {str(seed): scored.values for seed, scored in by_seed.items()}, "compared_with": first}
        for metric in by_seed[seeds[0]].values:
            found[name][metric] = over_runs([by_seed[seed].values[metric] for seed in seeds])
            differences = [by_seed[seed].values[metric] - scores[first][seed].values[metric] for seed in seeds]
            found[name][f"{metric}_difference"] = over_runs(differences)
    return found


def paired_gains(
    own: Sequence[RunScore], base: Sequence[RunScore], metrics: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """The gain over ``base`` in each query's mean over seeds, with intervals by resampling queries.

    Also over the queries for tail items alone, as ``<metric>/tail``.
    """
    from genrec.baselines.buckets import BUCKETS
    from genrec.evaluation.intervals import paired

    (values, bucket_Q), (base_values, _) = (per_query_means(part, metrics) for part in (own, base))
    found: dict[str, Any] = dict(paired(values, base_values, resamples, seed))
    tail_Q = bucket_Q == BUCKETS.index("tail")
    if tail_Q.any():

        def tail(part: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
            return {f"{name}/tail": column_Q[tail_Q] for name, column_Q in part.items()}

        found |= paired(tail(values), tail(base_values), resamples, seed)
    return found


def per_query_means(scored: Sequence[RunScore], metrics: Sequence[str]) -> tuple[dict[str, FloatArray], IntArray]:
    """The ``metrics`` of each test query (Q,), averaged over the policies, and the queries' buckets (Q,)."""
    from genrec.metrics import per_query

    tables = [pq.read_table(one.scores / QUERIES) for one in scored]
    values = [per_query(table["rank"].to_numpy(), (10, 50)) for table in tables]
    means = {name: np.mean([one[name] for one in values], axis=0) for name in metrics}
    return means, tables[0]["bucket"].to_numpy()


def audit(scored: Sequence[RunScore]) -> dict[str, float]:
    """Means over seeds of the step that was kept, of the share that the guard stopped, and of the updates' audit."""
    curves = [read_summary(one.policy) for one in scored]
    records = [record for curve in curves for record in curve["curve"]]
    found = {
        "best_step": sum(curve["best_step"] for curve in curves) / len(curves),
        "stopped": sum(bool(curve["stopped"]) for curve in curves) / len(curves),
    }
    for name in sorted({name for record in records for name in record if name.startswith(AUDITED)}):
        values = [record[name] for record in records if record.get(name) is not None and record[name] == record[name]]
        if values:
            found[name] = sum(values) / len(values)
    return found
