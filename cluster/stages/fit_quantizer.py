"""Fitting a quantizer: in this process, or by Ray Train workers that each read their own part of the items."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.progress import FILE
from cluster.session import prepare_environment
from cluster.train import REFUSED, RayCheckpoints, train
from genrec.config import Config
from genrec.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class RayProcessGroup(RayCheckpoints):
    """The workers of a Ray Train run, seen from one of them (``ProcessGroup`` protocol): gloo, or NCCL where they have GPUs.

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
    from genrec.sid.fit import fit_quantizer, is_fitted, prepare_fit

    sid, seed, compute = config.sid, config.seed, config.compute
    if sid.fit_workers == 0:
        return fit_quantizer(data, vectors, out, sid, seed=seed, threads=compute.threads, device=compute.device)
    items = prepare_fit(data, vectors, out, sid, seed)
    if not is_fitted(out):
        try:
            train(partial(_share, config, vectors, out), config, out, name="fit", workers=sid.fit_workers)
        except InputError:
            _drop(out, "train", "cf", REFUSED, FILE)
            raise
    _drop(out, "train")
    return items


def _drop(out: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).unlink(missing_ok=True)


def _share(config: Config, vectors: Path, out: Path) -> None:
    """What every worker runs; the first of them writes ``out/quantizer``."""
    prepare_environment(config)
    from genrec.sid.fit import fit_share

    fit_share(vectors, out, config.sid, RayProcessGroup(config), seed=config.seed, threads=config.compute.threads)
