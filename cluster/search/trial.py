"""One trial of a search: a short GRPO run in the process of the trial, which tells Ray Tune of every validation.

A trial of one learner and at most one rollout actor runs whole in this process: there is nothing to start but the
process itself, and no actor that another trial could keep from starting. A trial of more learners or actors is a small
driver of Ray Train, and its reports come from a file that its first learner writes.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifacts import Artifact
from cluster.session import configure_process
from cluster.stages.grpo import grpo_loop
from cluster.train import CURVE, RunSpec, run_training
from genrec.config import Config
from genrec.config.search_space import remakes_earlier_stages, trial_config
from genrec.data.files import write_json, write_text
from genrec.errors import BeingWrittenError, InputError
from genrec.learning.divergence import DIVERGED

if TYPE_CHECKING:
    from torch import Tensor

    from genrec.learning.checkpoints import TrainingState

LOG = logging.getLogger(__name__)

REPORT, BASE, SEED = "report.json", "sft.safetensors", "trial_seed"
"""Files of a trial and of the search; SEED is the key of a point that holds the seed of its run."""

BROKEN = "broken.json"
"""In a checkpoint of a population's member: the constraints that its versions broke."""

SCORE = "score"
"""What searchers and schedulers raise, see ``TrialWatch``."""

WAIT_S = 2.0
"""Seconds between two looks at a stage that another process is making."""

NOT_AUDITED = ("step", "staleness")

Remake = Callable[..., Mapping[str, Artifact]]
"""``cluster.pipeline.run``: makes stages of another config, or finds them."""


@dataclass(frozen=True)
class SearchSpec:
    """What every trial of a search is told. ``run.out`` is the directory of the search.

    ``remake`` makes the stages before GRPO where a trial changes them.
    """

    run: RunSpec
    remake: Remake
    population: bool = False

    @property
    def config(self) -> Config:
        """The config that is searched around."""
        return self.run.config

    def trial_directory(self, trial: str) -> Path:
        """Where the trial of this id keeps its run."""
        return self.run.out / "runs" / trial


def point_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tune's config of a trial as values by dotted key, with its seed: points that were given lie in it whole."""
    return dict(values.get("point", values))


def read_report(file: Path) -> dict[str, Any]:
    """The content of a JSON file of a search; nothing where there is none yet."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def is_one_process(config: Config) -> bool:
    """Whether a trial runs whole in its own process."""
    compute = config.compute
    return compute.workers == 0 or (compute.workers == 1 and compute.rollout_actors <= 1 and compute.strategy == "ddp")


def run_trial(values: dict[str, Any], search: SearchSpec) -> None:
    """What Ray Tune calls: run the trial of ``values``, going on from its last checkpoint, and report as it learns.

    Raises:
        InputError: the trial's stages refused its config, or it diverged.
    """
    from ray import tune

    context = tune.get_context()
    trial = str(context.get_trial_id())
    report = search.trial_directory(trial) / REPORT
    before = read_report(report)
    if before.get("status") == "diverged":  # It would again: the run is a function of its values and its seed.
        raise InputError(before["error"])
    point = point_of(values)
    seed = point.pop(SEED, None)
    try:
        begin_trial(search, trial, str(context.get_trial_name()), point, seed)
    except InputError as error:
        kind = "diverged" if DIVERGED in str(error) else "failed"
        write_json({**read_report(report), "status": kind, "error": str(error)}, report)
        raise


def begin_trial(search: SearchSpec, trial: str, name: str, values: Mapping[str, Any], seed: int | None) -> None:
    """Run one trial; every validation is reported to Ray Tune."""
    out = search.trial_directory(trial)
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic() - read_report(out / REPORT).get("seconds", 0.0)
    config = _in_this_process(trial_config(search.config, values, seed))
    configure_process(config)
    spec = replace(_with_own_stages(search, config, values), out=out)
    if search.population:
        _take_over(out)
    watch = TrialWatch(out, search.run.out / BASE, config.tune.noise, config.tune.constraints, start)
    with _reporting(out, search.population, in_process=not config.compute.workers) as told:
        run_training(partial(grpo_loop, on_validation=partial(watch, told)), spec, name)
    report = read_report(out / REPORT)
    write_json({**report, "status": "finished", "seconds": watch.seconds()}, out / REPORT)
    for left in ("checkpoints", "train"):
        shutil.rmtree(out / left, ignore_errors=True)


def _in_this_process(config: Config) -> Config:
    return config.with_workers(0) if is_one_process(config) else config


def _with_own_stages(search: SearchSpec, config: Config, values: Mapping[str, Any]) -> RunSpec:
    """The search's SFT policy and catalogue; or, where the trial changes what they are made from, its own."""
    rl = config.learning.rl
    if not remakes_earlier_stages(list(values), fixed_groups=rl.fixes_groups):
        return replace(search.run, config=config)
    more = [name for name, is_on in (("served", rl.served), ("groups", rl.fixes_groups)) if is_on]
    made = _remade(search, config.replace({"compute.data_actors": 0}), "prepare", "assign", "sft", *more)
    paths = {name: artifact.path for name, artifact in made.items()}
    vectors = paths.get("embed") if search.run.vectors else None
    return replace(
        search.run,
        config=config,
        data=paths["prepare"],
        catalog=paths["assign"],
        start=paths["sft"],
        vectors=vectors,
        groups=paths.get("groups"),
        served=paths.get("served"),
    )


