"""The training loop of an RQ-VAE whose batches several workers share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genrec.config import Sid
from genrec.sid.distributed.collectives import CheckpointTimer, ProcessGroup, share, sum_all
from genrec.sid.distributed.vector_stream import Stream, VectorBatch
from genrec.sid.quantizers.autoencoder import RESTART_UNTIL, Codebook, Losses, make_optimizer
from genrec.sid.vectors import Floats

LOG = logging.getLogger(__name__)


class ParallelTraining:
    """Data-parallel training: each step adds up gradients and code counts over the workers' parts of one batch.

    A part's losses are weighted by its share of the batch, so the sum of the gradients is the gradient of the whole
    batch, and EMA codebooks see the whole batch's counts and sums. Batches and restarts are functions of the seed and
    the epoch alone. All workers hold the same network and codebooks; checkpoints fall between epochs.

    Args:
        losses: error, commitment, and per level the residuals and the codes that they chose, of vectors (b, D).
        prepare: vectors to what the network takes, on the workers' device.
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
        workers: ProcessGroup,
    ) -> None:
        self._net, self._books, self._losses, self._prepare = net, books, losses, prepare
        self._settings, self._seed, self._stream, self._workers = settings, seed, stream, workers
        steps = settings.epochs * stream.steps(settings.batch_size)
        self._optimizer, self._schedule = make_optimizer(net, books, settings.lr, steps)
        self._parameters: list[Tensor] = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._epoch, self._restarted, self._totals_2 = 0, 0, torch.zeros(2)

    def run(self) -> dict[str, float]:
        """Train for ``sid.epochs``, going on from a checkpoint; the last epoch's losses and the codes restarted."""
        with torch.no_grad():
            for value in [*self._net.parameters(), *(v for book in self._books for v in book.state().values())]:
                value.copy_(share(self._workers, value))
        with self._workers.latest() as directory:
            if directory is not None:
                self._read(directory / "rqvae.pt")
        pace, epochs = CheckpointTimer(self._workers), self._settings.epochs
        while self._epoch < epochs:
            totals_2, last = torch.zeros(2), None
            for batch in self._stream.batches(self._settings.batch_size, self._epoch):
                losses_2, residuals = self._step(batch)
                totals_2 += losses_2.cpu() * batch.size / len(self._stream)
                last = batch, residuals
            if last is not None and self._epoch < RESTART_UNTIL * epochs:
                self._restarted += self._restart(*last)
            self._epoch, self._totals_2 = self._epoch + 1, totals_2
            if pace.due():
                if self._workers.rank == 0:
                    LOG.info("epoch %d of %d, error %.5g", self._epoch, epochs, totals_2[0])
                self._workers.save(self._write, {"epoch": self._epoch})
        error, commitment = self._totals_2.tolist()
        return {"error": error, "commitment": commitment, "restarted_codes": float(self._restarted)}

    def _step(self, batch: VectorBatch) -> tuple[Tensor, list[Tensor]]:
        """One optimizer step; returns the whole batch's two losses, and this worker's residuals per level."""
        self._optimizer.zero_grad(set_to_none=True)
        error, commitment, residuals, codes = self._losses(self._prepare(batch.rows_BD))
        weight = len(batch.rows_BD) / batch.size
        if weight:
            ((error + commitment) * weight).backward()
        losses_2 = torch.stack([error, commitment]).detach()
        losses_2 = losses_2 * weight if weight else torch.zeros_like(losses_2)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        tallies = [book.tally(left, code) for book, left, code in zip(self._books, residuals, codes, strict=True)]
        summed = sum_all(self._workers, [losses_2, *grads, *(part for tally in tallies for part in tally)])
        for parameter, grad in zip(self._parameters, summed[1:], strict=False):
            parameter.grad = grad
        self._optimizer.step()
        self._schedule.step()
        counted = summed[1 + len(grads) :]
        for level, book in enumerate(self._books):
            book.absorb(counted[2 * level], counted[2 * level + 1])
        return summed[0], residuals

    def _restart(self, batch: VectorBatch, residuals: list[Tensor]) -> int:
        """Put codes that no item chose onto residuals of the last whole batch; returns how many."""
        generator = torch.Generator().manual_seed(self._seed + 7919 * self._epoch)
        restarted = 0
        for book, left_bd in zip(self._books, residuals, strict=True):
            if not book.has_dead:
                book.used_K.zero_()
                continue
            left_Bd = left_bd.new_zeros(batch.size, left_bd.shape[1])
            left_Bd[torch.from_numpy(batch.place_B).to(left_bd.device)] = left_bd
            restarted += book.restart_dead(self._workers.sum(left_Bd), generator)
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
        state = torch.load(file, weights_only=True, map_location=self._workers.device)
        self._net.load_state_dict(state["net"])
        for book, tensors in zip(self._books, state["books"], strict=True):
            for name, value in book.state().items():
                value.copy_(tensors[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._epoch, self._restarted, self._totals_2 = state["epoch"], state["restarted"], state["totals"].cpu()
