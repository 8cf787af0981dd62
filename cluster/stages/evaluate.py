"""evaluate: policies answer the test queries on Ray Data, and are compared with tuned baselines in one report."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.artifacts import Artifact, shown_in_storage
from cluster.newest_run import point_to
from cluster.policy_predictor import OWN, PolicyPredictor, TunedSearch, tuned_baselines
from cluster.stages import refit
from cluster.stages.plan import Plan, StageRun
from cluster.store_folders import publish_in_store
from cluster.timing_and_calibration import calibrations, item_vectors, rank_timed, speeds
from cluster.train import read_summary
from genrec.baselines.train_log import TRAIN_COLUMNS
from genrec.config import Config, to_yaml
from genrec.data.files import write_json
from genrec.data.readers import count_items, read_items, read_queries, stream_sequences
from genrec.data.tables import target_events
from genrec.data.train_counts import read_train_counts
from genrec.inference.run_record import RECORD

if TYPE_CHECKING:
    import pyarrow as pa

    from genrec.baselines.tuning import BaselineSuite
    from genrec.evaluation.goals import Goals
    from genrec.evaluation.summary import Rankings
    from genrec.inference.prior import RankedItems
    from genrec.metrics import IntArray
    from genrec.sid.catalog import Catalog

LOG = logging.getLogger(__name__)

PUBLISHED = (
    "metrics.json",
    "report.html",
    "report.md",
    "report.json",
    RECORD,
    "answers.parquet",
    "config.yaml",
)
"""Files that are copied to ``<storage>/runs``."""


def plan(run: StageRun) -> Plan:
    """Test the policies among the inputs ("sft", and "grpo" when it ran); fills the directory with the report."""
    config = run.config
    settings = {
        "decode": config.decode.search_settings(),
        "evaluation": config.evaluation.result_settings(),
        "values": config.rewards.settings.result_settings(),
        "counted": config.baselines.counted,
        "name": config.name,
        "seed": config.seed,
    }
    return Plan(settings, partial(_evaluate, config, run.inputs))


def publish(run: StageRun, artifact: Artifact) -> None:
    """Copy the report to ``<storage>/runs/<name>-<key>``, point ``<storage>/runs/<name>`` there, say the verdict.

    Both are complete or absent at any moment. The reports of other settings or seeds of one name stay.
    """
    newest = run.config.storage_path / "runs" / run.config.name
    kept = newest.with_name(f"{newest.name}-{artifact.key}")
    if not kept.is_dir():
        with TemporaryDirectory(dir=_made(newest.parent), prefix=".") as temporary:
            fresh = _made(Path(temporary) / "report")
            for name in PUBLISHED:
                shutil.copyfile(artifact.path / name, fresh / name)
            try:
                fresh.rename(kept)
            except OSError:
                if not kept.is_dir():  # Else another process published it meanwhile.
                    raise
    point_to(newest, kept)
    publish_in_store(run.config, kept, newest)
    LOG.info("verdict: %s", artifact.metrics["verdict"])
    LOG.info("report: %s (kept at %s)", shown_in_storage(run.config, newest / "report.html"), kept.name)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@dataclass(frozen=True)
class TestData:
    """The data of the evaluation: items, test and validation queries, the catalogue, and the fitted baselines.

    Of the test queries: ``targets_Q``, and the end of each history, newest first, as ``recent_QH``.
    """

    items: pa.Table
    test: pa.Table
    valid: pa.Table
    catalog: Catalog
    suite: BaselineSuite
    targets_Q: IntArray
    recent_QH: IntArray

    @cached_property
    def event_Q(self) -> list[str | None]:
        """The event types of the targets; empty where the log has none."""
        return target_events(self.test)


@dataclass(frozen=True)
class PolicyAnswers:
    """What the policies answered: ``alone`` by name, ``parts`` the best one's semantic IDs and item head by themselves.

    ``model_QK``: what the best one answers with its prior, as ``tuned``; ``refitted``: the same, its prior alone and
    ItemKNN, after the training on train and validation events; ``mixing_s``: seconds in which the prior was mixed in
    after the search.
    """

    best: str
    alone: Mapping[str, RankedItems]
    parts: Mapping[str, RankedItems]
    model_QK: IntArray
    tuned: TunedSearch
    refitted: Mapping[str, IntArray] = field(default_factory=dict[str, "IntArray"])
    mixing_s: float = 0.0

    @property
    def own_name(self) -> str:
        """What the best policy without a prior is called: it may be the model itself."""
        return "model" if self.tuned.is_policy_alone else "policy"

    @property
    def by_name(self) -> dict[str, RankedItems]:
        """``alone``, the best one by its ``own_name``."""
        return {self.own_name if name == self.best else name: one for name, one in self.alone.items()}


def _evaluate(config: Config, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Predict, summarise and write; returns the deciding figures."""
    test = read_test(config, inputs)
    answers = predict_test(config, inputs, test, out)
    if "refit" in inputs:
        answers = replace(answers, refitted=_refitted(config, inputs, test, answers.tuned, out))
    baselines, seconds = _baselines(config, inputs, test)
    metrics = _summarise(config, inputs, test, answers, baselines)
    mixing = answers.mixing_s / len(test.test)
    metrics["speed"] = speeds(out / "predictions", answers.best, answers.own_name, seconds, mixing)
    metrics["calibration"] = calibrations(answers.by_name, answers.parts, test.targets_Q)
    _write(config, inputs, test, answers, baselines, metrics, out)
    return {"verdict": metrics["verdict"], "headline": metrics["headline"], "model": metrics["model"]["item"]}


