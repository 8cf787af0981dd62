"""What reinforcement learning gains on a goal of the shop, and what it costs in accuracy, by the weight of the reward.

Each variant rewards one goal: more categories or new items in a list (by rewards of whole lists, ``generation=slate``,
or of items), or the right purchase. It is trained once per weight and seed from the same SFT policies, and the guard
keeps the version with the best goal on validation whose NDCG@10 has lost at most the variant's share. All points of the
curve are of validation, also in the picture beside the figures; the weight with the best goal is tested, once.
``bench.variants`` and ``bench.weights`` choose.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchmarks.compare import Comparison, Variant, answered
from benchmarks.harness import chosen_variants, in_process, seeds_of
from benchmarks.tables import markdown
from benchmarks.tradeoff_figure import write_figure
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.progress import STAGE
from cluster.train import read_summary
from genrec.config import Config
from genrec.data.readers import read_items, read_queries
from genrec.data.train_counts import read_train_counts

if TYPE_CHECKING:
    from genrec.metrics import FloatArray

LOG = logging.getLogger(__name__)

DIRECTORY = "tradeoff"
NEEDS = ("prepare", "assign", "embed")
RELEVANCE = "ndcg@10"
VALUES = "values.npz"
"""Next to the scores: the metrics of each test query."""


@dataclass(frozen=True)
class Aim:
    """A goal, the share of NDCG@10 that it may cost, how it is rewarded, and the weights that are tried.

    ``weighted``: the config keys that get the weight.
    """

    goal: str
    share: float
    changes: Mapping[str, Any]
    weighted: Sequence[str]
    weights: Sequence[float]


@dataclass
class Point:
    """Validation of the SFT policy and of the versions that followed it, for one weight; by seed."""

    weight: float
    artifacts: list[Artifact] = field(default_factory=list[Artifact])

    def mean(self, metric: str, kept: bool = True) -> float:
        """The metric of the kept version, or of the SFT policy, averaged over seeds."""
        return float(np.mean([_validated(made, kept)[metric] for made in self.artifacts]))

    def change(self, metric: str) -> float:
        """Relative to the SFT policy."""
        return self.mean(metric) / max(self.mean(metric, kept=False), 1e-12) - 1

    def about(self, goal: str) -> dict[str, Any]:
        """The point in figures, with every version that was validated."""
        found: dict[str, Any] = {"weight": self.weight}
        for metric in (RELEVANCE, goal):
            found[metric] = {"sft": self.mean(metric, kept=False), "kept": self.mean(metric)}
            found[metric]["change"] = self.change(metric)
        summaries = [read_summary(made.path) for made in self.artifacts]
        found["best_step"] = [one["best_step"] for one in summaries]
        found["stopped"] = [one["stopped"] for one in summaries]
        found["versions"] = [_versions(one["curve"], goal) for one in summaries]
        return found


def aims(config: Config) -> dict[str, Aim]:
    """The variants by name."""
    purchase = next(iter(config.rewards.settings.purchases), "purchase")
    alone = {"rewards.hit": 0.0, "rewards.rank_log": 0.0}
    lists = alone | {"learning.rl.generation": "slate", "rewards.lists.dcg": 1.0}
    hits = {"rewards.hit": 1.0, "rewards.rank_log": 0.0}
    bought = alone | {"rewards.event": 1.0, "rewards.settings.other_events": 1.0}
    values = f"rewards.settings.events.{purchase}"
    return {
        "categories": Aim("categories@10", 0.01, lists, ["rewards.lists.categories"], (0.03, 0.1, 0.3)),
        "categories_items": Aim("categories@10", 0.01, hits, ["rewards.diversity"], (0.1, 0.3, 1.0)),
        "new_items": Aim("new_items@10", 0.01, lists, ["rewards.lists.new_items"], (0.3, 1.0, 3.0)),
        "new_items_items": Aim("new_items@10", 0.01, hits, ["rewards.novelty"], (0.1, 0.3, 1.0)),
        "purchases": Aim(f"ndcg@10/{purchase}", 0.02, bought, [values], (1.0, 3.0, 9.0)),
        "purchases_lists": Aim(f"ndcg@10/{purchase}", 0.02, lists, [values], (1.0, 3.0, 9.0)),
    }


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train the chosen variants with every weight, and test the best of each.

    Raises:
        InputError: ``bench.variants`` names one that does not exist, or the log lacks what a goal measures.
    """
    known, found = aims(config), dict[str, Any]()
    comparison = Comparison(DIRECTORY)
    for name in chosen_variants(config, known):
        aim = known[name]
        points = [_trained(config, artifacts, name, aim, weight) for weight in config.bench.weights or aim.weights]
        best = max(points, key=lambda point: point.mean(aim.goal))
        found[name] = {
            "goal": aim.goal,
            "share": aim.share,
            "points": [point.about(aim.goal) for point in points],
            "chosen": best.weight,
            "test": _tested(config, artifacts, best),
        }
        comparison.text = tradeoff_page(found)
        comparison.figures = {
            f"{variant}.{metric}": one["test"][metric]["relative"]
            for variant, one in found.items()
            for metric in (RELEVANCE, one["goal"])
        }
        comparison.write(config, found)
        write_figure(found, Path(in_process(config, DIRECTORY).storage) / f"{config.name}.png")
    return comparison


