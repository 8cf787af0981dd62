"""Data-parallel training of an RQ-VAE."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genrec.config import Sid
from genrec.seeds import seed_of
from genrec.sid.distributed.collectives import CheckpointTimer, ProcessGroup, broadcast, sum_all
from genrec.sid.distributed.vector_stream import Stream, VectorBatch
from genrec.sid.quantizers.autoencoder import RESTART_UNTIL, Codebook, Losses, make_optimizer, require_finite_error
from genrec.sid.vectors import Floats

LOG = logging.getLogger(__name__)


class ParallelTraining:
    """Data-parallel training: each step sums gradients and code counts over the ranks' parts of one batch.

    A part of b of the batch's B vectors has the loss b / B · (error + commitment), so the sum of the gradients is the
    gradient of the whole batch, and EMA codebooks are updated with the whole batch's counts and sums. Batches and
    restarts are functions of the seed and the epoch alone. All ranks hold the same network and codebooks; checkpoints
    are saved between epochs.

    Args:
        losses: of inputs (b, D): error, commitment, and per level the residuals (b, d) and their codes (b,).
        prepare: vectors (b, D) to the network's inputs, on the group's device.
    """

    def __init__(
        self,
        net: nn.Module,
        books: Sequence[Codebook],
        losses: Callable[[Tensor], Losses],
        prepare: Callable[[Floats], Tensor],
        *,
        settings: Sid,
        seed: int,
        stream: Stream,
        group: ProcessGroup,
    ) -> None:
        self._net, self._books, self._losses, self._prepare = net, books, losses, prepare
        self._settings, self._seed, self._stream, self._group = settings, seed, stream, group
        steps = settings.epochs * stream.steps(settings.batch_size)
        self._optimizer, self._schedule = make_optimizer(net, books, settings.lr, steps)
        self._parameters: list[Tensor] = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._epoch, self._restarted, self._totals_2 = 0, 0, torch.zeros(2)

    def run(self) -> dict[str, float]:
        """Train for ``sid.epochs``, from the newest checkpoint if any; returns the last losses and the restarts."""
        with torch.no_grad():
            for value in [*self._net.parameters(), *(v for book in self._books for v in book.state().values())]:
                value.copy_(broadcast(self._group, value))
        with self._group.latest() as directory:
            if directory is not None:
                self._read(directory / "rqvae.pt")
        timer, epochs = CheckpointTimer(self._group), self._settings.epochs
        while self._epoch < epochs:
            totals_2, last = torch.zeros(2), None
            for batch in self._stream.batches(self._settings.batch_size, self._epoch):
                losses_2, residuals = self._step(batch)
                totals_2 += losses_2.cpu() * batch.size / len(self._stream)
                last = batch, residuals
            require_finite_error(self._epoch + 1, totals_2, self._settings.lr)
            if last is not None and self._epoch < RESTART_UNTIL * epochs:
                self._restarted += self._restart(*last)
            self._epoch, self._totals_2 = self._epoch + 1, totals_2
            if timer.due():
                if self._group.rank == 0:
                    LOG.info("epoch %d of %d, error %.5g", self._epoch, epochs, totals_2[0])
                self._group.save(self._write, {"epoch": self._epoch})
        error, commitment = self._totals_2.tolist()
        return {"error": error, "commitment": commitment, "restarted_codes": float(self._restarted)}

    def _step(self, batch: VectorBatch) -> tuple[Tensor, list[Tensor]]:
        """One optimizer step; returns the whole batch's losses (2,), and this rank's residuals (b, d) per level."""
        self._optimizer.zero_grad(set_to_none=True)
        error, commitment, residuals, codes = self._losses(self._prepare(batch.rows_BD))
        weight = len(batch.rows_BD) / batch.size
        if weight:
            ((error + commitment) * weight).backward()
        losses_2 = torch.stack([error, commitment]).detach()
        losses_2 = losses_2 * weight if weight else torch.zeros_like(losses_2)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        levels = zip(self._books, residuals, codes, strict=True)
        statistics = [part for book, residual_bd, code_b in levels for part in book.statistics(residual_bd, code_b)]
        summed = sum_all(self._group, [losses_2, *grads, *statistics])
        for parameter, grad in zip(self._parameters, summed[1:], strict=False):
            parameter.grad = grad
        self._optimizer.step()
        self._schedule.step()
        counted = summed[1 + len(grads) :]
        for level, book in enumerate(self._books):
            book.apply(counted[2 * level], counted[2 * level + 1])
        return summed[0], residuals

    def _restart(self, batch: VectorBatch, residuals: list[Tensor]) -> int:
        """Move unused codes to residuals of the last whole batch; returns how many."""
        generator = torch.Generator().manual_seed(seed_of("restarts", self._seed, self._epoch))
        restarted = 0
        for book, residual_bd in zip(self._books, residuals, strict=True):
            if not book.has_dead:
                book.used_K.zero_()
                continue
            residual_Bd = residual_bd.new_zeros(batch.size, residual_bd.shape[1])
            residual_Bd[torch.from_numpy(batch.index_B).to(residual_bd.device)] = residual_bd
            restarted += book.restart_dead(self._group.sum(residual_Bd), generator)
        return restarted

    def _write(self, path: Path) -> None:
        state: dict[str, Any] = {
            "net": self._net.state_dict(),
            "books": [book.state() for book in self._books],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "epoch": self._epoch,
            "restarted": self._restarted,
            "totals": self._totals_2,
        }
        torch.save(state, path / "rqvae.pt")

    def _read(self, file: Path) -> None:
        state = torch.load(file, weights_only=True, map_location=self._group.device)
        self._net.load_state_dict(state["net"])
        for book, tensors in zip(self._books, state["books"], strict=True):
            for name, value in book.state().items():
                value.copy_(tensors[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._epoch, self._restarted, self._totals_2 = state["epoch"], state["restarted"], state["totals"].cpu()