def _remade(search: SearchSpec, config: Config, *stages: str) -> Mapping[str, Artifact]:
    """The stages of a config; what another trial or command is making is waited for."""
    while True:
        try:
            return search.remake(config, *stages)
        except BeingWrittenError as error:
            LOG.info("%s", str(error).partition(";")[0])
            time.sleep(WAIT_S)


@dataclass
class TrialWatch:
    """Keeps ``report.json`` of a trial: its curve, the version that is kept, and whether it holds the constraints.

    ``base`` has the SFT policy's metrics per query. A constraint is broken by a drop of more than ``noise`` standard
    errors of the paired differences. The score is the best validation since the first update, less the drops; so
    trials that all kept the SFT policy are told apart by how harmful they were.
    """

    out: Path
    base: Path
    noise: float
    constraints: tuple[str, ...]
    start: float

    def __call__(
        self, told: Callable[[dict[str, Any]], None], state: TrainingState, version: int, values: Mapping[str, Tensor]
    ) -> None:
        """Write what is known after ``version`` was validated, and tell of it."""
        before = read_report(self.out / REPORT)
        broken = {**before.get("broken", {}), str(version): self.drops(values)}
        report = summary(state.curve, state.best_step, broken)
        report |= {"seconds": self.seconds(), "status": "running"}
        write_json(report, self.out / REPORT)
        figures = {name: value for name, value in report["metrics"].items() if value is not None}
        told({"step": version, SCORE: report[SCORE], "feasible": report["feasible"], **figures})

    def drops(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """By how much each constraint is broken; nothing where it holds or does not apply."""
        from genrec.learning.rl.guard import significant_drop

        base, found = self._base_values, dict[str, float]()
        for name in self.constraints:
            if name in values and name in base:
                found[name] = significant_drop(values[name], base[name], noise=self.noise, share=0.0)
        return {name: drop for name, drop in found.items() if drop}

    @cached_property
    def _base_values(self) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self.base)

    def seconds(self) -> float:
        """That the trial took, in earlier processes too."""
        return round(time.monotonic() - self.start, 3)


