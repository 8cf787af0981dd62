"""Ray Train around the learning loops: what a worker is given, what it runs, and the trainer that starts workers."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.node_check import require_nodes
from cluster.node_files import collect_files, offered, ray_storage
from cluster.progress import WORKER_LOG, log_to_file, tail_log
from cluster.resources import cap_memory
from cluster.session import connect, joins_cluster, require_resources
from cluster.trackers import require_trackers
from genrec.config import Compute, Config, packaged_file
from genrec.data.files import write_json, write_text
from genrec.errors import InputError, packed_error, unpacked_error

if TYPE_CHECKING:
    from accelerate import Accelerator
    from ray.train import ScalingConfig

    from genrec.inference.served_search import ServedSearch
    from genrec.learning.checkpoints import Checkpoints, TrainingState
    from genrec.learning.sft.streaming import WindowStream
    from genrec.policy.model import Policy
    from genrec.policy.prompts import Prompts
    from genrec.sid.catalog import Catalog

REFUSED = "refused.txt"
"""Where a worker leaves its InputError, packed: as an exception it would be retried and arrive wrapped."""

CURVE = "curve.json"
"""The training's summary and its curve; a stage whose directory has it is trained."""


class PolicyParts(NamedTuple):
    """What a run trains, or searches with: the policy, its prompts and its catalogue."""

    policy: Policy
    prompts: Prompts
    catalog: Catalog


@dataclass(frozen=True)
class RunSpec:
    """One training run as workers and actors are told of it: paths and the config, from which they build the rest.

    Rank 0 leaves the result in ``out``. ``start`` holds the policy to begin from (the SFT policy), or is None for a new
    one; ``vectors`` the item vectors and ``rewards`` the Python file of terms, for rewards that want them; ``groups``
    fixed groups; ``served`` the weights of the search that is served, where rewards are paid on that; ``stream`` the
    windows to learn from, where no worker holds them all.
    """

    config: Config
    data: Path
    catalog: Path
    out: Path
    start: Path | None = None
    vectors: Path | None = None
    rewards: Path | None = None
    groups: Path | None = None
    served: Path | None = None
    stream: WindowStream | None = None

    def serving(self, catalog: Catalog) -> ServedSearch | None:
        """The search that the run serves with; None where nothing is learned from what is served.

        Raises:
            InputError: the config wants that, and nothing tuned the search.
        """
        from genrec.inference.served_search import ServedSearch, ServedWeights

        if not self.config.learning.rl.served:
            return None
        if self.served is None:
            raise InputError("learning.rl.served=true needs the stage served, which this command does not make")
        return ServedSearch(ServedWeights.read(self.served), self.data, catalog, self.config.data.max_history)

    def build(self) -> PolicyParts:
        """The policy (with the tensors of ``start``), its prompts and the catalogue."""
        from genrec.data.readers import read_items
        from genrec.policy.backbone import build, load
        from genrec.sid.catalog import Catalog

        catalog, config = Catalog.load(self.catalog), self.config
        history = config.data.max_history
        options: dict[str, Any] = {"max_history": history, "seed": config.seed, "cache": config.backbones_path}
        if self.start is None:
            if config.policy.kind == "pretrained":
                options["titles"] = [title or "" for title in read_items(self.data)["title"].to_pylist()]
            return PolicyParts(*build(config.policy, catalog, **options), catalog)
        return PolicyParts(*load(config.policy, catalog, self.start, **options), catalog)


class RayCheckpoints:
    """Checkpoints that Ray Train keeps and hands back after a failure or a restart (``Checkpoints`` protocol)."""

    def __init__(self, where: str) -> None:
        self._where = where

    @contextmanager
    def latest(self) -> Generator[Path | None]:
        """The newest checkpoint as a local directory, or None."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as directory:
            yield Path(directory)

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Report ``metrics`` and, from rank 0, what ``write`` puts into a directory."""
        import ray.train

        from genrec.learning.checkpoints import refusing_failed_writes

        with refusing_failed_writes(self._where), tempfile.TemporaryDirectory() as directory:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                write(Path(directory))
                checkpoint = ray.train.Checkpoint.from_directory(directory)
            ray.train.report(dict(metrics), checkpoint=checkpoint)


def run_training(loop: Callable[[RunSpec], None], spec: RunSpec, name: str) -> None:
    """Run ``loop(spec)`` on ``compute.workers`` Ray Train workers; with 0, in this process without Ray.

    The run's name and storage are the stage's own directory, so the same command resumes from its last checkpoint;
    ``compute.max_failures`` restarts cover a worker that dies meanwhile.

    Raises:
        InputError: the loop refused its input, or the machine is too small for what ``compute`` asks.
    """
    compute = spec.config.compute
    if (spec.out / CURVE).is_file():
        return
    require_trackers(spec.config)
    if compute.workers == 0:
        loop(spec)
        return
    actors = compute.rollout_actors if spec.start is not None else 0
    train_on_ray(
        partial(loop, spec),
        spec.config,
        spec.out,
        name,
        compute.workers,
        actors,
        at_least=compute.min_workers,
        stream=spec.stream,
    )