def read_test(config: Config, inputs: Mapping[str, Artifact]) -> TestData:
    """The data of an evaluation from the stages "prepare" and "assign"; the baselines are fitted and tuned."""
    from genrec.baselines.train_log import recent_history
    from genrec.sid.catalog import Catalog

    data, catalog = inputs["prepare"].path, Catalog.load(inputs["assign"].path)
    items, test, valid = read_items(data), read_queries(data, "test"), read_queries(data, "valid")
    suite = tuned_baselines(config, data)
    targets_Q = test["target"].to_numpy().astype(np.int64)
    return TestData(items, test, valid, catalog, suite, targets_Q, recent_history(test, config.data.max_history))


def predict_test(config: Config, inputs: Mapping[str, Artifact], test: TestData, out: Path) -> PolicyAnswers:
    """The policies' own answers, their parts, and those of the best policy with its prior, as validation tuned it."""
    from genrec.inference.batch import Answering

    policies = [name for name in ("grpo", "sft") if name in inputs]
    best = policies[0]
    predictors = {name: PolicyPredictor(config, inputs, name, test.suite, out / "predictions") for name in policies}
    tuned = predictors[best].tuned(test.valid)
    ways = {"sid_path": Answering(), "item_head": Answering(head_alone=True)} if config.policy.items.head else {}
    found, model_QK = predictors[best].tested(tuned, test.recent_QH, ways)
    alone = {best: found.pop(OWN)}
    for name in policies[1:]:
        alone[name] = predictors[name].answers("test", {OWN: Answering(tuned.alone)})[OWN]
    return PolicyAnswers(best, alone, found, model_QK, tuned, mixing_s=predictors[best].mixing_s)


def _refitted(
    config: Config, inputs: Mapping[str, Artifact], test: TestData, tuned: TunedSearch, out: Path
) -> dict[str, IntArray]:
    """What the refitted policy and ItemKNN answer, with the weights that were tuned before."""
    data = replace(inputs["prepare"], path=inputs["refit"].path / refit.DATA)
    suite = test.suite.refitted(stream_sequences(data.path, TRAIN_COLUMNS))
    predictor = PolicyPredictor(config, {**inputs, "prepare": data}, "refit", suite, out / "predictions")
    found, model_QK = predictor.tested(tuned, test.recent_QH)
    itemknn_QK = suite.rank(test.recent_QH, config.decode.width)["itemknn"]
    own = {"refit_policy": found[OWN].items_QK} if tuned.weight else {}
    return {"refit_model": model_QK, **own, "refit_itemknn": itemknn_QK}