def summary(curve: list[dict[str, float]], best_step: int, broken: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The report of a run from its curve: validations, the kept version's metrics, the audit of its updates.

    Args:
        broken: of each version that was validated, the constraints that it broke and by how much.
    """
    metric = "ndcg@10"
    checks = [point for point in curve if metric in point]
    names = [name for name in checks[0] if name != "step" and name in _validated(checks)]
    points = [{"step": point["step"], **{name: _finite(point.get(name)) for name in names}} for point in checks]
    kept = next((point for point in checks if point["step"] == best_step), checks[0])
    later = [point for point in checks if point["step"] > 0] or checks
    scores = [point[metric] - sum(broken.get(str(int(point["step"])), {}).values()) for point in later]
    metrics = {name: _finite(kept.get(name)) for name in names}
    metrics |= {"gain": _finite(kept[metric] - checks[0][metric]), "last": _finite(checks[-1][metric])}
    return {
        "curve": points,
        "metrics": metrics,
        SCORE: max(scores, default=math.nan),
        "broken": broken,
        "feasible": not broken.get(str(best_step), {}),
        "audit": _audit(curve),
        "steps": int(curve[-1]["step"]),
    }


def _validated(checks: list[dict[str, float]]) -> set[str]:
    """Names that version 0 has: nothing but its validation was measured of it."""
    return {name for name in checks[0] if name != "step"} if checks[0]["step"] == 0 else set(checks[0])


def _audit(curve: list[dict[str, float]]) -> dict[str, float | None]:
    """Means over the run's updates of what they measured."""
    updates = [point for point in curve if "reward" in point]
    names = [name for name in updates[0] if name not in NOT_AUDITED and "@" not in name] if updates else []
    values = {name: [point[name] for point in updates if math.isfinite(point.get(name, math.nan))] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _take_over(out: Path) -> None:
    """Go on from the checkpoint that Tune gives, which may be another member's; the run's summary is to come."""
    from ray import tune

    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return
    for left in ("checkpoints", CURVE):
        path = out / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    with checkpoint.as_directory() as directory:
        shutil.copytree(directory, out / "checkpoints" / "checkpoint-000000001")
        broken = read_report(Path(directory) / BROKEN)
    # The curve goes on from the other's, so the constraints that it broke are the other's, too.
    write_json({**read_report(out / REPORT), "broken": broken}, out / REPORT)


@contextmanager
def _reporting(out: Path, population: bool, *, in_process: bool) -> Generator[Callable[[dict[str, Any]], None]]:
    """How a validation gets to Ray Tune: at once, or through a file, from learners in other processes."""
    if in_process:
        yield partial(_report, out, population)
        return
    lines, stop = out / "reports.jsonl", threading.Event()
    told = lines.read_text(encoding="utf-8").count("\n") if lines.is_file() else 0

    def follow() -> None:
        nonlocal told
        while True:
            ended = stop.wait(0.2)
            found = lines.read_text(encoding="utf-8").splitlines(keepends=True) if lines.is_file() else []
            for line in found[told:]:
                if line.endswith("\n"):
                    _report(out, False, json.loads(line))
                    told += 1
            if ended:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield partial(_append, lines)
    finally:
        stop.set()
        thread.join()


def _report(out: Path, population: bool, figures: dict[str, Any]) -> None:
    from ray import tune

    newest = max((out / "checkpoints").glob("checkpoint-*"), default=None) if population else None
    if newest is not None:
        write_json(read_report(out / REPORT).get("broken", {}), newest / BROKEN)
    tune.report(figures, checkpoint=tune.Checkpoint.from_directory(str(newest)) if newest else None)


def _append(path: Path, figures: dict[str, Any]) -> None:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_text(f"{text}{json.dumps(figures)}\n", path)


def validate_start(spec: RunSpec) -> dict[str, float]:
    """Validate the policy that all trials start from; keeps its metrics per query, and returns their means."""
    from safetensors.torch import save_file

    from cluster.stages.grpo import validated_start

    values = validated_start(_in_this_process_spec(spec))
    save_file(values, spec.out / BASE)
    return {name: float(values_Q.nanmean()) for name, values_Q in values.items()}


def _in_this_process_spec(spec: RunSpec) -> RunSpec:
    return replace(spec, config=spec.config.with_workers(0))
