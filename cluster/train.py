"""Ray Train around the learning loops: what every worker runs, and the trainer that starts the workers."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from cluster.progress import log_to_file, tail_log
from cluster.resources import cap_memory
from cluster.run_spec import RunSpec
from cluster.session import connect, prepare_environment, require
from cluster.stages.instruction import is_wanted, train_stages
from cluster.telemetry import Telemetry, TimedRollouts, metric_loggers, require_mlflow
from genrec.config import Config
from genrec.data.files import write_json, write_text
from genrec.errors import InputError

REFUSED = "refused.txt"
"""Where a worker leaves the message of an InputError: as an exception it would be retried and arrive wrapped."""

DEEPSPEED = Path(__file__).parent.parent / "configs" / "deepspeed"
"""A file per ZeRO strategy, in DeepSpeed's own format."""


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


def run_training(loop: Callable[[RunSpec], None], job: RunSpec, name: str) -> None:
    """Run ``loop(job)`` on ``compute.workers`` Ray Train workers; with 0, in this process without Ray.

    The run's name and storage are the stage's own directory, so the same command resumes from its last checkpoint;
    ``compute.max_failures`` restarts cover a worker that dies meanwhile.

    Raises:
        InputError: the loop refused its input, or the machine is too small for what ``compute`` asks.
    """
    compute = job.config.compute
    if (job.out / "curve.json").is_file():
        return
    require_mlflow(job.config)
    if compute.workers == 0:
        loop(job)
        return
    actors = compute.rollout_actors if job.start is not None else 0
    train(partial(loop, job), job.config, job.out, name=name, workers=compute.workers, actors=actors)


