"""Ray Tune around GRPO: a search over config keys, each trial a short run of GRPO, validated as it goes.

1. The SFT policy is validated once: constraints are relative to it.
2. The searcher's trials run, as many at a time as ``tune.max_concurrent`` says; the scheduler stops some.
3. The best feasible ones, the finalists, and the config's own values are run again with fresh seeds.
4. A finalist that beats the config's own values by more than the paired interval is the winner; or there is none.

No test query is read. ``search.json`` is written after every report, ``tuned.yaml`` at the end.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import reward_file
from cluster.artifacts import Artifact, shown_in_storage, shown_path
from cluster.node_files import offered
from cluster.search.searchers import require_searcher
from cluster.search.trial import SEED, SearchSpec, is_one_process, validate_start
from cluster.session import connect
from cluster.stages.grpo import rl_settings, spec_of
from cluster.stages.plan import Plan, StageRun
from genrec.config import Config, load_config
from genrec.config.search_space import dimensions, nested, own_values, remakes_earlier_stages, require_valid_corners
from genrec.data.files import write_json, write_text
from genrec.errors import InputError
from genrec.evaluation.search_choice import best_first, declare_winner, finalist
from genrec.evaluation.search_record import (
    BudgetRecord,
    DefaultRecord,
    DimensionRecord,
    FinalistRecord,
    SearchRecord,
    SeedRun,
    TrialRecord,
)

if TYPE_CHECKING:
    from cluster.train import RunSpec

LOG = logging.getLogger(__name__)

TUNED = "tuned.yaml"
SHOWN = ("ndcg@10", "gain", "last", "hr@50")


def require(config: Config) -> None:
    """Refuse a search that cannot be, before any stage is made.

    Raises:
        InputError: a searcher's package is missing, or values of the space make no valid config.
    """
    require_searcher(config)
    require_valid_corners(config)
    if config.tune.searcher == "pb2" and not is_one_process(config):
        raise InputError(
            "tune.searcher=pb2 copies running policies, for which a trial must be one process; got "
            f"compute.workers={config.compute.workers} and compute.rollout_actors={config.compute.rollout_actors}; "
            "take compute.workers=0"
        )
    if config.tune.searcher == "pb2" and remakes_earlier_stages(list(dimensions(config))):
        raise InputError("tune.searcher=pb2 changes values of running policies: only those of rewards and learning.rl")


def plan(run: StageRun) -> Plan:
    """Search ``tune.space``, each trial a short GRPO run."""
    config = run.config
    settings = {**rl_settings(config), "tune": config.tune.result_settings(), **reward_file.settings(run.reward_file)}
    return Plan(settings, partial(_search, run, spec_of(run)))


def publish(run: StageRun, artifact: Artifact) -> None:
    """Show the trials, best first, the verdict, and how its result is used."""
    LOG.info("\n%s", (artifact.path / "trials.txt").read_text(encoding="utf-8"))
    LOG.info("%s", artifact.metrics["verdict"])
    LOG.info("page: %s", shown_in_storage(run.config, artifact.path / "tune.html"))
    if artifact.metrics["tuned"]:
        LOG.info("take it: genrec grpo CONFIG... %s", shown_path(artifact.path / TUNED))


def tuned(config: Config, artifact: Artifact) -> Config:
    """The config with the values that the search declared best, if it declared some."""
    values = artifact.metrics["tuned"]
    return config.replace(values) if values else config


def _search(run: StageRun, make_spec: partial[RunSpec], out: Path) -> Mapping[str, Any]:
    config = run.config
    connect(config)
    from cluster.search.recording import make_record
    from cluster.search.tuner import Experiment, require_room, run_experiment

    require_room(config)
    spec = make_spec(out=out, rewards=reward_file.keep(run.reward_file, out))
    search = SearchSpec(spec, partial(run.remake, reward_file=run.reward_file), config.tune.searcher == "pb2")
    head = _head(config, _validated(spec))
    trials = run_experiment(search, Experiment("search", head=head))
    ended = [one for one in trials if one.metrics]
    if not ended:
        errors = "; ".join(sorted({one.error for one in trials if one.error})) or "none began"
        raise InputError(f"no trial of the search came to a validation ({errors}); the trials are under {out}/runs")
    record = make_record(head, trials, own_values(config), out)
    points, chosen = _finalist_points(config, record)
    again = run_experiment(search, Experiment("finalists", points)) if points else []
    record = _decided(record, chosen, again, own_values(config))
    return _keep(record, config, out)


def _validated(spec: RunSpec) -> dict[str, float]:
    """Metrics of the SFT policy, validated with the resources of a trial; once per search."""
    import json

    import ray

    from cluster.search.tuner import trial_resources

    kept = spec.out / "sft.json"
    if not kept.is_file():
        cpus, gpus = trial_resources(spec.config)
        write_json(ray.get(ray.remote(num_cpus=cpus, num_gpus=gpus)(offered(validate_start)).remote(spec)), kept)
    return json.loads(kept.read_text(encoding="utf-8"))


def _head(config: Config, sft: Mapping[str, float]) -> SearchRecord:
    """The record of a search that has no trials yet."""
    settings, space = config.tune, dimensions(config)
    absent = [name for name in settings.objectives if name not in sft]
    if absent:
        raise InputError(
            f"tune.objectives names {absent}, which no validation of this data reports; reported are {sorted(sft)}"
        )
    return SearchRecord(
        metric=settings.objectives[0],
        objectives=list(settings.objectives),
        constraints={name: sft[name] for name in settings.constraints if name in sft},
        space={
            key: DimensionRecord(kind=one.kind, low=one.low, high=one.high, values=list(one.values) or None)
            for key, one in space.items()
        },
        searcher=settings.searcher,
        scheduler=settings.scheduler,
        sft=dict(sft),
        budget=BudgetRecord(trials=settings.trials, hours=settings.hours, gpu_hours=settings.gpu_hours),
        steps_per_trial=settings.steps,
    )


def _finalist_points(config: Config, record: SearchRecord) -> tuple[list[dict[str, Any]], list[TrialRecord]]:
    """The finalists, and with them the config's own values, each with every fresh seed."""
    settings, own = config.tune, own_values(config)
    best = [one for one in best_first(record.trials, settings.objectives, settings.pick) if one.values != own]
    chosen = best[: settings.finalists]
    seeds = [config.seed + 1 + number for number in range(settings.seeds)]
    values = [own, *(one.values for one in chosen)] if chosen else []
    return [{**point, SEED: seed} for seed in seeds for point in values], chosen


