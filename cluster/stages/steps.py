"""Stages that verbs and benchmarks share: each is made from the outputs that it reads, unless it exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact, run_stage
from cluster.data import parallel_map
from cluster.reward_file import kept_terms, terms_settings
from cluster.run_spec import RunSpec
from cluster.stages import fit_quantizer, teacher
from cluster.stages.instruction import key_of
from cluster.train import grpo_loop, run_training, sft_loop, summary
from genrec.config import Config

ASSIGN_VERSION = 1
SFT_VERSION = 1
GRPO_VERSION = 2


def assign(config: Config, data: Artifact, vectors: Artifact | None) -> Artifact:
    """A SID for every item of ``data``: by a quantizer of ``vectors``, or as published (``sid.quantizer=given``)."""
    if config.sid.quantizer == "given" or vectors is None:
        settings = config.sid.model_dump(
            mode="json", include={"quantizer", "column", "levels", "codebook_size", "collisions"}
        )
        work = partial(_take, config, data.path)
        return run_stage(config, "assign", version=ASSIGN_VERSION, settings=settings, inputs=[data], work=work)
    settings = {**config.sid.stage_settings(), "seed": config.seed}
    work = partial(_quantize, config, data.path, vectors.path)
    return run_stage(config, "assign", version=ASSIGN_VERSION, settings=settings, inputs=[data, vectors], work=work)


def _take(config: Config, data: Path, out: Path) -> Mapping[str, Any]:
    from genrec.sid.build import finish_published

    return finish_published(data, out, config.sid)


def _quantize(config: Config, data: Path, vectors: Path, out: Path) -> Mapping[str, Any]:
    from genrec.sid.build import finish_quantized, make_assigner
    from genrec.sid.vectors import missing_shards

    items = fit_quantizer.fit(config, data, vectors, out)
    sid, compute = config.sid, config.compute
    make = partial(make_assigner, vectors, out, sid, compute.data_threads)
    parallel_map(config, make, missing_shards(out / "codes", items, sid.shard_items), label="assign")
    return finish_quantized(data, vectors, out, sid, compute.threads)


def sft(config: Config, data: Artifact, catalog: Artifact) -> Artifact:
    """The policy that learned the next item from ``data``, for the SIDs of ``catalog``."""
    settings = {
        "policy": config.policy.model_dump(mode="json"),
        "sft": config.learning.sft.model_dump(mode="json"),
        "max_history": config.data.max_history,
        "workers": config.compute.workers,
        "seed": config.seed,
        **key_of(config),
    }
    work = partial(_train, config, data.path, catalog.path)
    return run_stage(config, "sft", version=SFT_VERSION, settings=settings, inputs=[data, catalog], work=work)


def _train(config: Config, data: Path, catalog: Path, out: Path) -> Mapping[str, Any]:
    teacher.ask(config, data, out)
    run_training(sft_loop, RunSpec(config, data, catalog, out), "sft")
    return summary(out)


def grpo(
    config: Config,
    data: Artifact,
    catalog: Artifact,
    start: Artifact,
    vectors: Artifact | None,
    terms: str | None = None,
) -> Artifact:
    """What rewards made of ``start``; ``vectors`` are for ``rewards.semantic``, ``terms`` is a file of own terms."""
    settings = {
        "policy": config.policy.model_dump(mode="json"),
        "grpo": config.learning.rl.model_dump(mode="json"),
        "rewards": config.rewards.model_dump(mode="json"),
        "workers": config.compute.workers,
        "seed": config.seed,
        **terms_settings(terms),
    }
    needed = [vectors] if vectors is not None and config.rewards.semantic else []
    job = partial(
        RunSpec, config, data.path, catalog.path, start=start.path, vectors=needed[0].path if needed else None
    )
    work, inputs = partial(_reinforce, job, terms), [data, catalog, start, *needed]
    return run_stage(config, "grpo", version=GRPO_VERSION, settings=settings, inputs=inputs, work=work)


def _reinforce(job: Callable[..., RunSpec], terms: str | None, out: Path) -> Mapping[str, Any]:
    run_training(grpo_loop, job(out=out, rewards=kept_terms(terms, out)), "grpo")
    return summary(out)
