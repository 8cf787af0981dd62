"""A search on Ray Tune: started or gone on with, within its budget, its record written after every report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyarrow import fs
from ray import tune
from ray.tune.experiment import Trial

from cluster.node_files import collect_files, offered, ray_storage
from cluster.search.recording import BudgetStopper, SearchWatch, read_trials
from cluster.search.searchers import make_scheduler, make_searcher, name_of, param_space, samples
from cluster.search.trial import SearchSpec, is_one_process, point_of, run_trial
from cluster.session import require_resources
from genrec.config import Config
from genrec.config.search_space import own_values
from genrec.data.files import write_text
from genrec.evaluation.search_record import SearchRecord, TrialRecord

DRIVER_CPUS = 0.1
"""Of a trial that only drives Ray Train."""


def trial_resources(config: Config) -> tuple[float, float]:
    """CPUs and GPUs that a trial takes, with the learners and actors that it starts."""
    compute = config.compute
    workers, actors = max(1, compute.workers), compute.rollout_actors if compute.workers else 0
    own = 0.0 if is_one_process(config) else DRIVER_CPUS
    cpus = own + workers * compute.worker_cpus + actors * compute.rollout_cpus
    return cpus, workers * compute.worker_gpus + actors * compute.rollout_gpus


def require_room(config: Config) -> None:
    """Refuse trials that do not fit on the machine side by side: their actors would wait for each other.

    Raises:
        InputError: ``tune.max_concurrent`` trials ask for more than there is.
    """
    cpus, gpus = trial_resources(config)
    many = config.tune.max_concurrent
    require_resources(config, f"tune.max_concurrent={many} trials at a time", many * cpus, many * gpus)


@dataclass(frozen=True)
class Experiment:
    """One call of Ray Tune: its name, a folder of the search's directory, and what it runs.

    ``points`` are values to run, each once; None: those that the config's searcher proposes. ``head`` is the record
    without trials that is kept up to date meanwhile, or None.
    """

    name: str
    points: Sequence[Mapping[str, Any]] | None = None
    head: SearchRecord | None = None


def run_experiment(search: SearchSpec, experiment: Experiment) -> list[TrialRecord]:
    """Run an experiment to its end and return its trials, in the order in which they were made.

    A killed experiment goes on where it was: finished trials are kept, the others go on from their checkpoints.
    """
    storage = search.run.out / "tune"
    ended = storage / f"{experiment.name}.ended"
    if ended.is_file():
        return read_trials(search.run.out, experiment.name, search.config.seed)
    work = offered(partial(run_trial, search=search))
    trainable = tune.with_resources(work, _request(search.config))
    where = ray_storage(search.config, storage)
    before, filesystem = f"{where['storage_path']}/{experiment.name}", where.get("storage_filesystem")
    if _has_state(before, filesystem):
        tuner = tune.Tuner.restore(before, trainable, restart_errored=True, storage_filesystem=filesystem)
    else:
        tuner = _new_tuner(search, trainable, experiment)
    tuner.fit()
    collect_files()
    write_text("", ended)
    return read_trials(search.run.out, experiment.name, search.config.seed)


def _has_state(experiment: str, filesystem: fs.FileSystem | None) -> bool:
    """Whether a killed experiment can go on: Tune writes ``tuner.pkl`` first, and the trials some seconds later.

    Of the first alone ``Tuner.restore`` begins again without the space, with a trial that has no values.
    """
    listed = (filesystem or fs.LocalFileSystem()).get_file_info(fs.FileSelector(experiment, allow_not_found=True))
    return any(one.base_name.startswith("experiment_state-") and one.size for one in listed)


def _request(config: Config) -> Any:
    """What Tune reserves for a trial: all of it where it runs in one process, else its driver."""
    cpus, gpus = trial_resources(config)
    one = {"CPU": cpus, "GPU": gpus} if is_one_process(config) else {"CPU": DRIVER_CPUS}
    return tune.PlacementGroupFactory([{name: amount for name, amount in one.items() if amount}])


def _new_tuner(search: SearchSpec, trainable: Callable[..., None], experiment: Experiment) -> tune.Tuner:
    config, out, points = search.config, search.run.out, experiment.points
    if points is None:
        space, budget = param_space(config), (config.tune.hours, config.tune.gpu_hours)
        options: dict[str, Any] = {"search_alg": make_searcher(config), "scheduler": make_scheduler(config)}
        options["num_samples"] = samples(config)
        if config.tune.searcher == "optuna":  # The other searchers hold the limit themselves.
            options["max_concurrent_trials"] = config.tune.max_concurrent
    else:
        space, budget = {"point": tune.grid_search([dict(point) for point in points])}, (None, None)
        options = {"max_concurrent_trials": config.tune.max_concurrent}
    gpus = trial_resources(config)[1]
    metric, runs = config.tune.objectives[0], len(points or ())
    watch = SearchWatch(out, experiment.name, config.seed, gpus, experiment.head, own_values(config), metric, runs)
    failures = 0 if is_one_process(config) else config.compute.max_failures
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            **options,
            reuse_actors=is_one_process(config) and not search.population,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_folder,
        ),
        run_config=tune.RunConfig(
            name=experiment.name,
            **ray_storage(config, out / "tune"),
            verbose=0,
            callbacks=[watch],
            stop=BudgetStopper(out, *budget),
            failure_config=tune.FailureConfig(max_failures=failures),
        ),
    )


def trial_name(trial: Trial) -> str:
    """Its values and its id: what the dashboard and the logs call it."""
    return f"{name_of(point_of(trial.config))[:120]}-{trial.trial_id}"


def trial_folder(trial: Trial) -> str:
    """Its id: values would make paths too long."""
    return trial.trial_id
