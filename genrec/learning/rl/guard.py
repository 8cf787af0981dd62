"""The guard of reinforcement learning: keeps the best version, and stops a policy that gets worse than it began."""

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
BASE = "guard.safetensors"


class SnapshotValidator(Protocol):
    """Validates snapshots, here or elsewhere. All workers call both methods at the same steps."""

    is_synchronous: bool
    """``submit`` returns when the work is done: nothing is gained by collecting later."""

    def submit(self, snapshot: Snapshot) -> Any:
        """Begin to validate; returns a ticket."""
        ...

    def collect(self, ticket: Any) -> Mapping[str, Tensor]:
        """Metrics per validation query, (Q,) each, in the same order for every version; NaN: does not apply."""
        ...


def significant_drop(values_Q: Tensor, base_Q: Tensor, *, noise: float, share: float) -> float:
    """How far the mean fell below ``base_Q``, 0 unless by more than ``noise`` standard errors and ``share`` of it.

    The standard error is that of the paired difference over queries; NaN entries are left out.
    """
    known_Q = values_Q.isfinite() & base_Q.isfinite()
    drop_Q = base_Q[known_Q] - values_Q[known_Q]
    if len(drop_Q) < 2:
        return 0.0
    error = float(drop_Q.std()) / len(drop_Q) ** 0.5
    drop, limit = float(drop_Q.mean()), max(noise * error, share * float(base_Q[known_Q].mean()))
    return drop if drop > limit else 0.0


class Guard:
    """Judges versions against version 0, the SFT policy, and writes its verdicts into ``state``.

    A version whose guarded metric fell below version 0's by more than its noise ends the run; of the others the one
    with the best NDCG@10 is kept. A verdict may come later than its version: what was learnt meanwhile is then cut
    off, so the state is the same as with a verdict at once.
    """

    def __init__(self, validator: SnapshotValidator, settings: Rl, state: TrainingState) -> None:
        self._validator, self._settings, self._state = validator, settings, state
        self._base: dict[str, Tensor] = {}
        self._pending: tuple[Snapshot, Any] | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Let ``snapshot`` be validated; with a judge that waits, the verdict falls at once."""
        self._pending = (snapshot, self._validator.submit(snapshot))
        if self._validator.is_synchronous:
            self.collect()

    def collect(self) -> bool:
        """Wait for the verdict on the version under way; False if there was none."""
        if self._pending is None:
            return False
        (snapshot, ticket), self._pending = self._pending, None
        values = dict(self._validator.collect(ticket))
        if snapshot.version == 0:
            self._base = values
        metrics = {name: float(values_Q.nanmean()) for name, values_Q in values.items()}
        record = next(r for r in reversed(self._state.curve) if r["step"] == snapshot.version)
        record |= metrics
        if fallen := self._fallen(values):
            self._stop(snapshot.version, fallen)
        elif metrics["ndcg@10"] > self._state.best_score:
            self._state.best_score, self._state.best_step = metrics["ndcg@10"], snapshot.version
            self._state.best = dict(snapshot.tensors)
        return True

    def judged(self, version: int) -> bool:
        """Whether the verdict on ``version`` has fallen."""
        return any(record["step"] == version and "ndcg@10" in record for record in self._state.curve)

    def write(self, directory: Path) -> None:
        """Keep version 0's values beside a checkpoint: later versions are compared with them, query by query."""
        if self._base:
            save_file(self._base, directory / BASE)

    def read(self, directory: Path) -> None:
        """Restore what ``write`` kept."""
        self._base = load_file(directory / BASE) if (directory / BASE).is_file() else {}

    def _fallen(self, values: Mapping[str, Tensor]) -> str:
        noise, share = self._settings.guard_noise, self._settings.guard_drop
        for name in GUARDED:
            if name in values and name in self._base:
                drop = significant_drop(values[name], self._base[name], noise=noise, share=share)
                if drop:
                    return f"{name} fell below the SFT policy's by {drop:.4f}, more than its noise"
        return ""

    def _stop(self, version: int, why: str) -> None:
        kept = [record for record in self._state.curve if record["step"] <= version]
        self._state.curve, self._state.step = kept, version
        self._state.stopped = f"validation {why}; back to version {self._state.best_step}"
