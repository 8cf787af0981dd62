"""assign: vectors to semantic IDs without collisions, the catalogue with its trie, and the health page.

The quantizer is fitted in this process, or by Ray Train workers that each read their own part of the items; then shards
of items are encoded on Ray Data, and collisions are resolved here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.data import Work, parallel_map
from cluster.progress import WORKER_LOG
from cluster.resources import data_device
from cluster.session import configure_process
from cluster.stages.plan import Plan, StageRun
from cluster.train import REFUSED, RayCheckpoints, train_on_ray
from genrec.config import Config, Sid
from genrec.errors import dropping_what_is_refused

if TYPE_CHECKING:
    from torch import Tensor

GIVEN = {"quantizer", "column", "levels", "codebook_size", "collisions"}
"""Settings that count where semantic IDs are taken from a column of the item table."""


NAMED = {"quantizer", "levels", "codebook_size", "text_weight", "cf_weight", "cf_dims", "cf_window"}
"""Settings that count where codes are names; the item vectors are kept for what else uses them."""


def plan(run: StageRun) -> Plan:
    """A semantic ID for every item: by a quantizer of its vector, from its names, or as published."""
    config, data, vectors = run.config, run.path("prepare"), run.path_or_none("embed")
    if vectors is None:
        settings = config.sid.model_dump(mode="json", include=GIVEN)
        return Plan(settings, partial(_take, config, data))
    if config.sid.is_readable:
        settings = {**config.sid.model_dump(mode="json", include=NAMED), "seed": config.seed}
        return Plan(settings, partial(_name, config, data, vectors))
    settings = {**config.sid.stage_settings(), "seed": config.seed}
    return Plan(settings, partial(_quantize, config, data, vectors))


def require_data(config: Config, data: Path) -> None:
    """Refuse items that the quantizer cannot give semantic IDs, before they are embedded.

    Raises:
        InputError: too few or too many of them, or none with the names that a readable quantizer needs.
    """
    from genrec.data.readers import count_items, read_items
    from genrec.sid.fit import require_items
    from genrec.sid.readable import SidNames

    if config.sid.is_readable:
        SidNames.learn(read_items(data), config.sid)
    elif config.sid.quantizer != "given":
        require_items(count_items(data), config.sid)


def _take(config: Config, data: Path, out: Path) -> Mapping[str, Any]:
    from genrec.sid.build import finish_published

    return finish_published(data, out, config.sid)


def _name(config: Config, data: Path, vectors: Path, out: Path) -> Mapping[str, Any]:
    from genrec.sid.build import finish_readable

    return finish_readable(data, vectors, out, config.sid, seed=config.seed, threads=config.compute.threads)


def _quantize(config: Config, data: Path, vectors: Path, out: Path) -> Mapping[str, Any]:
    from genrec.data.shards import missing_shards
    from genrec.sid.build import finish_quantized, make_assigner

    items = fit(config, data, vectors, out)
    sid, compute = config.sid, config.compute
    make = partial(make_assigner, vectors, out, sid, compute.data_threads)
    parallel_map(config, make, missing_shards([out / "codes"], items, sid.shard_items), label="encode vectors")
    return finish_quantized(data, vectors, out, sid, compute.threads)


class RayProcessGroup(RayCheckpoints):
    """The workers of a Ray Train run, seen from one of them (``ProcessGroup`` protocol): gloo, or NCCL on GPUs.

    Checkpoints are Ray Train's, so a worker that died and a command that is run again both go on from the newest.
    """

    def __init__(self, config: Config) -> None:
        import ray.train
        from ray.train.torch import get_device

        super().__init__(f"{config.storage} (the quantizer's checkpoints)")
        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.device = str(get_device()) if config.compute.worker_gpus > 0 else "cpu"

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every worker's tensor, on the tensor's own device."""
        import torch.distributed

        total = values.detach().to(self.device, copy=True)
        if self.size > 1:
            torch.distributed.all_reduce(total)
        return total.to(values.device)


def fit(config: Config, data: Path, vectors: Path, out: Path) -> int:
    """Fit ``sid.quantizer`` and save it under ``out``, on ``sid.fit_workers`` workers, or here with 0; returns N.

    The workers see ``vectors`` and ``out`` by the same paths. A killed run goes on where it was.

    Raises:
        InputError: vectors or settings that make no SIDs, or a machine too small for the workers.
    """
    from genrec.sid.fit import is_fitted, prepare_fit

    sid, seed, compute = config.sid, config.seed, config.compute
    if sid.fit_workers == 0:
        device = data_device(config)
        make = partial(_make_fit, data, vectors, out, sid, seed, compute.threads, device)
        if device == "cpu":
            return int(make()(0)["items"])
        # On the card that Ray gives to an actor, where there are actors.
        return int(parallel_map(config, make, [0], label="fit the quantizer")[0]["items"])
    items = prepare_fit(data, vectors, out, sid, seed)
    if not is_fitted(out):
        with dropping_what_is_refused(partial(_drop, out, "train", "cf", REFUSED, WORKER_LOG)):
            train_on_ray(partial(_share, config, vectors, out), config, out, "fit", sid.fit_workers)
    _drop(out, "train")
    return items


def _make_fit(
    data: Path, vectors: Path, out: Path, sid: Sid, seed: int, threads: int, device: Literal["cpu", "cuda"]
) -> Work:
    """The whole fit as the work of one shard."""
    from genrec.sid.fit import fit_quantizer

    def work(shard: int) -> dict[str, int]:
        return {"items": fit_quantizer(data, vectors, out, sid, seed=seed, threads=threads, device=device)}

    return work


def _drop(out: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).unlink(missing_ok=True)


def _share(config: Config, vectors: Path, out: Path) -> None:
    """What every worker runs; the first of them writes ``out/quantizer``."""
    configure_process(config)
    from genrec.sid.fit import fit_share

    fit_share(vectors, out, config.sid, RayProcessGroup(config), seed=config.seed, threads=config.compute.threads)