def changed(config: Config, aim: Aim, weight: float) -> Config:
    """The config of one point of the curve."""
    guard = {"learning.rl.guard.goal": aim.goal, "learning.rl.guard.keep": {RELEVANCE: aim.share}}
    return config.replace({**guard, **aim.changes, **dict.fromkeys(aim.weighted, weight)})


def _trained(config: Config, artifacts: Mapping[str, Artifact], name: str, aim: Aim, weight: float) -> Point:
    point = Point(weight)
    for seed in seeds_of(config):
        own = in_process(changed(config, aim, weight).replace(seed=seed), DIRECTORY)
        point.artifacts.append(Variant(own, artifacts, "grpo").train(own))
    shown = "  ".join(f"{metric} {point.change(metric):+.1%}" for metric in (RELEVANCE, aim.goal))
    LOG.info("%s, weight %g: validation %s", name, weight, shown, extra={STAGE: DIRECTORY})
    return point


def _validated(made: Artifact, kept: bool) -> dict[str, float]:
    """The validation of the version that was kept, or of the SFT policy."""
    about = read_summary(made.path)
    step = about["best_step"] if kept else 0
    return next(record for record in reversed(about["curve"]) if record["step"] == step and RELEVANCE in record)


def _versions(curve: Sequence[Mapping[str, Any]], goal: str) -> list[dict[str, float]]:
    return [{name: record[name] for name in ("step", RELEVANCE, goal)} for record in curve if RELEVANCE in record]


def _tested(config: Config, artifacts: Mapping[str, Artifact], best: Point) -> dict[str, Any]:
    """Every metric of the SFT policies and of the chosen ones on test, with paired intervals."""
    from genrec.evaluation.goals import compare_goals

    scored: dict[str, list[dict[str, FloatArray]]] = {"sft": [], "rl": []}
    for seed, made in zip(seeds_of(config), best.artifacts, strict=True):
        own = in_process(config.replace(seed=seed), DIRECTORY)
        for name, policy in (("sft", Variant(own, artifacts).train(own)), ("rl", made)):
            work = partial(_score, own, artifacts["prepare"].path, artifacts["assign"].path, policy.path)
            settings = {"width": own.decode.width, "values": own.rewards.settings.result_settings()}
            recipe = Recipe("goals", settings, (__name__,), [artifacts["prepare"], artifacts["assign"], policy])
            with np.load(make_artifact(own, recipe, work).path / VALUES, allow_pickle=False) as values:
                scored[name].append({metric: values[metric] for metric in values.files})
    means = {name: {m: np.mean([one[m] for one in by_seed], 0) for m in by_seed[0]} for name, by_seed in scored.items()}
    return dict(compare_goals(means["rl"], means["sft"], config.evaluation.bootstrap, config.seed))


def _score(config: Config, data: Path, catalog: Path, policy: Path, out: Path) -> Mapping[str, Any]:
    """The metrics of each test query under a policy's own search."""
    from genrec.evaluation.goals import Goals

    items, test = read_items(data), read_queries(data, "test")
    ranked_QK = answered(config, data, catalog, policy, "test", out)
    targets_Q = test["target"].to_numpy().astype(np.int64)
    goals = Goals(items, read_train_counts(data, items.num_rows).events_N, config.rewards.settings)
    values = goals.all_values(ranked_QK, targets_Q, test["event"].to_pylist())
    np.savez(out / VALUES, **cast("dict[str, Any]", values))
    return {"queries": len(targets_Q)}


def tradeoff_page(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """For each variant the curve over weights on validation, then the chosen weight on test."""
    lines: list[str] = []
    for name, one in variants.items():
        goal, points = one["goal"], one["points"]
        body = (
            [
                f"{point['weight']:g}",
                " ".join(map(str, point["best_step"])),
                f"{point['ndcg@10']['kept']:.4f} ({point['ndcg@10']['change']:+.1%})",
                f"{point[goal]['kept']:.4f} ({point[goal]['change']:+.1%})",
            ]
            for point in points
        )
        lines += [*markdown((f"{name}: weight", "kept step", "NDCG@10", goal), body), ""]
        lines += [f"Validation; NDCG@10 may lose {one['share']:.0%}. Tested: weight {one['chosen']:g}.", ""]
        tested = ([metric, *_traded(trade)] for metric, trade in one["test"].items())
        lines += [
            *markdown(("test", "SFT", "RL", "change [95 % paired bootstrap over queries]", "relative"), tested),
            "",
        ]
    return "\n".join(lines)


def _traded(trade: Mapping[str, Any]) -> list[str]:
    span = "" if trade["low"] is None else f" [{trade['low']:+.4f}, {trade['high']:+.4f}]"
    change = f"{trade['difference']:+.4f}{span}"
    return [f"{trade['sft']:.4f}", f"{trade['rl']:.4f}", change, f"{trade['relative']:+.1%}"]
