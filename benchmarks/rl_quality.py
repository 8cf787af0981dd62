"""Parts of reinforcement learning compared honestly: validation chooses, the test is looked at once.

For each seed one SFT policy is trained, on the semantic IDs of the config's seed, and every row begins from it. A row
is one of ``PARTS``, of ``bench.parts``, or several of them joined by ``+``; ``bench.variants`` chooses. Of the settings
in ``bench.grid`` each row takes those that are best on the validation queries with the policies of the first
``bench.grid_seeds`` seeds; then it is trained from all ``bench.seeds`` seeds, and the best row is the one with the best
validation. Only after that the test queries are answered: by the policies alone, or, if a row has
``learning.rl.served``, in all rows as they would be served, with the prior and weights that validation chose for each.
Policies and scores are artifacts under ``<storage>/bench/rl-quality``, so a killed run continues.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.compare import Comparison, RunScore, audit, compare, make_from, paired_gains, score_policy
from benchmarks.harness import in_process, seeds_of
from benchmarks.rl_parts import changed, overruled, rows_of
from benchmarks.rl_tables import rl_quality_page
from cluster.artifacts import Artifact
from cluster.progress import STAGE
from genrec.config import Config
from genrec.errors import InputError

LOG = logging.getLogger(__name__)

DIRECTORY = "rl-quality"
NEEDS = ("prepare", "embed", "assign")
FIRST = "sft"
PAIRED = ("ndcg@10", "hr@10", "hr@50")
"""Metrics with a paired bootstrap, over all queries and over those for tail items."""


@dataclass(frozen=True)
class Trial:
    """One row under one choice of ``settings``."""

    row: str
    settings: Mapping[str, Any]
    config: Config

    @property
    def shown(self) -> str:
        """The settings in words."""
        return ", ".join(f"{key.removeprefix('learning.rl.')}={value}" for key, value in self.settings.items()) or "–"


@dataclass
class Found:
    """What was measured: validation scores by row, settings and seed, and what was chosen."""

    valid: dict[str, dict[str, dict[int, RunScore]]] = field(default_factory=dict[str, Any])
    chosen: dict[str, Trial] = field(default_factory=dict[str, Trial])


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train every row, choose on validation, and test what was chosen.

    Raises:
        InputError: an unknown row, key, value or metric.
    """
    trials = {row: list(trials_of(row, own)) for row, own in rows_of(config).items()}
    for row in trials:
        for key, (given, value) in overruled(config, row).items():
            about = (row, key, value, given)
            LOG.warning("row %s has %s=%s, not the config's %s; a part of bench.parts can set it", *about)
    served = any(trial.config.learning.rl.served for choices in trials.values() for trial in choices)
    bench, found = _RlQuality(config, artifacts, served=served), Found()
    seeds = list(seeds_of(config))
    tried_with = seeds[: config.bench.grid_seeds]
    base = Trial(FIRST, {}, config)
    for row, choices in {FIRST: [base], **trials}.items():
        few = seeds if len(choices) == 1 else tried_with
        tried = {trial.shown: {seed: bench.scored(trial, seed, "valid") for seed in few} for trial in choices}
        best = max(choices, key=lambda trial, tried=tried: bench.mean(tried[trial.shown]))
        tried[best.shown] = {seed: bench.scored(best, seed, "valid") for seed in seeds}
        found.valid[row], found.chosen[row] = tried, best
    test = {row: {seed: bench.scored(trial, seed, "test") for seed in seeds} for row, trial in found.chosen.items()}
    return bench.compared(found, test)


def trials_of(row: str, config: Config) -> Iterator[Trial]:
    """The config of a row under each choice of ``bench.grid``.

    Raises:
        InputError: a key that does not exist, or values that do not fit together.
    """
    grid = config.bench.grid
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        yield Trial(row, settings, changed(config, settings))


