"""sft: the policy learns the next item from the log, on Ray Train; and tasks, in stages, where the config says so."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import teacher
from cluster.content import model_content
from cluster.data import parallel_map
from cluster.session import configure_process
from cluster.stages.plan import Plan, StageRun
from cluster.task_mixtures import training_stages
from cluster.train import (
    CURVE,
    PolicyParts,
    RunSpec,
    deepspeed_config,
    make_accelerator,
    make_checkpoints,
    run_training,
    save_result,
    training_summary,
)
from genrec.config import Config
from genrec.data.files import fill_once, write_json
from genrec.data.readers import (
    count_items,
    count_train_targets,
    read_queries,
    read_sequences,
    read_train_queries,
    sequence_files,
    stream_sequences,
)
from genrec.data.train_counts import read_train_counts
from genrec.errors import InputError
from genrec.policy.chat.templates import language_content

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from accelerate import Accelerator

    from genrec.evaluation.validate import Search
    from genrec.learning.sft.batches import Examples, TrainingBatches
    from genrec.learning.sft.knn_teacher import KnnTeacher
    from genrec.learning.sft.losses import SftLoss
    from genrec.learning.sft.streaming import WindowStream
    from genrec.policy.prompts import Prompts
    from genrec.sid.catalog import Catalog

LOG = logging.getLogger(__name__)

VALIDATION_WIDTH = 10
"""Items that a validation searches for: NDCG@10 decides."""

WINDOWS = "windows.json"
"""Next to a policy that learned from a stream: the windows of each sequence file."""

NEIGHBOURS = "neighbours"
"""While a policy learns from a stream: for each fold of users the ItemKNN that knows the others."""


def plan(run: StageRun) -> Plan:
    """Train the policy for the semantic IDs of the catalogue."""
    config, learning = run.config, run.config.learning
    settings = {
        "policy": policy_settings(config),
        "sft": learning.sft.result_settings() | {"example_format": config.example_format},
        "max_history": config.data.max_history,
        "seed": config.seed,
    }
    if "hard" in learning.sft.loss.weights:
        # The largest losses are found within a worker's micro batch.
        settings |= {"micro_batch": learning.sft.micro_batch, "workers": config.compute.workers}
    if config.learns_tasks:
        settings |= {name: getattr(learning, name).result_settings() for name in ("stages", "tasks")}
        written = [language_content(name) for name in learning.instruction.languages]
        settings["instruction"] = learning.instruction.result_settings() | {"languages": written}
    return Plan(settings, partial(_train, config, run.path("prepare"), run.path("assign")))


def train(config: Config, data: Path, catalog: Path, out: Path, name: str) -> Mapping[str, Any]:
    """Train a policy by ``learning.sft`` on the tables of ``data``, in memory or streamed; returns its summary.

    Args:
        name: of the run with Ray Train.
    """
    streams = config.learning.sft.ingest == "stream" and not (out / CURVE).is_file()
    stream = make_stream(config, data, out) if streams else None
    run_training(sft_loop, RunSpec(config, data, catalog, out, stream=stream), name)
    shutil.rmtree(out / NEIGHBOURS, ignore_errors=True)
    return training_summary(out)


def policy_settings(config: Config) -> dict[str, Any]:
    """What a policy depends on: the config's section, and the content of a local model directory."""
    settings = config.policy.result_settings()
    if config.policy.kind == "pretrained":
        settings["path"] = model_content(config.policy.path, config)
    return settings


def _train(config: Config, data: Path, catalog: Path, out: Path) -> Mapping[str, Any]:
    teacher.ask(config, data, out)
    return train(config, data, catalog, out, "sft")


