"""Ray Tune around GRPO: each trial is a short run from the same SFT policy with its own reward weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster import reward_file
from cluster.artifacts import Artifact
from cluster.node_files import NodeFiles, files_in_work, on_this_node, ray_storage
from cluster.session import configure_process, connect
from cluster.stages.grpo import grpo_loop, rl_settings, spec_of
from cluster.stages.plan import Plan, StageRun
from cluster.train import RunSpec, read_summary, run_training
from genrec.data.files import write_json, write_text
from genrec.errors import InputError

LOG = logging.getLogger(__name__)

FIGURES = ("ndcg@10", "gain", "last", "hr@50")


def plan(run: StageRun) -> Plan:
    """Search ``tune.space``, each trial a short GRPO run."""
    config = run.config
    settings = {**rl_settings(config), "tune": config.tune.result_settings(), **reward_file.settings(run.reward_file)}
    return Plan(settings, partial(_search, spec_of(run), run.reward_file))


def publish(run: StageRun, artifact: Artifact) -> None:
    """Show the trials, best first, and the overrides of the best one."""
    LOG.info("\n%s", (artifact.path / "trials.txt").read_text(encoding="utf-8"))
    custom = run.config.rewards.custom
    best = {f"custom.{n}" if n in custom else n: w for n, w in artifact.metrics["best"]["rewards"].items()}
    LOG.info("best: %s", " ".join(f"rewards.{name}={weight:.4f}" for name, weight in best.items()))


def _search(make_spec: partial[RunSpec], terms: Path | None, out: Path) -> Mapping[str, Any]:
    trials = run_search(make_spec(out=out, rewards=reward_file.keep(terms, out)))
    write_json(trials, out / "trials.json")
    write_table(trials, out / "trials.txt")
    return {"trials": len(trials), "best": trials[0]}


def run_search(spec: RunSpec) -> list[dict[str, Any]]:
    """Run ``tune.trials`` trials over ``tune.space`` and return them, best validation NDCG@10 first.

    A killed search goes on where it was: finished trials are kept, the others run again.

    Raises:
        InputError: no trial finished.
    """
    config = spec.config
    connect(config)
    from ray import tune
    from ray.tune.search import BasicVariantGenerator

    files = files_in_work()
    if files is not None:
        files.offer()
    trainable = tune.with_resources(partial(_trial, spec=spec, files=files), {"cpu": 0.1})
    where = ray_storage(config, spec.out / "trials")
    before, filesystem = f"{where['storage_path']}/search", where.get("storage_filesystem")
    if tune.Tuner.can_restore(before, filesystem):
        tuner = tune.Tuner.restore(before, trainable, restart_errored=True, storage_filesystem=filesystem)
    else:
        space = {name: tune.uniform(low, high) for name, (low, high) in config.tune.space.items()}
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="ndcg@10",
                mode="max",
                num_samples=config.tune.trials,
                max_concurrent_trials=config.tune.max_concurrent,
                search_alg=BasicVariantGenerator(random_state=config.seed),
            ),
            run_config=tune.RunConfig(name="search", verbose=0, **where),
        )
    results = tuner.fit()
    if files is not None:
        files.collect()
    for error in results.errors:
        LOG.warning("a trial failed: %s", error)
    trials = [
        {"rewards": result.config, **{k: result.metrics[k] for k in FIGURES}}
        for result in results
        if result.metrics and "ndcg@10" in result.metrics
    ]
    if not trials:
        raise InputError(f"no trial of the search finished; their errors are under {where['storage_path']}")
    return sorted(trials, key=lambda trial: (-trial["ndcg@10"], -trial["last"]))


def _trial(weights: dict[str, float], spec: RunSpec, files: NodeFiles | None) -> dict[str, float]:
    """``_run_trial`` where the trial's process is."""
    with on_this_node(files):
        return _run_trial(weights, spec)


def _run_trial(weights: dict[str, float], spec: RunSpec) -> dict[str, float]:
    """One GRPO run with ``weights`` over the config's; returns its best validation and its gain over the SFT policy."""
    configure_process(spec.config)
    from ray import tune

    name = tune.get_context().get_trial_id()
    rewards = spec.config.rewards.weighted(weights)
    steps = spec.config.tune.steps
    changes = {"learning.rl.steps": steps, "learning.rl.eval_every": max(1, steps // 4)}
    config = spec.config.replace(changes, rewards=rewards)
    out = spec.out / "runs" / name
    out.mkdir(parents=True, exist_ok=True)
    run_training(grpo_loop, replace(spec, config=config, out=out), name)
    return _best(read_summary(out))


def _best(about: dict[str, Any]) -> dict[str, float]:
    """The version that the guard kept, and how the run ended: ties between harmful weights go by the last check."""
    checks = {int(point["step"]): point for point in about["curve"] if "ndcg@10" in point}
    kept, last = checks[about["best_step"]], checks[max(checks)]
    found = {"ndcg@10": kept["ndcg@10"], "hr@50": kept["hr@50"], "last": last["ndcg@10"]}
    return found | {"gain": kept["ndcg@10"] - checks[0]["ndcg@10"]}


def write_table(trials: list[dict[str, Any]], path: Path) -> str:
    """The trials as text, also written to ``path``."""
    names = sorted(trials[0]["rewards"])
    head = "".join(f"{name:>12}" for name in (*names, *FIGURES))
    rows = [
        "".join(f"{value:12.4f}" for value in (*(t["rewards"][n] for n in names), *(t[f] for f in FIGURES)))
        for t in trials
    ]
    text = "\n".join([head, *rows]) + "\n"
    write_text(text, path)
    return text
