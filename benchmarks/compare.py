"""Policies from several seeds side by side: each row of a benchmark is trained and scored, and compared with the first.

Policies and scores are stages under ``<storage>/bench/<place>``, one per row and seed, so a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import Bench, in_process
from benchmarks.tables import contest, contest_by_popularity
from cluster.artifacts import Artifact, run_stage
from cluster.batch_inference import predict
from cluster.stages import steps
from genrec.config import Config
from genrec.data.files import write_json, write_text
from genrec.data.tables import read_items, read_queries, read_sequences

VERSION = 3
METRICS = ("ndcg@10", "hr@10")
QUERIES = "queries.parquet"
"""Beside the scores: per test query the ``rank`` of its target (0: missed) and the ``bucket`` of its popularity."""


class RunScore(NamedTuple):
    """A policy's test metrics (those of a popularity bucket are named ``ndcg@10/tail``), and where both lie."""

    values: dict[str, float]
    policy: Path
    where: Path


Scores = dict[str, dict[int, RunScore]]
"""By row and seed."""


@dataclass
class Comparison(Bench):
    """A benchmark whose table is a Markdown page."""

    text: str = ""

    def table(self) -> str:
        """The page."""
        return self.text

    def keep(self, config: Config, found: Mapping[str, Any]) -> None:
        """Write the page and all figures beside the stages, as ``<config.name>.md`` and ``.json``."""
        directory = Path(in_process(config, self.name).storage)
        write_json(found, directory / f"{config.name}.json")
        write_text(self.text, directory / f"{config.name}.md")


@dataclass(frozen=True)
class Variant:
    """One contestant: a config, the catalogue that its policy answers from, and how it is trained on data and that."""

    config: Config
    catalog: Artifact
    train: Callable[[Config, Artifact, Artifact], Artifact] = steps.sft


def compare_variants(
    directory: str, label: str, config: Config, data: Artifact, rows: Mapping[str, Variant]
) -> Comparison:
    """Train and score the rows; the page of tables (``label`` heads the names) is written after every policy."""
    comparison = Comparison(directory)
    for scores in score_rows(directory, data, rows):
        if not all(scores.values()):
            continue
        found = compare(scores)
        tables = [contest(label, found), *(contest_by_popularity(found, metric) for metric in METRICS)]
        comparison.text = "\n\n".join("\n".join(lines) for lines in tables) + "\n"
        comparison.figures = {
            f"{name}.{metric}": row[metric]["mean"]
            for name, row in found.items()
            for metric in row
            if metric.startswith(METRICS)
        }
        comparison.keep(config, found)
    return comparison


def score_rows(directory: str, data: Artifact, rows: Mapping[str, Variant]) -> Iterator[Scores]:
    """The scores after each policy; the seeds take turns, so that a run that is cut short still compares all rows."""
    first = next(iter(rows.values())).config
    seeds = range(first.seed, first.seed + first.bench.seeds)
    scores: Scores = {name: {} for name in rows}
    for turn, (seed, name) in enumerate(((seed, name) for seed in seeds for name in rows), start=1):
        catalog = rows[name].catalog
        config = in_process(rows[name].config.model_copy(update={"seed": seed}), directory)
        policy = rows[name].train(config, data, catalog)
        settings = {"width": config.decode.width}
        work = partial(_score, config, data.path, catalog.path, policy.path)
        inputs = [data, catalog, policy]
        stage = run_stage(config, "scores", version=VERSION, settings=settings, inputs=inputs, work=work)
        values = stage.metrics["scores"]
        scores[name][seed] = RunScore(values, policy.path, stage.path)
        shown = "  ".join(f"{metric} {values[metric]:.4f}" for metric in METRICS)
        print(f"[{directory}] {turn}/{len(seeds) * len(rows)} {name}, seed {seed}: {shown}", flush=True)
        yield scores


def _score(config: Config, data: Path, catalog: Path, policy: Path, out: Path) -> Mapping[str, Any]:
    """Item-level metrics of the test queries, of all and by popularity of the target, and how wide the answers spread.

    As in ``evaluate``, seen items are masked where the log never repeats.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from genrec.baselines.buckets import popularity_bucket
    from genrec.baselines.train_log import train_log
    from genrec.evaluation.slices import by_bucket, category_entropy, category_numbers, coverage
    from genrec.metrics import means, per_query, target_ranks

    items = read_items(data)
    log = train_log(read_sequences(data), items.num_rows)
    beams = predict(config, data, catalog, policy, out / "answers", mask_seen=log.repeat_share == 0.0)
    targets_Q = read_queries(data, "test")["target"].to_numpy().astype("int64")
    ranks_Q, bucket_N = target_ranks(beams.items_QK, targets_Q), popularity_bucket(log.counts_N)
    values = per_query(ranks_Q, (10, 50))
    buckets = by_bucket(values, targets_Q, bucket_N)
    sliced = {f"{metric}/{name}": bucket[metric] for name, bucket in buckets.items() for metric in values}
    spread = {"coverage@10": coverage(beams.items_QK, items.num_rows)}
    if (entropy := category_entropy(beams.items_QK, category_numbers(items))) is not None:
        spread["category_entropy@10"] = entropy
    pq.write_table(pa.table({"rank": ranks_Q, "bucket": bucket_N[targets_Q]}), out / QUERIES)
    counts = {name: part["queries"] for name, part in buckets.items()}
    return {"scores": means(values) | sliced | spread, "queries": counts}


def compare(scores: Scores) -> dict[str, Any]:
    """Each row's scores by seed, their means with t intervals, and those of the differences to the first row.

    Only seeds that every row has count, so that a run in the making compares like with like.
    """
    from genrec.evaluation.intervals import over_runs

    first = next(iter(scores))
    seeds = [seed for seed in scores[first] if all(seed in by_seed for by_seed in scores.values())]
    found: dict[str, Any] = {}
    for name, by_seed in scores.items():
        found[name] = {"seeds": {str(seed): scored.values for seed, scored in by_seed.items()}, "compared_with": first}
        for metric in by_seed[seeds[0]].values:
            found[name][metric] = over_runs([by_seed[seed].values[metric] for seed in seeds])
            less = [by_seed[seed].values[metric] - scores[first][seed].values[metric] for seed in seeds]
            found[name][f"{metric}_difference"] = over_runs(less)
    return found
