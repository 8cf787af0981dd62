"""The guard of reinforcement learning: keeps the best version, and stops a run whose policy gets worse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.config import Rl
from genrec.learning.checkpoints import TrainingState
from genrec.types import Snapshot

GUARDED = ("ndcg@10", "hr@50", "tail_hr@50")
"""Validation metrics that may not drop significantly below those of version 0, unless ``guard.keep`` names others."""

FILE = "guard.safetensors"


class SnapshotValidator(Protocol):
    """Validates snapshots, in this process or elsewhere. All workers call both methods at the same steps."""

    is_synchronous: bool
    """``submit`` blocks until validation is done, so the metrics may be collected at once."""

    def submit(self, snapshot: Snapshot) -> Any:
        """Start to validate; returns a ticket for ``collect``."""
        ...

    def collect(self, ticket: Any) -> Mapping[str, Tensor]:
        """Metrics per validation query, (Q,) each, in an order equal for all versions; NaN where one does not apply."""
        ...


def significant_drop(values_Q: Tensor, base_Q: Tensor, *, noise: float, share: float) -> float:
    """d = mean(base - values) if d > max(noise · s / √n, share · mean(base)), else 0.

    s is the standard deviation of the paired differences over the n queries for which both values are finite; with
    n < 2 the result is 0.
    """
    known_Q = values_Q.isfinite() & base_Q.isfinite()
    drop_Q = base_Q[known_Q] - values_Q[known_Q]
    if len(drop_Q) < 2:
        return 0.0
    standard_error = float(drop_Q.std()) / len(drop_Q) ** 0.5
    drop, limit = float(drop_Q.mean()), max(noise * standard_error, share * float(base_Q[known_Q].mean()))
    return drop if drop > limit else 0.0


class Guard:
    """Compares the validation metrics of versions with those of version 0, the SFT policy, and updates ``state``.

    A version with a ``significant_drop`` of a guarded metric ends the run; of the others the one with the best
    ``learning.rl.guard.goal`` is kept, if no metric of ``guard.keep`` lost more than its share, noise or not. Metrics
    may be collected several updates after their version was submitted. If they then end the run, the later updates are
    removed from ``state``, which is therefore the same as with a synchronous validator.
    """

    def __init__(self, validator: SnapshotValidator, settings: Rl, state: TrainingState) -> None:
        self._validator, self._settings, self._state = validator, settings, state
        state.best_metric = settings.guard.goal
        self._base: dict[str, Tensor] = {}
        self._pending: tuple[Snapshot, Any] | None = None
        self._untold: list[tuple[int, Mapping[str, Tensor]]] = []

    def submit(self, snapshot: Snapshot) -> None:
        """Start to validate ``snapshot``; with a synchronous validator this blocks and collects the metrics."""
        self._pending = (snapshot, self._validator.submit(snapshot))
        if self._validator.is_synchronous:
            self.collect()

    def collect(self) -> bool:
        """Wait for the metrics of the submitted version and act on them; False if none was submitted."""
        if self._pending is None:
            return False
        (snapshot, ticket), self._pending = self._pending, None
        values = dict(self._validator.collect(ticket))
        if snapshot.version == 0:
            self._base = values
        metrics = {name: float(values_Q.nanmean()) for name, values_Q in values.items()}
        record = next(r for r in reversed(self._state.curve) if r["step"] == snapshot.version)
        record |= metrics
        if reason := self._reason_to_stop(values):
            self._stop(snapshot.version, reason)
        elif metrics[self.goal] > self._state.best_score and self._keeps(values):
            self._state.best_score, self._state.best_step = metrics[self.goal], snapshot.version
            self._state.best = dict(snapshot.tensors)
        self._untold.append((snapshot.version, values))
        return True

    @property
    def goal(self) -> str:
        """The metric whose best version is kept."""
        return self._settings.guard.goal

    @property
    def guarded(self) -> dict[str, float]:
        """The metrics that end a run, with the share of each that may be lost."""
        return self._settings.guard.keep or dict.fromkeys(GUARDED, self._settings.guard_drop)

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics that are watched: the goal, then the guarded ones."""
        return tuple(dict.fromkeys((self.goal, *self.guarded)))

    def take_validated(self) -> list[tuple[int, Mapping[str, Tensor]]]:
        """The versions that were validated since the last call, each with its metrics per query, (Q,)."""
        untold, self._untold = self._untold, []
        return untold

    def is_validated(self, version: int) -> bool:
        """Whether the metrics of ``version`` have been collected."""
        return any(record["step"] == version and "ndcg@10" in record for record in self._state.curve)

    def write(self, directory: Path) -> None:
        """Save version 0's values with a checkpoint: later versions are compared with them, query by query."""
        if self._base:
            save_file(self._base, directory / FILE)

    def read(self, directory: Path) -> None:
        """Restore what ``write`` saved."""
        self._base = load_file(directory / FILE) if (directory / FILE).is_file() else {}

    def _reason_to_stop(self, values: Mapping[str, Tensor]) -> str:
        noise = self._settings.guard_noise
        for name, share in self.guarded.items():
            if name in values and name in self._base:
                drop = significant_drop(values[name], self._base[name], noise=noise, share=share)
                if drop:
                    return f"{name} fell below the SFT policy's by {drop:.4f}, more than its noise"
        return ""

    def _keeps(self, values: Mapping[str, Tensor]) -> bool:
        """Whether no metric of ``guard.keep`` has lost more than its share."""
        kept = self._settings.guard.keep.items()
        return not any(significant_drop(values[name], self._base[name], noise=0, share=share) for name, share in kept)

    def _stop(self, version: int, reason: str) -> None:
        self._state.curve = [record for record in self._state.curve if record["step"] <= version]
        self._state.step = version
        self._state.stopped = f"validation {reason}; back to version {self._state.best_step}"
