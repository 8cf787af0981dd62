"""Supervised fine-tuning on next-item prediction, one loop for one worker or many."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator

from genrec.config import Sft
from genrec.learning.batches import Epochs
from genrec.learning.checkpoints import Checkpoints, TrainingState
from genrec.learning.losses import SftLoss
from genrec.learning.schedule import learning_rate
from genrec.policy.model import Policy
from genrec.policy.rows import RowWatch

Validate = Callable[[Policy], dict[str, float]]
"""Metrics of a policy on validation queries, the same number on every worker; "ndcg@10" decides what is best."""


class SftRun:
    """Trains ``policy`` in place and keeps the tensors of its best validation NDCG@10.

    The state at a step boundary is a pure function of the settings and the seed, dropout included, so a run that was
    killed and resumed ends with the same weights as one that was not.
    """

    def __init__(
        self,
        policy: Policy,
        loss: SftLoss,
        epochs: Epochs,
        settings: Sft,
        *,
        seed: int,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        validate: Validate,
    ) -> None:
        self._settings, self._seed = settings, seed
        self._loss, self._epochs = loss, epochs
        self._accelerator, self._checkpoints, self._validate = accelerator, checkpoints, validate
        self._policy = policy.to(accelerator.device)
        self._watch = RowWatch(policy)
        optimizer = torch.optim.AdamW(
            parameter_groups(policy, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98), fused=True
        )
        wrapped: Any = accelerator.prepare(policy, optimizer)
        self._wrapped, self._optimizer = wrapped
        self.state = TrainingState()
        total = settings.epochs * epochs.steps
        self.total_steps = min(total, settings.max_steps) if settings.max_steps else total

    def run(self) -> TrainingState:
        """Train to the last step or until validation stops improving; resumes from the latest checkpoint.

        Raises:
            InputError: no SID row learned.
        """
        with self._checkpoints.latest() as directory:
            if directory is not None:
                self.state.read(self._policy, self._optimizer, directory)
        started, first = time.monotonic(), self.state.step
        while self.state.step < self.total_steps and not self.state.stopped:
            record = self._step(self.state.step)
            self.state.step += 1
            if self._is_check(self.state.step):
                record |= self._check()
            if len(record) > 3 or self.state.step % 10 == 0:
                self.state.curve.append(record)
                self._say(record, (time.monotonic() - started) / (self.state.step - first))
            if self._is_check(self.state.step) or self.state.step % self._settings.checkpoint_every == 0:
                self._save()
        self._watch.require_moved(
            self.state.best,
            f"raise learning.sft.lr={self._settings.lr:g} or train longer than {self.state.step} steps",
        )
        return self.state

    def _step(self, step: int) -> dict[str, float]:
        rate = learning_rate(
            step,
            self.total_steps,
            peak=self._settings.lr,
            low=self._settings.min_lr,
            warmup=self._settings.warmup,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        torch.manual_seed((self._seed * 1_000_003 + step) * 1_009 + rank)
        pieces, targets = self._epochs.micro_batches(step, self._settings.micro_batch, rank, world)
        self._wrapped.train()
        total = torch.zeros((), device=self._accelerator.device)
        for index, piece in enumerate(pieces):
            accumulating = index < len(pieces) - 1
            with self._accelerator.no_sync(self._wrapped) if accumulating else nullcontext():
                loss = self._wrapped("call", self._loss, piece)
                self._accelerator.backward(loss * (world / targets))
            total += loss.detach()
        self._accelerator.clip_grad_norm_(self._wrapped.parameters(), self._settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        whole: Any = self._accelerator.reduce(total, "sum")
        return {"step": step + 1, "loss": float(whole) / targets, "lr": rate}

    def _is_check(self, step: int) -> bool:
        every = self._settings.eval_every * self._epochs.steps
        return step % every == 0 or step == self.total_steps

    def _check(self) -> dict[str, float]:
        self._policy.eval()
        metrics = self._validate(self._policy)
        if metrics["ndcg@10"] > self.state.best_score:
            self.state.best_score = metrics["ndcg@10"]
            self.state.best = dict(self._policy.snapshot(self.state.step).tensors)
            self.state.best_step = self.state.step
            self.state.checks_since_best = 0
        else:
            self.state.checks_since_best += 1
            if self.state.checks_since_best >= self._settings.patience:
                self.state.stopped = f"no better validation NDCG@10 in {self._settings.patience} checks"
        return {"epoch": self.state.step / self._epochs.steps, **metrics}

    def _save(self) -> None:
        metrics = {"step": self.state.step, "ndcg@10": self.state.best_score}
        self._checkpoints.save(lambda path: self.state.write(self._policy, self._optimizer, path), metrics)

    def _say(self, record: dict[str, float], step_s: float) -> None:
        if not self._accelerator.is_main_process:
            return
        left = step_s * (self.total_steps - self.state.step)
        shown = "  ".join(f"{name} {record[name]:.4f}" for name in ("loss", "ndcg@10", "hr@10") if name in record)
        print(f"[sft] step {self.state.step}/{self.total_steps}  {shown}  about {left:.0f} s left", flush=True)


def parameter_groups(policy: Policy, decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only (Loshchilov & Hutter 2019)."""
    parameters = list(policy.trainable().values())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