def train(loop: Callable[[], None], config: Config, out: Path, *, name: str, workers: int, actors: int = 0) -> None:
    """Run ``loop()`` on so many Ray Train workers, beside the rollout actors that they will start.

    Their checkpoints are kept under ``out/train``, what they print in ``out/progress.log``.

    Raises:
        InputError: a worker refused its input, or the machine is too small for what ``compute`` asks.
    """
    connect(config)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    compute = config.compute
    cpus = workers * compute.worker_cpus + actors * compute.rollout_cpus
    require(config, name, cpus, workers * compute.worker_gpus + actors * compute.rollout_gpus)
    gpus = compute.worker_gpus > 0
    trainer = TorchTrainer(
        partial(_worker_entry, loop, out),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": compute.worker_cpus} | ({"GPU": compute.worker_gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(out / "train"),
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    refused = out / REFUSED
    refused.unlink(missing_ok=True)
    with tail_log(out):
        try:
            trainer.fit()
        except WorkerGroupError:
            if not refused.is_file():
                raise
    if refused.is_file():
        raise InputError(refused.read_text(encoding="utf-8"))


def _worker_entry(loop: Callable[[], None], out: Path) -> None:
    """In a Ray Train worker: progress goes to the driver's terminal by file, Ray's own reports to its logs.

    A loop that refused its input is not tried again: workers that are started after that end at once.
    """
    import logging

    import ray.train

    if (out / REFUSED).is_file():
        return
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    with log_to_file(out):
        try:
            loop()
        except InputError as error:
            write_text(str(error), out / REFUSED)
            # Where workers are many, one that ends quietly would leave the others waiting for it.
            if ray.train.get_context().get_world_size() > 1:
                raise


def sft_loop(job: RunSpec) -> None:
    """What every SFT worker runs; rank 0 writes ``policy`` and ``curve.json`` into ``job.out``."""
    prepare_environment(job.config)
    from genrec.evaluation.validate import Validator
    from genrec.learning.sft.batches import Epochs
    from genrec.learning.sft.trainer import SftTrainer

    config, settings = job.config, job.config.learning.sft
    accelerator = _accelerator(job)
    policy, prompts, catalog = job.build()
    examples, valid = _examples(job.data, settings.example_format, config.data.max_history)
    if config.compute.gradient_checkpointing:
        policy.recompute_activations()
    validator = Validator(
        valid,
        prompts,
        catalog.trie,
        accelerator,
        count=settings.eval_queries,
        width=10,
        batch_size=config.decode.batch_size,
    )
    loss = _sft_loss(job, prompts, catalog, accelerator.device)
    options: dict[str, Any] = {
        "seed": config.seed,
        "accelerator": accelerator,
        "checkpoints": _checkpoints(job),
        "validate": validator,
        "deepspeed": deepspeed_config(config.compute.strategy),
    }
    if is_wanted(config):
        state = train_stages(job, policy, prompts, catalog, loss, options=options)
    else:
        epochs = Epochs(examples, settings.batch_size, config.seed)
        state = SftTrainer(policy, loss, epochs, settings, **options).run()
    _save_result(job, policy, catalog, state, accelerator)


def _sft_loss(job: RunSpec, prompts: Any, catalog: Any, device: Any) -> Any:
    """The loss of ``learning.sft``; what is rare is counted in the train targets."""
    import torch

    from genrec.data.tables import read_queries
    from genrec.learning.sft.losses import SftLoss, rare_items

    settings, rare_N = job.config.learning.sft, None
    if "rare" in settings.loss.weights:
        targets = torch.from_numpy(read_queries(job.data, "train")["target"].to_numpy().astype("int64"))
        rare_N = rare_items(targets.bincount(minlength=len(catalog.codes_NL)), settings.loss.rare_share)
    return SftLoss(
        prompts,
        catalog,
        softmax=settings.softmax,
        smoothing=settings.label_smoothing,
        weights=settings.loss,
        rare_N=rare_N,
        device=device,
    )


@lru_cache(maxsize=1)
def _examples(data: Path, form: str, max_history: int) -> tuple[Any, Any]:
    """Training examples and validation queries: items, not SIDs, so runs in one process share them."""
    from genrec.data.tables import read_queries, read_sequences
    from genrec.learning.sft.batches import DenseExamples, RowExamples

    valid = read_queries(data, "valid")
    if form == "dense":
        return DenseExamples(read_sequences(data), max_history), valid
    return RowExamples(read_queries(data, "train")), valid


def grpo_loop(job: RunSpec) -> None:
    """What every GRPO learner runs, each with its share of the rollout actors; rank 0 writes the result."""
    prepare_environment(job.config)
    from genrec.data.tables import read_queries
    from genrec.evaluation.validate import LocalValidator, Validator
    from genrec.learning.rewards import RewardFunction, active_terms, load_terms
    from genrec.learning.rewards.read_context import read_reward_context
    from genrec.learning.rl.learner import GrpoLearner
    from genrec.learning.rl.query_sampler import QueryStream
    from genrec.learning.rl.rollout import LocalRollouts
    from genrec.learning.rl.trainer import GrpoTrainer

    config, settings = job.config, job.config.learning.rl
    accelerator = _accelerator(job)
    policy, prompts, catalog = job.build()
    rewards = config.rewards
    terms = active_terms(rewards, load_terms(rewards.custom, job.rewards), centred=settings.objective != "ppo")
    context = read_reward_context(job.data, catalog.codes_NL, terms, rewards.settings, job.vectors)
    reward = RewardFunction(rewards, context, terms)
    learner = GrpoLearner(policy, prompts, catalog.trie, reward, settings, accelerator)
    rank, world = accelerator.process_index, accelerator.num_processes
    actors = len(range(rank, config.compute.rollout_actors, world)) if config.compute.workers else 0
    if actors:
        from cluster.rollouts import RayRollouts

        rollouts: Any = RayRollouts(job, actors)
    else:
        rollouts = LocalRollouts(policy, prompts, catalog.trie.to(accelerator.device), settings, config.seed)
    validator = Validator(
        read_queries(job.data, "valid"),
        prompts,
        catalog.trie,
        accelerator,
        count=settings.eval_queries,
        width=50,
        batch_size=config.decode.batch_size,
        train_counts_N=context.counts_N.numpy(),
    )
    validator = rollouts.judge(validator) if actors else LocalValidator(validator, policy)
    train = read_queries(job.data, "train")
    timed = TimedRollouts(rollouts)
    run = GrpoTrainer(
        learner,
        timed,
        QueryStream(train, settings.queries * settings.oversample, seed=config.seed, rank=rank, world=world),
        settings=settings,
        accelerator=accelerator,
        checkpoints=_checkpoints(job),
        validator=validator,
        callback=Telemetry(timed, metric_loggers(config, job.out, rank=rank)),
    )
    _save_result(job, policy, catalog, run.run(), accelerator)


def _accelerator(job: RunSpec) -> Any:
    import torch
    from accelerate import Accelerator

    torch.set_num_threads(job.config.compute.threads)
    cuda = torch.cuda.is_available() and job.config.compute.device != "cpu"
    if cuda:
        cap_memory(job.config.compute.worker_gpus)
    return Accelerator(cpu=not cuda)


def deepspeed_config(strategy: str) -> dict[str, Any] | None:
    """DeepSpeed's own config for ``strategy``; None for ddp."""
    if strategy == "ddp":
        return None
    return json.loads((DEEPSPEED / f"{strategy}.json").read_text(encoding="utf-8"))


def _checkpoints(job: RunSpec) -> Any:
    from genrec.learning.checkpoints import DirectoryCheckpoints

    return (
        RayCheckpoints(str(job.out / "train"))
        if job.config.compute.workers
        else DirectoryCheckpoints(job.out / "checkpoints")
    )


def _save_result(job: RunSpec, policy: Any, catalog: Any, state: Any, accelerator: Any) -> None:
    """Rank 0 writes the best policy, the curve and a summary."""
    if not accelerator.is_main_process:
        return
    from genrec.policy.backbone import save

    save(policy, state.best, catalog, {"settings": job.config.policy.model_dump(mode="json")}, job.out)
    summary = {"steps": state.step, "best_step": state.best_step, "valid_ndcg@10": state.best_score}
    write_json({**summary, "stopped": state.stopped, "curve": state.curve}, job.out / "curve.json")


def summary(out: Path) -> dict[str, Any]:
    """What the finished loop says of itself, without the curve; its checkpoints are dropped."""
    about = json.loads((out / "curve.json").read_text(encoding="utf-8"))
    for name in ("train", "checkpoints"):
        shutil.rmtree(out / name, ignore_errors=True)
    return {name: value for name, value in about.items() if name != "curve"}
