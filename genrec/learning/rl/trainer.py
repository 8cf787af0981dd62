"""A run of reinforcement learning: the loop around the learner, validation, checkpoints and progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from genrec.config import Rl
from genrec.learning.checkpoints import Checkpoints, TrainingState
from genrec.learning.rl.guard import Guard, SnapshotValidator
from genrec.learning.rl.learner import GrpoLearner
from genrec.learning.rl.loop import Callback, no_callback, train_async
from genrec.progress import Progress, log_progress
from genrec.types import Query, Rollouts

LOG = logging.getLogger(__name__)

OnValidation = Callable[[TrainingState, int, Mapping[str, Tensor]], None]
"""Told of a validated version after the checkpoint that has it: the run so far, the version, metrics per query (Q,)."""

REPORT_EVERY = 10
"""Updates between two lines of progress, besides those at validations."""


class GrpoTrainer:
    """Trains a policy and keeps the version with the best ``guard.goal`` on validation; version 0 is the SFT policy.

    When the guard finds a version significantly worse than version 0, the run stops and rolls back to the best version
    so far, which may be version 0.
    """

    def __init__(
        self,
        learner: GrpoLearner,
        rollouts: Rollouts,
        queries: Callable[[int], Sequence[Query]],
        *,
        settings: Rl,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        validator: SnapshotValidator,
        callback: Callback = no_callback,
        on_validation: OnValidation | None = None,
    ) -> None:
        self._learner, self._rollouts, self._queries = learner, rollouts, queries
        self._settings, self._accelerator = settings, accelerator
        self._checkpoints, self._callback, self._on_validation = checkpoints, callback, on_validation
        self.state = TrainingState()
        self._guard = Guard(validator, settings, self.state)

    def run(self) -> TrainingState:
        """Run to the last step or until the guard stops it; resumes from the latest checkpoint."""
        self._resume()
        if self.state.stopped:
            return self.state
        self._tell()
        started, first = time.monotonic(), self.state.step
        steps, staleness = self._settings.steps, self._settings.max_staleness
        for record in train_async(self._learner, self._rollouts, self._queries, steps=steps, max_staleness=staleness):
            self.state.step = self._learner.version
            self.state.curve.append(record)
            validates = self._is_validation_step()
            if validates or self.state.step % self._settings.checkpoint_every == 0:
                self._collect_validation()
                if validates and not self.state.stopped:
                    self._guard.submit(self._learner.ema_snapshot())
                self._save()
                self._tell()
            shown = {**record, **self._callback(record)}
            if validates or self.state.step % REPORT_EVERY == 0:
                self._report(shown, (time.monotonic() - started) / max(1, self.state.step - first))
            if self.state.stopped:
                break
        if self._collect_validation():
            self._save()
            self._tell()
        return self.state

    def _resume(self) -> None:
        with self._checkpoints.latest() as directory:
            if directory is not None:
                self._learner.read(directory, self.state)
                self._guard.read(directory)
        if not self.state.curve:
            self.state.curve.append({"step": 0.0})
        if self._is_validation_step() and not self._guard.is_validated(self.state.step):
            self._guard.submit(self._learner.ema_snapshot())

    def _is_validation_step(self) -> bool:
        return self.state.step % self._settings.eval_every == 0 or self.state.step == self._settings.steps

    def _collect_validation(self) -> bool:
        """Wait for the metrics of the version being validated; False if there is none."""
        if not self._guard.collect():
            return False
        validated = [record for record in self.state.curve if "ndcg@10" in record][-1]
        self._callback({name: validated[name] for name in ("step", *self._guard.shown) if name in validated})
        if self._accelerator.is_main_process:
            shown = "  ".join(f"{name} {validated[name]:.4f}" for name in self._guard.shown if name in validated)
            LOG.info("version %d validated  %s", validated["step"], shown)
        return True

    def _tell(self) -> None:
        for version, values in self._guard.take_validated():
            if self._on_validation is not None:
                self._on_validation(self.state, version, values)

    def _save(self) -> None:
        if self.state.stopped:
            self._learner.policy.adopt(self.state.best)
        metrics = {"step": self.state.step, self._guard.goal: self.state.best_score}
        self._checkpoints.save(self._write, metrics)

    def _write(self, directory: Path) -> None:
        self._learner.write(directory, self.state)
        self._guard.write(directory)

    def _report(self, record: dict[str, float], step_s: float) -> None:
        if not self._accelerator.is_main_process:
            return
        left = step_s * (self._settings.steps - self.state.step)
        names = ("reward", "zero_advantage_groups", "kl", "staleness", "rollouts_per_s", *self._guard.shown)
        shown = {name: record[name] for name in names if name in record}
        log_progress(LOG, Progress("step", self.state.step, self._settings.steps, left, shown))
