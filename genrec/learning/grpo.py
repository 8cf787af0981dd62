"""The run of reinforcement learning around the learner, with its guard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator

from genrec.config import Grpo
from genrec.learning.checkpoints import Checkpoints, TrainingState
from genrec.learning.learner import GrpoLearner
from genrec.learning.loop import improve
from genrec.learning.sft import Validate
from genrec.types import Query, Rollouts


class GrpoRun:
    """Improves a policy and keeps its best version by validation; the SFT policy is version 0.

    The guard: when validation NDCG@10 or HR@50 falls below the SFT policy's by more than ``guard_drop`` (relative),
    the run stops. What comes back is always the best version whose HR@50 is not below that line, be it version 0.
    """

    def __init__(
        self,
        learner: GrpoLearner,
        rollouts: Rollouts,
        queries: Callable[[int], Sequence[Query]],
        *,
        settings: Grpo,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        validate: Validate,
    ) -> None:
        self._learner, self._rollouts, self._queries = learner, rollouts, queries
        self._settings, self._accelerator = settings, accelerator
        self._checkpoints, self._validate = checkpoints, validate
        self.state = TrainingState()

    def run(self) -> TrainingState:
        """Run to the last step or until the guard stops it; resumes from the latest checkpoint."""
        self._resume()
        if self.state.stopped:
            return self.state
        started, first = time.monotonic(), self.state.step
        if not self.state.curve:
            self._check({"step": 0.0})
        steps, staleness = self._settings.steps, self._settings.max_staleness
        for record in improve(self._learner, self._rollouts, self._queries, steps=steps, max_staleness=staleness):
            self.state.step = self._learner.version
            checked = self.state.step % self._settings.eval_every == 0 or self.state.step == steps
            if checked:
                self._check(record)
            else:
                self.state.curve.append(record)
            if checked or self.state.step % 10 == 0:
                self._say(record, (time.monotonic() - started) / (self.state.step - first))
            if checked or self.state.step % self._settings.checkpoint_every == 0:
                self._save()
            if self.state.stopped:
                break
        return self.state

    def _resume(self) -> None:
        with self._checkpoints.latest() as directory:
            if directory is not None:
                self.state.read(self._learner.policy, self._learner.optimizer, directory)
                self._learner.read(directory)
                self._learner.version = self.state.step

    def _check(self, record: dict[str, float]) -> None:
        self._learner.policy.eval()
        metrics = self._validate(self._learner.policy)
        record |= metrics
        self.state.curve.append(record)
        first = self.state.curve[0]
        floor = 1 - self._settings.guard_drop
        fallen = [name for name in ("ndcg@10", "hr@50") if metrics[name] < floor * first[name]]
        if fallen:
            self.state.stopped = f"validation {fallen[0]} fell below the SFT policy's by more than the guard allows"
        elif metrics["ndcg@10"] > self.state.best_score:
            self.state.best_score = metrics["ndcg@10"]
            self.state.best = dict(self._learner.snapshot().tensors)
            self.state.best_step = self.state.step

    def _save(self) -> None:
        metrics = {"step": self.state.step, "ndcg@10": self.state.best_score}
        self._checkpoints.save(self._write, metrics)

    def _write(self, directory: Path) -> None:
        self.state.write(self._learner.policy, self._learner.optimizer, directory)
        self._learner.write(directory)

    def _say(self, record: dict[str, float], step_s: float) -> None:
        if not self._accelerator.is_main_process:
            return
        left = step_s * (self._settings.steps - self.state.step)
        names = ("reward", "dead_groups", "kl", "ndcg@10", "hr@50")
        shown = "  ".join(f"{name} {record[name]:.4f}" for name in names if name in record)
        print(f"[grpo] step {self.state.step}/{self._settings.steps}  {shown}  about {left:.0f} s left", flush=True)
