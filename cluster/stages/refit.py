"""refit: the SFT policy once more, on train and validation events, for the steps that validation chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.session import configure_process
from cluster.stages import sft
from cluster.stages.plan import Plan, StageRun
from cluster.train import RunSpec, make_accelerator, read_summary, run_training, training_summary
from genrec.config import Config
from genrec.data.files import fill_once

DATA = "data"
"""Folder of the tables that are trained on, in the stage's directory."""


def plan(run: StageRun) -> Plan:
    """Train the policy of stage "sft" again.

    Raises:
        InputError: the config learns tasks.
    """
    sft.require_next_items_alone(run.config, "learning.refit=true", "learning.refit=false")
    # All that the result depends on is in the key of the policy that stage "sft" made.
    return Plan({}, partial(_train, run.config, run.path("prepare"), run.path("assign"), run.path("sft")))


def _train(config: Config, data: Path, catalog: Path, chosen: Path, out: Path) -> Mapping[str, Any]:
    from genrec.data.refit import write_refit_data

    tables = fill_once(out / DATA, partial(write_refit_data, data))
    loop = partial(refit_loop, data, int(read_summary(chosen)["best_step"]))
    run_training(loop, RunSpec(config, tables, catalog, out), "refit")
    return training_summary(out)


def refit_loop(data: Path, best_step: int, spec: RunSpec) -> None:
    """What every worker runs: as many epochs, parts of them included, as ``best_step`` steps on ``data`` were."""
    config = spec.config
    configure_process(config)
    from genrec.learning.schedule import epochs_for
    from genrec.learning.sft.batches import Epochs

    settings, accelerator = config.learning.sft, make_accelerator(config)
    before, epochs = (
        Epochs(sft.make_examples(where, config), settings.batch_size, config.seed, settings.loss.second_pass)
        for where in (data, spec.data)
    )
    steps, more = before.steps, epochs.steps
    options = {"validate": None, "last_step": max(1, round(best_step * more / steps))}
    # The number of epochs that the training on ``data`` had: more examples would ask for fewer.
    # Their largest number of steps grows as the examples do.
    longest = -(-settings.max_steps * more // steps)
    same = config.replace(
        {"learning.sft.epochs": epochs_for(settings.epochs, steps), "learning.sft.max_steps": longest}
    )
    sft.learn(replace(spec, config=same), spec.build(), epochs, accelerator, options)
