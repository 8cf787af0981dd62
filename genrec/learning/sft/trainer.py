"""Supervised fine-tuning on next-item prediction, one loop for one worker or many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from genrec.config import Sft
from genrec.learning.checkpoints import Checkpoints, TrainingState
from genrec.learning.divergence import require_finite
from genrec.learning.ema import WeightAverage
from genrec.learning.schedule import learning_rate, total_steps
from genrec.learning.sft.batches import TrainingBatches
from genrec.learning.sft.second_pass import RecordingLoss, SampleLoss
from genrec.learning.sft.strategies import DdpStrategy, Strategy, ZeroStrategy
from genrec.policy.model import Policy
from genrec.policy.sid_embeddings import EmbeddingUpdateCheck
from genrec.progress import Progress, log_progress
from genrec.seeds import seed_of

LOG = logging.getLogger(__name__)

Validate = Callable[[Policy], dict[str, float]]
"""Metrics of a policy on validation queries, equal on every worker; "ndcg@10" decides which version is best."""

REPORT_EVERY = 10
"""Steps between two points of the curve, besides those at validations."""


class SftTrainer:
    """Trains ``policy`` in place and keeps the tensors with the best validation NDCG@10.

    The state at a step boundary is a pure function of the settings and the seed, dropout included, so a run that was
    killed and resumed ends with the same weights as one that was not.

    Args:
        validate: None keeps the version after the last step.
        last_step: where to stop; 0 goes to the end of the schedule.
        deepspeed: DeepSpeed's config for ZeRO; None trains with DDP, or alone.
        section: of the config that ``settings`` are from, for messages.
    """

    def __init__(
        self,
        policy: Policy,
        loss: SampleLoss,
        epochs: TrainingBatches,
        settings: Sft,
        *,
        seed: int,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        validate: Validate | None,
        last_step: int = 0,
        deepspeed: Mapping[str, Any] | None = None,
        section: str = "learning.sft",
    ) -> None:
        self._settings, self._seed, self._deepspeed, self._section = settings, seed, deepspeed, section
        self._loss, self._epochs = loss, epochs
        self._accelerator, self._checkpoints, self._validate = accelerator, checkpoints, validate
        self._policy = policy.to(accelerator.device)
        self._sid_check = EmbeddingUpdateCheck(policy)
        self._average: WeightAverage | None = None
        self.state = TrainingState()
        self.total_steps = total_steps(settings, epochs.steps)
        self._last_step = min(last_step or self.total_steps, self.total_steps)

    def run(self) -> TrainingState:
        """Train to the last step or until validation stops improving; resumes from the latest checkpoint.

        Raises:
            InputError: no SID embedding changed, or a loss or gradient that is not finite.
        """
        self._resume()
        started, first = time.monotonic(), self.state.step
        while self.state.step < self._last_step and not self.state.stopped:
            record = self._step(self.state.step)
            self.state.step += 1
            validates = self._is_validation_step(self.state.step)
            if validates:
                record |= self._validated()
            if validates or self.state.step % REPORT_EVERY == 0:
                self.state.curve.append(record)
                self._report(record, (time.monotonic() - started) / (self.state.step - first))
            if validates or self.state.step % self._settings.checkpoint_every == 0:
                self._save()
        self._sid_check.require_changed(
            self.state.best,
            f"raise {self._section}.lr={self._settings.lr:g} or train longer than {self.state.step} steps",
        )
        return self.state

    def close(self) -> None:
        """Unwrap the policy, so that another trainer can wrap it."""
        self._strategy.close()

    def _resume(self) -> None:
        """Load the newest checkpoint: its tensors before the policy is wrapped (perhaps sharded), its moments after."""
        moments: dict[str, Tensor] = {}
        with self._checkpoints.latest() as directory:
            if directory is not None:
                tensors, moments = self.state.read(directory)
                self._policy.adopt(tensors)
            if self._settings.ema_decay:
                start = {name: weight.detach() for name, weight in self._policy.trainable().items()}
                self._average = WeightAverage(start, self._settings.ema_decay)
                if directory is not None:
                    self._average.read(directory)
            if self._epochs.hard is not None and directory is not None:
                self._epochs.hard.read(directory)
        groups = parameter_groups(self._policy, self._settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self._settings.lr, betas=(0.9, 0.98), fused=True)
        clip = self._settings.clip
        self._strategy: Strategy = (
            DdpStrategy(self._policy, optimizer, self._accelerator, clip)
            if self._deepspeed is None
            else ZeroStrategy(self._policy, optimizer, self._deepspeed, clip)
        )
        if moments:
            self._strategy.restore(moments, self.state.step)

    def _step(self, step: int) -> dict[str, float]:
        """One update on the batch of ``step``: loss = Σ_workers Σ_pieces loss(piece) / targets of the batch."""
        rate = learning_rate(
            step,
            self.total_steps,
            peak=self._settings.lr,
            low=self._settings.min_lr,
            warmup=self._settings.warmup,
        )
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        torch.manual_seed(seed_of("dropout", self._seed, step, rank))
        pieces, targets = self._epochs.micro_batches(step, self._settings.micro_batch, rank, world)
        count = self._epochs.count(step)
        weights = [world / targets if rank < count else 0.0] * len(pieces)
        if self._strategy.lockstep:  # a worker with fewer pieces repeats its first one with weight 0
            most = -(-count // world)
            missing = -(-most // self._settings.micro_batch) - len(pieces)
            pieces, weights = pieces + pieces[:1] * missing, weights + [0.0] * missing
        total = torch.zeros((), device=self._accelerator.device)
        recording = RecordingLoss(self._loss) if self._epochs.is_recorded(step) else None
        for index, (piece, weight) in enumerate(zip(pieces, weights, strict=True)):
            last = index == len(pieces) - 1
            total += self._strategy.add(recording or self._loss, piece, weight, last=last) * weight / world
        loss = float(self._sum_of_workers(total))
        self._require_finite(step, loss=loss)
        if recording is not None:
            self._epochs.record(step, recording.pieces, rank, world, self._sum_of_workers)
        self._require_finite(step, gradient_norm=self._strategy.step(rate))
        if self._average is not None:
            self._average.update(self._policy.trainable(), step)
        return {"step": step + 1, "loss": loss, "lr": rate}

    def _sum_of_workers(self, values: Tensor) -> Tensor:
        gathered: Any = self._accelerator.reduce(values, "sum")
        return gathered

    def _require_finite(self, step: int, **figures: float) -> None:
        settings, section = self._settings, self._section
        remedy = f"lower {section}.lr={settings.lr:g} or learning.sft.clip={settings.clip:g}"
        require_finite(step + 1, self._epochs.names(step), remedy, **figures)

    def _is_validation_step(self, step: int) -> bool:
        every = self._settings.eval_steps or self._settings.eval_every * self._epochs.steps
        return step == self._last_step or (self._validate is not None and step % every == 0)

    def _validated(self) -> dict[str, float]:
        """Validate the policy, or the average of its weights, and update the best version; returns the metrics."""
        self._policy.eval()
        averaged = {} if self._average is None else self._average.tensors
        with self._strategy.gathered(), self._policy.using(averaged):
            metrics = {} if self._validate is None else self._validate(self._policy)
            tensors = dict(self._policy.snapshot(self.state.step).tensors)
        if not metrics:
            self.state.best, self.state.best_step = tensors, self.state.step
        elif metrics["ndcg@10"] > self.state.best_score:
            self.state.best_score = metrics["ndcg@10"]
            self.state.best = tensors
            self.state.best_step = self.state.step
            self.state.checks_since_best = 0
        else:
            self.state.checks_since_best += 1
            if self.state.checks_since_best >= self._settings.patience:
                self.state.stopped = f"no better validation NDCG@10 in {self._settings.patience} checks"
        return {"epoch": self.state.step / self._epochs.steps, **metrics}

    def _save(self) -> None:
        metrics = {"step": self.state.step, "ndcg@10": self.state.best_score}
        with self._strategy.gathered():
            tensors = self._policy.snapshot(self.state.step).tensors
        moments = self._strategy.moments()

        def write(path: Path) -> None:
            self.state.write(tensors, moments, path)
            for part in (self._average, self._epochs.hard):
                if part is not None:
                    part.write(path)

        self._checkpoints.save(write, metrics)

    def _report(self, record: dict[str, float], step_s: float) -> None:
        if not self._accelerator.is_main_process:
            return
        left = step_s * (self._last_step - self.state.step)
        shown = {name: record[name] for name in ("loss", "ndcg@10", "hr@10") if name in record}
        log_progress(LOG, Progress("step", self.state.step, self._last_step, left, shown))


def parameter_groups(policy: Policy, decay: float) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer: weight decay on matrices only (Loshchilov & Hutter 2019); no group is empty."""
    parameters = list(policy.trainable().values())
    matrices, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
