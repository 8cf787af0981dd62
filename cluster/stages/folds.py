"""folds: policies that are each trained without a fold of the users, for groups of users that they never saw."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.stages import sft
from cluster.stages.plan import Plan, StageRun
from genrec.config import Config
from genrec.data.files import fill_once

DATA = "data"
"""Folder of the tables that a fold's policy is trained on, in its directory."""


def plan(run: StageRun) -> Plan:
    """Train ``learning.rl.folds`` policies as the stage "sft" trains one.

    Raises:
        InputError: the config learns tasks.
    """
    sft.require_next_items_alone(run.config, "learning.rl.groups=crossfit", "learning.rl.groups=fixed")
    settings = {**sft.plan(run).settings, "folds": run.config.learning.rl.folds}
    return Plan(settings, partial(_train, run.config, run.path("prepare"), run.path("assign")))


def fold_directory(folds: Path, fold: int) -> Path:
    """Where the policy of a fold lies in the stage's directory."""
    return folds / f"fold-{fold}"


def _train(config: Config, data: Path, catalog: Path, out: Path) -> Mapping[str, Any]:
    from genrec.data.folds import write_fold_data

    scores: dict[str, float] = {}
    for fold in range(config.learning.rl.folds):
        own = fold_directory(out, fold)
        write = partial(write_fold_data, data, fold=fold, count=config.learning.rl.folds, seed=config.seed)
        tables = fill_once(own / DATA, write)
        scores[f"valid_ndcg@10/{fold}"] = sft.train(config, tables, catalog, own, f"fold-{fold}")["valid_ndcg@10"]
    return scores