def train_on_ray(
    loop: Callable[[], None],
    config: Config,
    out: Path,
    name: str,
    workers: int,
    actors: int = 0,
    *,
    at_least: int | None = None,
    stream: WindowStream | None = None,
) -> None:
    """Run ``loop()`` on ``workers`` Ray Train workers, next to ``actors`` rollout actors that they will start.

    Their checkpoints are kept under ``out/train``; what they log is shown here.

    Args:
        at_least: Ray Train begins with so many workers if there is no room for more, and starts them again from the
            last checkpoint when their number can grow, or nodes were lost; None: always with ``workers``.
        stream: the windows that are read for the workers.

    Raises:
        InputError: a worker refused its input, or the machine is too small for what ``compute`` asks.
    """
    connect(config)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    compute = config.compute
    require_nodes(config)
    # On a cluster a run begins with one rollout actor, if the others must wait for room.
    fewest, at_first = at_least or workers, min(actors, 1) if joins_cluster(config) else actors
    cpus = fewest * compute.worker_cpus + at_first * compute.rollout_cpus
    require_resources(config, name, cpus, fewest * compute.worker_gpus + at_first * compute.rollout_gpus)
    out.mkdir(parents=True, exist_ok=True)
    refused = out / REFUSED
    refused.unlink(missing_ok=True)
    datasets = shards = None
    if stream is not None:
        from cluster.ingest import make_ingest

        datasets, shards = make_ingest(config, stream, out)
    trainer = TorchTrainer(
        partial(_called, offered(partial(_worker_entry, loop, out))),
        torch_config=TorchConfig(backend="nccl" if compute.worker_gpus else "gloo"),
        scaling_config=_scaling(compute, fewest, workers),
        run_config=RunConfig(
            name=name,
            **ray_storage(config, out / "train"),
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
        datasets=dict(datasets) if datasets is not None else None,
        dataset_config=shards,
    )
    with tail_log(out):
        try:
            trainer.fit()
        except WorkerGroupError:
            collect_files()
            if not refused.is_file():
                raise
    collect_files()
    if refused.is_file():
        raise unpacked_error(refused.read_text(encoding="utf-8"))


def _scaling(compute: Compute, fewest: int, most: int) -> ScalingConfig:
    """What a worker gets, and the number of them."""
    from ray.train import ScalingConfig

    gpus = {"GPU": compute.worker_gpus} if compute.worker_gpus else {}
    return ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=bool(gpus),
        resources_per_worker={"CPU": compute.worker_cpus, **gpus, **compute.worker_resources},
        # Workers exchange gradients at each step: on few nodes. Rollout actors are spread (``start_actors``).
        placement_strategy="PACK",
    )


def _called(work: Callable[[], None]) -> None:
    """``work()``: Ray Train takes a function by its parameters, of which this has none left."""
    work()


def _worker_entry(loop: Callable[[], None], out: Path) -> None:
    """In a Ray Train worker: what it logs goes to the driver by file, Ray's own reports to Ray's logs.

    A loop that refused its input is not tried again: workers that are started after that end at once.
    """
    import ray.train

    if (out / REFUSED).is_file():
        return
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    with log_to_file(out):
        try:
            loop()
        except InputError as error:
            write_text(packed_error(error), out / REFUSED)
            # Among several workers, one that ends quietly would leave the others waiting for it.
            if ray.train.get_context().get_world_size() > 1:
                raise


def make_accelerator(config: Config) -> Accelerator:
    """This worker's device and process group, with its threads and its share of a shared card set."""
    import torch
    from accelerate import Accelerator

    compute = config.compute
    torch.set_num_threads(compute.threads)
    cuda = compute.worker_may_use_gpu and torch.cuda.is_available()
    if cuda:
        cap_memory(compute.worker_gpus)
    return Accelerator(cpu=not cuda)


def deepspeed_config(strategy: str) -> dict[str, Any] | None:
    """DeepSpeed's own config for ``strategy``; None for ddp."""
    if strategy == "ddp":
        return None
    return json.loads(packaged_file(f"deepspeed/{strategy}.json").read_text(encoding="utf-8"))


def make_checkpoints(spec: RunSpec) -> Checkpoints:
    """Where a run keeps its checkpoints: with Ray Train, or in a folder of the stage's directory."""
    from genrec.learning.checkpoints import DirectoryCheckpoints

    if spec.config.compute.workers:
        kept = RayCheckpoints(str(spec.out / "train"))
        if spec.stream is None:
            return kept
        from cluster.ingest import Position, PositionedCheckpoints

        return PositionedCheckpoints(kept, Position.of(spec.config, spec.out))
    return DirectoryCheckpoints(spec.out / "checkpoints")


def save_result(
    spec: RunSpec, policy: Policy, catalog: Catalog, state: TrainingState, accelerator: Accelerator
) -> None:
    """From rank 0: the best policy, and the summary with the curve."""
    if not accelerator.is_main_process:
        return
    from genrec.policy.backbone import save

    save(policy, state.best, catalog, {"settings": spec.config.policy.model_dump(mode="json")}, spec.out)
    trained, parameters = policy.parameter_counts()
    about: dict[str, Any] = {"steps": state.step, "best_step": state.best_step}
    about |= {"parameters": parameters, "trained_parameters": trained, "trained_share": round(trained / parameters, 6)}
    if math.isfinite(state.best_score):
        about[f"valid_{state.best_metric}"] = state.best_score
    write_json({**about, "stopped": state.stopped, "curve": state.curve}, spec.out / CURVE)


def read_summary(out: Path) -> dict[str, Any]:
    """What a finished run says of itself: its steps, the best of them, how it ended, and its ``curve``."""
    return json.loads((out / CURVE).read_text(encoding="utf-8"))


def training_summary(out: Path) -> dict[str, Any]:
    """``read_summary`` without the curve; the run's checkpoints and the workers' log are dropped."""
    about = read_summary(out)
    for name in ("train", "checkpoints"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / WORKER_LOG).unlink(missing_ok=True)
    return {name: value for name, value in about.items() if name != "curve"}