def _summarise(
    config: Config,
    inputs: Mapping[str, Artifact],
    test: TestData,
    answers: PolicyAnswers,
    baselines: Mapping[str, IntArray],
) -> dict[str, Any]:
    """The metrics of the model, its parts and the baselines, with intervals, and what reinforcement learning gained."""
    from genrec.evaluation.goals import Goals, covered_means
    from genrec.evaluation.summary import add_prior, summarise
    from genrec.evaluation.verdict import plain_words, verdict

    ks, draws, suite = config.evaluation.ks, config.evaluation.bootstrap, test.suite
    rankings = _rankings(inputs, test, answers, baselines)
    costs = {name: {k: made.metrics[k] for k in ("wall_s", "peak_rss_mb")} for name, made in inputs.items()}
    details = {
        "baseline_settings": {**suite.settings, **_rows_made(inputs, "settings")},
        "baselines_failed": inputs["baselines"].metrics["failed"] if "baselines" in inputs else {},
        "prior": answers.tuned.as_json() | {"given": config.decode.prior_weight != "tuned"},
        "seen_items_masked": suite.mask_seen,
    }
    metrics = summarise(rankings, ks=ks, resamples=draws, seed=config.seed, stages=costs, details=details)
    goals = Goals(test.items, suite.log.counts_N, config.rewards.settings)
    systems = {"model": answers.model_QK, **rankings.policies, **baselines}
    metrics["goals"] = {
        name: covered_means(goals.values(ranked_QK, test.targets_Q, test.event_Q))
        for name, ranked_QK in systems.items()
    }
    if answers.tuned.weight:
        add_prior(metrics, "policy", answers.tuned.weight)
    if answers.best == "grpo":
        _add_gain_of_rl(config, inputs, test, answers, goals, metrics)
    return {**metrics, "verdict": verdict(metrics), "in_plain_words": plain_words(metrics)}


def _rankings(
    inputs: Mapping[str, Artifact], test: TestData, answers: PolicyAnswers, baselines: Mapping[str, IntArray]
) -> Rankings:
    """The rankings of the test queries: the model's, those of its policies and their parts, and the baselines'."""
    from genrec.evaluation.query_slices import query_labels
    from genrec.evaluation.slices import category_numbers
    from genrec.evaluation.summary import Rankings

    others = {"sft": answers.alone["sft"].items_QK} if answers.best != "sft" else {}
    if not answers.tuned.is_policy_alone:
        others |= {"policy": answers.alone[answers.best].items_QK}
    others |= {name: part.items_QK for name, part in answers.parts.items()} | dict(answers.refitted)
    return Rankings(
        targets_Q=test.targets_Q,
        model_QK=answers.model_QK,
        baselines=baselines,
        codes_NL=test.catalog.codes_NL.numpy(),
        train_counts_N=test.suite.log.counts_N,
        category_N=category_numbers(test.items),
        event_Q=test.event_Q,
        labels=query_labels(test.test, test.items),
        recent_QH=test.recent_QH,
        vectors_ND=item_vectors(inputs["embed"].path) if "embed" in inputs else None,
        policies=others,
    )


def _add_gain_of_rl(
    config: Config,
    inputs: Mapping[str, Artifact],
    test: TestData,
    answers: PolicyAnswers,
    goals: Goals,
    metrics: dict[str, Any],
) -> None:
    """Add to ``metrics`` what the GRPO policy gained over the SFT policy, both without a prior, and what it cost."""
    from genrec.evaluation.goals import compare_goals
    from genrec.evaluation.summary import add_gain
    from genrec.metrics import per_query, target_ranks

    draws, policies_QK = config.evaluation.bootstrap, [answers.alone[name].items_QK for name in ("grpo", "sft")]
    after, before = (per_query(target_ranks(one_QK, test.targets_Q), config.evaluation.ks) for one_QK in policies_QK)
    add_gain(metrics, after, before, draws, config.seed)
    after, before = (goals.all_values(one_QK, test.targets_Q, test.event_Q) for one_QK in policies_QK)
    metrics["rl_trade"] = {
        "metrics": dict(compare_goals(after, before, draws, config.seed)),
        "few_events": config.rewards.settings.rare,
        "cost": _cost_of_rl(inputs),
    }