def make_stream(config: Config, data: Path, out: Path) -> WindowStream:
    """The windows to learn from. How many each file has is counted once, by Ray Data, and ItemKNN as a teacher fitted.

    Raises:
        InputError: the sequences hold no training target.
    """
    from genrec.learning.sft.dense_windows import NO_TARGET
    from genrec.learning.sft.streaming import WindowStream

    counted, settings = out / WINDOWS, config.learning.sft
    if not counted.is_file():
        files = sequence_files(data)
        make = partial(partial, _count_windows, data, config.data.max_history)
        rows = parallel_map(config, make, range(len(files)), label="count windows")
        write_json([row["windows"] for row in rows], counted)
    windows_F = tuple(json.loads(counted.read_text(encoding="utf-8")))
    if not any(windows_F):
        raise InputError(NO_TARGET)
    if _has_knn_teacher(config):
        _fit_neighbours(config, data, out / NEIGHBOURS)
    with_context = config.policy.context.is_on
    return WindowStream(
        data, windows_F, config.data.max_history, settings.batch_size, settings.pool, config.seed, with_context
    )


def _count_windows(data: Path, history: int, file: int) -> Mapping[str, int]:
    from genrec.learning.sft.streaming import count_file_windows

    return {"windows": count_file_windows(sequence_files(data)[file], history)}


def _has_knn_teacher(config: Config) -> bool:
    return config.policy.items.head and config.learning.sft.distill > 0


def _fit_neighbours(config: Config, data: Path, folder: Path) -> None:
    """Fit the ItemKNN of each fold of users once, for all workers to read from the disk."""
    from genrec.learning.sft.knn_teacher import FOLDS

    missing = [fold for fold in range(FOLDS) if not (folder / str(fold)).is_dir()]
    make = partial(partial, _fit_fold, data, count_items(data), folder)
    parallel_map(config, make, missing, label="neighbours for a fold of users")


def _fit_fold(data: Path, items: int, folder: Path, fold: int) -> Mapping[str, Any]:
    from genrec.learning.sft.knn_teacher import fit_fold

    fill_once(folder / str(fold), fit_fold(data, items, fold).write)
    return {}


def sft_loop(spec: RunSpec) -> None:
    """What every SFT worker runs; rank 0 writes ``policy`` and ``curve.json`` into ``spec.out``."""
    config = spec.config
    configure_process(config)
    from genrec.evaluation.validate import Validator

    settings, accelerator = config.learning.sft, make_accelerator(config)
    built = spec.build()
    valid, search = _validation(spec.data, config.data.max_history, len(built.catalog))
    validator = Validator(
        valid,
        built.prompts,
        built.catalog.trie,
        accelerator,
        count=settings.eval_queries,
        search=search,
        batch_size=config.decode.batch_size,
    )
    epochs = None if config.learns_tasks else _batches(spec)
    learn(spec, built, epochs, accelerator, {"validate": validator})


def _batches(spec: RunSpec) -> TrainingBatches:
    """The batches of next items: from memory, or as they are read."""
    from genrec.learning.sft.batches import Epochs
    from genrec.learning.sft.streaming import StreamedEpochs

    config, settings = spec.config, spec.config.learning.sft
    if spec.stream is None:
        return Epochs(make_examples(spec.data, config), settings.batch_size, config.seed, settings.loss.second_pass)
    if not config.compute.workers:
        return StreamedEpochs(spec.stream)
    from cluster.ingest import open_pools

    return StreamedEpochs(spec.stream, open_pools)


def learn(
    spec: RunSpec,
    built: PolicyParts,
    epochs: TrainingBatches | None,
    accelerator: Accelerator,
    options: Mapping[str, Any],
) -> None:
    """Next items alone, or every stage of ``learning.stages`` that is on and then ``learning.sft``; keeps the result.

    Args:
        epochs: of next items; None for a config that learns tasks or stages.
        options: further ones of ``SftTrainer``.
    """
    from genrec.learning.sft.stages import run_stages
    from genrec.learning.sft.trainer import SftTrainer

    config, settings = spec.config, spec.config.learning.sft
    if config.compute.gradient_checkpointing:
        built.policy.recompute_activations()
    if accelerator.is_main_process:
        trained, parameters = built.policy.parameter_counts()
        LOG.info(
            "training %s of %s parameters (%.2f %%)", f"{trained:,}", f"{parameters:,}", 100 * trained / parameters
        )
    loss = _make_loss(spec, built.prompts, built.catalog, accelerator.device)
    options = {
        "seed": config.seed,
        "accelerator": accelerator,
        "checkpoints": make_checkpoints(spec),
        "deepspeed": deepspeed_config(config.compute.strategy),
        **options,
    }
    if epochs is None:
        state = run_stages(built.policy, training_stages(spec, built, loss, accelerator), **options)
    else:
        state = SftTrainer(built.policy, loss, epochs, settings, **options).run()
    save_result(spec, built.policy, built.catalog, state, accelerator)


