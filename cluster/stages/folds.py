"""folds: policies that are each trained without a fold of the users, for groups of users that they never saw."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.stages import sft
from cluster.stages.plan import Plan, StageRun
from cluster.train import RunSpec, run_training, training_summary
from genrec.config import Config
from genrec.errors import InputError

DATA = "data"
"""Folder of the tables that a fold's policy is trained on, in its directory."""


def plan(run: StageRun) -> Plan:
    """Train ``learning.rl.folds`` policies as the stage "sft" trains one.

    Raises:
        InputError: the config learns tasks.
    """
    if sft.learns_tasks(run.config):
        raise InputError(
            "learning.rl.groups=crossfit trains next items alone, and the config learns tasks or stages; set "
            "learning.rl.groups=fixed"
        )
    settings = {**sft.plan(run).settings, "folds": run.config.learning.rl.folds}
    return Plan(settings, partial(_train, run.config, run.path("prepare"), run.path("assign")))


def fold_directory(folds: Path, fold: int) -> Path:
    """Where the policy of a fold lies in the stage's directory."""
    return folds / f"fold-{fold}"


def _train(config: Config, data: Path, catalog: Path, out: Path) -> Mapping[str, Any]:
    scores: dict[str, float] = {}
    for fold in range(config.learning.rl.folds):
        own = fold_directory(out, fold)
        tables = _fold_data(config, data, own, fold)
        run_training(sft.sft_loop, RunSpec(config, tables, catalog, own), f"fold-{fold}")
        scores[f"valid_ndcg@10/{fold}"] = training_summary(own)["valid_ndcg@10"]
    return scores


def _fold_data(config: Config, data: Path, own: Path, fold: int) -> Path:
    """The tables of a fold's policy; what a killed run left half-written is written again."""
    from genrec.data.folds import write_fold_data

    tables, partial_tables = own / DATA, own / f"{DATA}.partial"
    if not tables.is_dir():
        shutil.rmtree(partial_tables, ignore_errors=True)
        write_fold_data(data, partial_tables, fold, config.learning.rl.folds, config.seed)
        partial_tables.rename(tables)
    return tables
