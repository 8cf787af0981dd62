"""Training in stages on one policy: each begins with the last weights of the one before, and all of them resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from genrec.config import Sft, StageSettings
from genrec.data.files import write_json
from genrec.learning.checkpoints import Checkpoints, TrainingState
from genrec.learning.sft.batches import Epochs
from genrec.learning.sft.trainer import SftTrainer, Validate
from genrec.policy.model import Policy

LOG = logging.getLogger(__name__)

NO_PATIENCE = 10**9
"""A patience that no run outlasts: a stage before the last one goes to its end."""


@dataclass(frozen=True)
class TrainingStage:
    """One stage: its settings, batches and loss; ``rows_only`` freezes all but the SID rows."""

    name: str
    settings: Sft
    epochs: Epochs
    loss: Any
    rows_only: bool = False


def settings_of(stage: StageSettings, last: Sft, steps_per_epoch: int, *, rows_only: bool) -> Sft:
    """The settings of a stage before the last one: its own rates and length, the rest as in ``last``."""
    epochs = stage.epochs or -(-stage.steps // steps_per_epoch)
    own = {name: getattr(stage, name) for name in ("lr", "min_lr", "warmup")}
    own |= {"epochs": epochs, "max_steps": stage.steps, "patience": NO_PATIENCE}
    # Decay would move the rows of a whole embedding table that have no gradient.
    return last.model_copy(update={**own, **({"weight_decay": 0.0} if rows_only else {})})


def run_stages(
    policy: Policy,
    stages: Sequence[TrainingStage],
    *,
    seed: int,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    validate: Validate,
    deepspeed: Mapping[str, Any] | None = None,
) -> TrainingState:
    """Train ``policy`` through all phases, from the latest checkpoint of any of them.

    Those with ``rows_only`` must come first: a checkpoint holds what its phase trains, and that must hold what the
    phases before it trained.

    Returns:
        the state of the last phase; ``best`` holds the whole trainable part, and the curve begins with the others'.
    """
    first, earlier = _latest(checkpoints)
    offset = 0
    state = TrainingState()
    for number, stage in enumerate(stages):
        kept = StageCheckpoints(checkpoints, number, offset, earlier)
        offset += NO_PATIENCE
        if number < first:
            continue
        options: dict[str, Any] = {
            "seed": seed,
            "accelerator": accelerator,
            "validate": validate,
            "deepspeed": deepspeed,
        }
        with train_only_sid_embeddings(policy) if stage.rows_only else nullcontext():
            run = SftTrainer(policy, stage.loss, stage.epochs, stage.settings, checkpoints=kept, **options)
            if accelerator.is_main_process:
                LOG.info("stage %d of %d: %s", number + 1, len(stages), stage.name)
            state = run.run()
            run.close()
        if number < len(stages) - 1:
            earlier += [{"stage": number + 1, **record} for record in state.curve]
    if stages[-1].rows_only:
        state.best = {**policy.snapshot(state.step).tensors, **state.best}
    state.curve = [*earlier, *state.curve]
    return state


class StageCheckpoints:
    """The checkpoints of one stage (``Checkpoints`` protocol) in the place of all.

    Args:
        offset: added to the steps, which so grow from stage to stage.
        earlier: the curve of the stages before.
    """

    def __init__(self, inner: Checkpoints, number: int, offset: int, earlier: list[dict[str, Any]]) -> None:
        self._inner, self._number, self._offset, self._earlier = inner, number, offset, earlier

    @contextmanager
    def latest(self) -> Generator[Path | None]:
        """The newest checkpoint, if it is of this stage."""
        with self._inner.latest() as directory:
            yield directory if directory is not None and _stage_of(directory)["number"] == self._number else None

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Keep what ``write`` leaves, with the number of the stage."""

        def with_stage(path: Path) -> None:
            write(path)
            write_json({"number": self._number, "earlier": self._earlier}, path / "stage.json")

        self._inner.save(with_stage, {**metrics, "step": int(metrics["step"]) + self._offset})


@contextmanager
def train_only_sid_embeddings(policy: Policy) -> Generator[None]:
    """Inside, only the SID rows learn: other parameters are frozen, other rows of a whole table get no gradient."""
    tables = {id(table): rows for table, rows in policy.sid_tables()}
    frozen = [parameter for parameter in policy.trainable().values() if id(parameter) not in tables]
    handles = [
        table.register_hook(lambda gradient, rows=rows: _kept(gradient, rows))
        for table, rows in policy.sid_tables()
        if rows != slice(None)
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _kept(gradient: Tensor, rows: slice) -> Tensor:
    kept = torch.zeros_like(gradient)
    kept[rows] = gradient[rows]
    return kept


def _latest(checkpoints: Checkpoints) -> tuple[int, list[dict[str, Any]]]:
    """The stage of the newest checkpoint, and the curve of those before it."""
    with checkpoints.latest() as directory:
        if directory is None:
            return 0, []
        found = _stage_of(directory)
        return int(found["number"]), list(found["earlier"])


def _stage_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "stage.json").read_text(encoding="utf-8"))