class _RlQuality:
    """Trains, scores and compares; everything that was made before is found.

    Args:
        served: score every policy's answers as they are served, with the prior; else its own.
    """

    def __init__(self, config: Config, artifacts: Mapping[str, Artifact], *, served: bool) -> None:
        self._config, self._artifacts, self._served = config, artifacts, served
        self._made: dict[tuple[str, str, int], dict[str, Artifact]] = {}

    def scored(self, trial: Trial, seed: int, split: str) -> RunScore:
        """The scores of the trial's policy of one seed."""
        config = in_process(trial.config.replace(seed=seed), DIRECTORY)
        policy = "sft" if trial.row == FIRST else "grpo"
        made = self._made[trial.row, trial.shown, seed] = make_from(config, policy, self._artifacts)
        split_ = "valid" if split == "valid" else "test"
        scored = score_policy(config, made, made[policy], split_, served=self._served)
        about = (trial.row, trial.shown, seed, split, self.metric_of(scored))
        LOG.info("%s (%s), seed %d, %s: %.4f", *about, extra={STAGE: DIRECTORY})
        return scored

    def metric_of(self, scored: RunScore) -> float:
        """The metric that decides.

        Raises:
            InputError: the scores have no such metric.
        """
        name = self._config.bench.metric
        if name not in scored.values:
            raise InputError(f"bench.metric={name} is not measured here; wanted one of {sorted(scored.values)}")
        return scored.values[name]

    def mean(self, scored: Mapping[int, RunScore]) -> float:
        """The mean of the deciding metric over seeds."""
        return sum(map(self.metric_of, scored.values())) / len(scored)

    def compared(self, found: Found, test: Mapping[str, Mapping[int, RunScore]]) -> Comparison:
        """The comparison; its page and figures are written."""
        config, seeds = self._config, list(test[FIRST])
        rows = compare({row: dict(scores) for row, scores in test.items()})
        base = [test[FIRST][seed] for seed in seeds]
        for row, scores in test.items():
            own, trial = [scores[seed] for seed in seeds], found.chosen[row]
            rows[row]["valid"] = self.mean(found.valid[row][trial.shown])
            rows[row]["settings"] = trial.shown
            rows[row]["paired"] = paired_gains(own, base, PAIRED, config.evaluation.bootstrap, config.seed)
            if row != FIRST:
                rows[row] |= {"audit": audit(own), "cost": self._cost(trial, seeds)}
        best = max(rows, key=lambda row: rows[row]["valid"])
        tried = {
            row: {shown: {"valid": self.mean(scores), "seeds": len(scores)} for shown, scores in choices.items()}
            for row, choices in found.valid.items()
        }
        about = {"metric": config.bench.metric, "best": best, "rows": rows, "tried": tried, "served": self._served}
        comparison = Comparison(DIRECTORY, text=rl_quality_page(about))
        comparison.figures = {
            f"{row}.{metric}": one[metric]["mean"] for row, one in rows.items() for metric in PAIRED if metric in one
        }
        comparison.write(config, about)
        return comparison

    def _cost(self, trial: Trial, seeds: Sequence[int]) -> dict[str, float]:
        """Seconds of all that a row adds to SFT, as a ratio to SFT's, and in SFT's steps; means over seeds."""
        made = [self._made[trial.row, trial.shown, seed] for seed in seeds]
        seconds = [sum(one[name].metrics["wall_s"] for name in one if name in ADDED) for one in made]
        sft = [one["sft"].metrics for one in made]
        ratios = [own / base["wall_s"] for own, base in zip(seconds, sft, strict=True)]
        steps = [ratio * base["steps"] for ratio, base in zip(ratios, sft, strict=True)]
        means = {"seconds": seconds, "sft_time": ratios, "sft_steps": steps}
        return {name: sum(values) / len(values) for name, values in means.items()}


ADDED = ("folds", "served", "groups", "grpo")
"""The stages that a row adds to SFT."""