def _cost_of_rl(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Updates of reinforcement learning, the one that was kept, why it ended, and its time in that of the SFT."""
    about = read_summary(inputs["grpo"].path)
    spent = {name: inputs[name].metrics["wall_s"] for name in ("grpo", "sft")}
    kept = {name: about[name] for name in ("steps", "best_step", "stopped")}
    return kept | {"wall_s": spent["grpo"], "sft_wall_s": spent["sft"]}


def _baselines(
    config: Config, inputs: Mapping[str, Artifact], test: TestData
) -> tuple[dict[str, IntArray], dict[str, float]]:
    """The rankings of ``evaluation.baselines``, in that order, without those that failed; seconds per query."""
    from genrec.baselines.ranking_files import RANKING, read_ranking

    width, chosen = max(config.evaluation.ks), config.evaluation.baselines
    models = {name: model for name, model in test.suite.models.items() if name in chosen}
    ranked, seconds = rank_timed(replace(test.suite, models=models), test.recent_QH, width)
    for name in _rows_made(inputs, "settings"):
        ranked[name] = read_ranking(inputs["baselines"].path / name / RANKING, len(test.test))[:, :width]
    seconds |= {name: ms / 1000 for name, ms in _rows_made(inputs, "ms_per_query").items()}
    return {name: ranked[name] for name in chosen if name in ranked}, seconds


def _rows_made(inputs: Mapping[str, Artifact], figure: str) -> dict[str, Any]:
    """One figure of each baseline that the stage ``baselines`` made."""
    if "baselines" not in inputs:
        return {}
    return {name: row[figure] for name, row in inputs["baselines"].metrics["rows"].items()}


def _write(
    config: Config,
    inputs: Mapping[str, Artifact],
    test: TestData,
    answers: PolicyAnswers,
    baselines: Mapping[str, IntArray],
    metrics: dict[str, Any],
    out: Path,
) -> None:
    """``metrics.json``, the report, ``answers.parquet`` and ``recommender.json``; the table is logged too."""
    from genrec.evaluation.judge.system_answers import FILE, write_answers
    from genrec.evaluation.report.explore import catalog_view
    from genrec.evaluation.report.page import text_table, write_report
    from genrec.evaluation.slices import sid_use

    write_json(metrics, out / "metrics.json")
    systems = _systems(answers, baselines)
    write_answers(test.test, test.items, systems, out / FILE, seed=config.seed)
    curves = {name: read_summary(inputs[name].path)["curve"] for name in answers.alone}
    write_report(
        out,
        metrics,
        curves=curves,
        sid_stats=sid_use(test.catalog.codes_NL.numpy(), test.catalog.level_sizes),
        users=_users(systems, test, config.seed),
        catalog=catalog_view(
            test.catalog.codes_NL.numpy(),
            test.items["title"].to_pylist(),
            inputs["embed"].path if "embed" in inputs else None,
            seed=config.seed,
        ),
        config_text=to_yaml(config),
        title=config.name,
    )
    _write_pointer(config, inputs, test.suite, answers, out)
    LOG.info("\n%s", text_table(metrics))


def _systems(answers: PolicyAnswers, baselines: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """The rankings of the model, its policies and the baselines."""
    own = {name: ranked.items_QK for name, ranked in answers.by_name.items()}
    return {"model": answers.model_QK, **own, **baselines}


def _users(systems: Mapping[str, IntArray], test: TestData, seed: int) -> list[dict[str, Any]]:
    """Users with the answers of every system."""
    from genrec.evaluation.report.explore import user_answers

    titles, histories = test.items["title"].to_pylist(), test.test["history"].to_pylist()
    return user_answers(histories, test.targets_Q, systems, titles, seed=seed)


def _usual_event(config: Config, data: Path) -> str | None:
    """The event type of most train targets, where the policy's prompts have event types."""
    return read_train_counts(data, count_items(data)).most_frequent_type if config.policy.context.is_on else None


def _write_pointer(
    config: Config, inputs: Mapping[str, Artifact], suite: BaselineSuite, answers: PolicyAnswers, out: Path
) -> None:
    """What ``genrec.load`` needs: where the parts lie under the storage root, and how the prior was tuned."""
    served = inputs.get("refit", inputs[answers.best])
    parts = {"catalog": inputs["assign"], "policy": served}
    knn = {k: v for k, v in suite.settings["itemknn"].items() if k not in ("valid_ndcg@10", "tried", "seconds")}
    prior = answers.tuned.as_json()
    data = f"refit/{served.key}/{refit.DATA}" if "refit" in inputs else f"prepare/{inputs['prepare'].key}"
    about = {
        "parts": {name: f"{artifact.name}/{artifact.key}" for name, artifact in parts.items()} | {"data": data},
        "prior": prior | ({"settings": knn} if prior["weight"] else {}),
        "mask_seen": suite.mask_seen,
        "event": config.decode.event or _usual_event(config, inputs["prepare"].path),
        "config": config.model_dump(mode="json"),
    }
    write_json(about, out / RECORD)
