"""value: a value network for the search of the policy that is tested, trained on its frozen states.

It runs in one process, on one training worker of Ray where ``compute.workers`` is 1 or more.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.session import configure_process
from cluster.stages.plan import Plan, StageRun
from cluster.train import RunSpec, make_accelerator, train_on_ray
from genrec.data.files import write_json
from genrec.data.readers import read_queries

LOG = logging.getLogger(__name__)

SUMMARY = "value.json"
"""Losses of the training; a directory that has it is complete."""


def plan(run: StageRun) -> Plan:
    """Train a value network on the prefixes that the policy's beams visit for validation queries."""
    config = run.config
    settings = {"max_history": config.data.max_history, "seed": config.seed}
    paths = (run.path("prepare"), run.path("assign"))
    return Plan(settings, partial(_train, partial(RunSpec, config, *paths, start=run.path("grpo"))))


def _train(make_spec: partial[RunSpec], out: Path) -> Mapping[str, Any]:
    spec = make_spec(out)
    if not (out / SUMMARY).is_file():
        if spec.config.compute.workers:
            train_on_ray(partial(value_loop, spec), spec.config, out, "value", 1)
        else:
            value_loop(spec)
    shutil.rmtree(out / "train", ignore_errors=True)
    return json.loads((out / SUMMARY).read_text(encoding="utf-8"))


def value_loop(spec: RunSpec) -> None:
    """What the worker runs; it writes the network and ``SUMMARY`` into ``spec.out``."""
    config = spec.config
    configure_process(config)
    from genrec.inference.batch import own_answering
    from genrec.learning.value_training import train_node_values

    device = make_accelerator(config).device
    policy, prompts, catalog = spec.build()
    policy.to(device)
    queries, head_weight = read_queries(spec.data, "valid"), own_answering(config).head_weight
    network, about = train_node_values(policy, prompts, catalog, queries, head_weight=head_weight, seed=config.seed)
    LOG.info(
        "loss per query on unseen users %.3f, of the policy's own probabilities %.3f (epoch %d)",
        *(about[name] for name in ("loss", "loss_of_policy", "best_epoch")),
    )
    network.save(spec.out, policy)
    write_json(about, spec.out / SUMMARY)
