"""A search compared with the same GRPO runs by hand, and ASHA with random search on the same trials.

By hand is a loop over the trials' configs in this process, which has loaded everything: the least that anybody could
do. The search pays for Ray Tune, the processes of its trials, and the record. ASHA draws the same values in the same
order as random search, so a trial's validations are equal as far as it gets: what differs is which trials go on. Where
the machine has room, the same random search runs a second time with two trials side by side.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, in_process
from cluster import pipeline
from cluster.artifacts import Artifact
from cluster.search.trial import SearchSpec, validate_start
from cluster.search.tuner import Experiment, run_experiment, trial_resources
from cluster.session import connect
from cluster.stages import tune
from cluster.stages.grpo import grpo_loop
from cluster.train import RunSpec, run_training
from genrec.config import Config
from genrec.config.search_space import trial_config
from genrec.evaluation.search_record import TrialRecord

NEEDS = ("prepare", "assign", "sft")


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """``tune.trials`` trials of ``tune.steps`` updates, by random search, by hand, and by ASHA."""
    alone = {"tune.searcher": "random", "tune.scheduler": "none", "tune.max_concurrent": 1}
    own = in_process(config).replace({"storage": config.storage, **alone})
    tune.require(own)
    connect(own)
    bench = Bench("tune")
    with tempfile.TemporaryDirectory() as directory:
        random = _search(own, artifacts, Path(directory) / "random", bench)
        _all_by_hand(_spec(own, artifacts, Path(directory) / "hand"), random, bench)
        halving = own.replace({"tune.scheduler": "asha"})
        asha = _search(halving, artifacts, Path(directory) / "asha", bench)
        _search_side_by_side(own, artifacts, Path(directory) / "pairs", bench)
    best, found = _best(random), _best(asha)
    bench.figures |= {"best_random": best, "best_asha": found}
    bench.ratios["search_over_by_hand"] = bench.figures["random_s"] / bench.figures["hand_s"]
    bench.ratios["asha_steps_over_random"] = bench.figures["asha_steps"] / bench.figures["random_steps"]
    bench.ratios["asha_best_over_random"] = found / best if best else 0.0
    if steps := steps_to_reach(asha, best):
        bench.figures["asha_steps_to_best_random"] = steps
        bench.ratios["asha_steps_to_best_over_random"] = steps / bench.figures["random_steps"]
    return bench


def steps_to_reach(trials: Sequence[TrialRecord], wanted: float) -> int:
    """Updates of all trials, in the order in which they were made, until a validation had ``wanted``; 0: none had."""
    before = 0
    for one in trials:
        reached = [point["step"] or 0 for point in one.curve if (point.get("ndcg@10") or 0.0) >= wanted]
        if reached:
            return before + int(min(reached))
        before += one.steps
    return 0


def _search_side_by_side(config: Config, artifacts: Mapping[str, Artifact], out: Path, bench: Bench) -> None:
    """The random search with two trials at a time; left out where they do not fit on the machine."""
    import ray

    if ray.cluster_resources().get("CPU", 0) < 2 * trial_resources(config)[0]:
        return
    _search(config.replace({"tune.max_concurrent": 2}), artifacts, out, bench)
    bench.ratios["side_by_side_over_one"] = bench.figures["random_s"] / bench.figures["pairs_s"]


def _spec(config: Config, artifacts: Mapping[str, Artifact], out: Path) -> RunSpec:
    out.mkdir(parents=True, exist_ok=True)
    places = (artifacts["prepare"].path, artifacts["assign"].path, out)
    return RunSpec(config, *places, start=artifacts["sft"].path)


def _search(config: Config, artifacts: Mapping[str, Artifact], out: Path, bench: Bench) -> list[TrialRecord]:
    spec, name = _spec(config, artifacts, out), out.name
    validate_start(spec)
    start = time.perf_counter()
    trials = run_experiment(SearchSpec(spec, partial(pipeline.run)), Experiment("search"))
    bench.figures[f"{name}_s"] = time.perf_counter() - start
    bench.figures[f"{name}_steps"] = sum(one.steps for one in trials)
    return trials


def _all_by_hand(spec: RunSpec, trials: list[TrialRecord], bench: Bench) -> None:
    """The same values, one after another in this process; the first of them once before, to warm up."""
    _by_hand(spec, "warm", trials[0].values)
    start = time.perf_counter()
    for one in trials:
        _by_hand(spec, one.id, one.values)
    bench.figures["hand_s"] = time.perf_counter() - start


def _by_hand(spec: RunSpec, name: str, values: Mapping[str, Any]) -> None:
    """The GRPO run of a trial as one would start it without a search."""
    out = spec.out / name
    out.mkdir(parents=True, exist_ok=True)
    run_training(grpo_loop, replace(spec, config=trial_config(spec.config, values), out=out), name)


def _best(trials: list[TrialRecord]) -> float:
    return max((one.metrics.get("ndcg@10") or 0.0 for one in trials), default=0.0)