def _decided(
    record: SearchRecord, chosen: Sequence[TrialRecord], again: Sequence[TrialRecord], own: Mapping[str, Any]
) -> SearchRecord:
    """The record with the finalists' runs, and the winner."""
    runs = {place: _seed_runs(again, values) for place, values in enumerate([own, *(one.values for one in chosen)])}
    default = DefaultRecord(id=record.default.id, metrics=record.default.metrics, seeds=runs[0])
    finalists: list[FinalistRecord] = [
        finalist(one, runs[place], default, record.sft, record.metric, len(chosen))
        for place, one in enumerate(chosen, start=1)
    ]
    found = {"default": default, "finalists": finalists, "winner": declare_winner(finalists, record.metric)}
    return SearchRecord.model_validate({**dict(record), **found})


def _seed_runs(again: Sequence[TrialRecord], values: Mapping[str, Any]) -> list[SeedRun]:
    return [
        SeedRun(seed=one.seed, metrics=one.metrics, feasible=one.feasible, error=one.error)
        for one in again
        if one.values == dict(values)
    ]


def _keep(record: SearchRecord, config: Config, out: Path) -> Mapping[str, Any]:
    """Write the record, the trials and the tuned values; returns what the artifact says of itself."""
    from genrec.evaluation.search_page.tune_page import write_tune_page

    settings = config.tune
    assert record.winner is not None
    winner = next((one for one in record.trials if one.id == record.winner.trial), None)
    values = dict(winner.values) if winner else {}
    ranked = best_first(record.trials, settings.objectives, settings.pick)
    others = [one for one in record.trials if one.metrics and one.id not in {best.id for best in ranked}]
    rows = [*ranked, *sorted(others, key=lambda one: -(one.metrics["ndcg@10"] or 0.0))]
    record.write(out)
    write_tune_page(record, out, title=config.name)
    write_json([{"values": one.values, "status": one.status, **one.metrics} for one in rows], out / "trials.json")
    write_text(trial_table(rows), out / "trials.txt")
    _write_tuned(record.winner.verdict, values, out / TUNED)
    for left in [*out.glob("runs/*/checkpoints"), out / "tune"]:
        shutil.rmtree(left, ignore_errors=True)
    return {
        "trials": len(record.trials),
        "verdict": record.winner.verdict,
        "best": {"values": rows[0].values, **rows[0].metrics},
        "tuned": values,
        "steps": record.steps_total,
    }


def _write_tuned(verdict: str, values: Mapping[str, Any], path: Path) -> None:
    """A config file of the winner's values, or of nothing but the reason why there is none; it must read back."""
    from omegaconf import OmegaConf

    body = OmegaConf.to_yaml(OmegaConf.create(nested(values))) if values else ""
    write_text(f"# {verdict}\n{body}", path)
    load_config([path])


def trial_table(trials: Sequence[TrialRecord]) -> str:
    """The trials as text: a line each, with its values, its figures, and how it ended."""
    keys = sorted(trials[0].values)
    head = "".join(f"{name:>14}" for name in (*(key.rsplit(".", 1)[-1][:13] for key in keys), *SHOWN))
    lines = [
        "".join([*(_cell(one.values[key]) for key in keys), *(_cell(one.metrics.get(name)) for name in SHOWN)])
        + f"  {one.status}{'' if one.feasible else ', outside a constraint'}{', on the front' if one.on_front else ''}"
        for one in trials
    ]
    return "\n".join([head, *lines]) + "\n"


def _cell(value: object) -> str:
    return f"{value:14.4f}" if isinstance(value, float) else f"{value!s:>14}"