def _make_loss(spec: RunSpec, prompts: Prompts, catalog: Catalog, device: torch.device) -> SftLoss:
    """The loss of ``learning.sft``; how rare an item is, is counted in the train targets."""
    import torch

    from genrec.learning.sft.losses import SftLoss, rare_items

    settings, rare_N = spec.config.learning.sft, None
    knn = _knn_teacher(spec, len(catalog)) if _has_knn_teacher(spec.config) else None
    if "rare" in settings.loss.weights:
        counts_N = count_train_targets(spec.data, len(catalog.codes_NL))
        rare_N = rare_items(torch.from_numpy(counts_N), settings.loss.rare_share)
    return SftLoss(
        prompts,
        catalog,
        softmax=settings.softmax,
        smoothing=settings.label_smoothing,
        weights=settings.loss,
        rare_N=rare_N,
        teacher=knn,
        device=device,
    )


def _knn_teacher(spec: RunSpec, items: int) -> KnnTeacher:
    """ItemKNN as a teacher: fitted here, or as it was fitted once for the workers of a run that streams."""
    from genrec.baselines.itemknn import map_itemknn
    from genrec.learning.sft.knn_teacher import FOLDS, KnnTeacher, fit_by_fold

    config = spec.config
    if spec.stream is None:
        by_fold = fit_by_fold(read_sequences(spec.data, ["user_id", "items", "split"]), items)
    else:
        by_fold = [map_itemknn(spec.out / NEIGHBOURS / str(fold)) for fold in range(FOLDS)]
    masks = read_train_counts(spec.data, items).mask_seen
    return KnnTeacher(by_fold, config.data.max_history, config.learning.sft.distill, mask_seen=masks)


def make_examples(data: Path, config: Config) -> Examples:
    """The training examples of the config in the tables of ``data``."""
    return _examples(data, config.example_format, config.data.max_history, with_context=config.policy.context.is_on)


@lru_cache(maxsize=2)
def _examples(data: Path, example_format: str, max_history: int, *, with_context: bool) -> Examples:
    """They are of items, not of SIDs, so that runs in one process share them."""
    from genrec.learning.sft.batches import DenseExamples, RowExamples

    if example_format == "dense":
        columns = ["user_id", "items", "split", *(("times", "events") if with_context else ())]
        return DenseExamples(stream_sequences(data, columns), max_history, with_context=with_context)
    return RowExamples(read_train_queries(data, with_context=with_context), with_context=with_context)


@lru_cache(maxsize=1)
def _validation(data: Path, max_history: int, items: int) -> tuple[pa.Table, Search]:
    """The validation queries and how they are searched."""
    from genrec.evaluation.validate import Search

    masks = read_train_counts(data, items).mask_seen
    return read_queries(data, "valid"), Search.of(VALIDATION_WIDTH, max_history, mask_seen=masks)


def require_next_items_alone(config: Config, asked: str, remedy: str) -> None:
    """Refuse ``asked`` of a config that learns tasks or stages; ``remedy`` is the setting to take instead.

    Raises:
        InputError: the config learns them.
    """
    if config.learns_tasks:
        raise InputError(f"{asked} trains next items alone, and the config learns tasks or stages; set {remedy}")
