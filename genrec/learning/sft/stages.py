"""Training in stages on one policy: each begins with the last weights of the one before, and all of them resume.

A checkpoint names its stage in ``stage.json``; a run resumes in the stage that its newest checkpoint names.
"""

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
from genrec.errors import InputError
from genrec.learning.checkpoints import Checkpoints, TrainingState
from genrec.learning.sft.batches import TrainingBatches
from genrec.learning.sft.trainer import SftTrainer, Validate
from genrec.policy.model import Policy
from genrec.seeds import seed_of

LOG = logging.getLogger(__name__)

NO_PATIENCE = 10**9
"""More validations than any run has: a stage before the last one trains to its end."""

FILE = "stage.json"


@dataclass(frozen=True)
class TrainingStage:
    """One stage: its settings, batches and loss; ``rows_only`` freezes all but the SID embeddings.

    ``name`` tells the checkpoints of the stages apart, and gives each its own random draws; ``section`` of the config
    has the settings.
    """

    name: str
    settings: Sft
    epochs: TrainingBatches
    loss: Any
    rows_only: bool = False
    section: str = "learning.sft"


def settings_of(stage: StageSettings, last: Sft, steps_per_epoch: int, *, rows_only: bool) -> Sft:
    """The settings of a stage before the last one: its own learning rates and length, the rest as in ``last``."""
    epochs = stage.epochs or -(-stage.steps // steps_per_epoch)
    own = {name: getattr(stage, name) for name in ("lr", "min_lr", "warmup")}
    own |= {"epochs": epochs, "max_steps": stage.steps, "patience": NO_PATIENCE}
    # Weight decay would also move the rows of a whole embedding table that have no gradient.
    return last.replace(own | ({"weight_decay": 0.0} if rows_only else {}))


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
    """Train ``policy`` through all stages, from the newest checkpoint of any of them.

    Stages with ``rows_only`` must come first: a checkpoint holds the tensors that its stage trains, and these must
    include what the stages before it trained.

    Returns:
        the state of the last stage; ``best`` holds the whole trainable part, and the curve begins with the curves of
        the earlier stages.

    Raises:
        InputError: the newest checkpoint is of a stage that is not among ``stages``.
    """
    first, earlier = _resume_point(checkpoints, [stage.name for stage in stages])
    state = TrainingState()
    for number, stage in enumerate(stages[first:], start=first + 1):
        if accelerator.is_main_process:
            LOG.info("stage %d of %d: %s", number, len(stages), stage.name)
        with train_only_sid_embeddings(policy) if stage.rows_only else nullcontext():
            trainer = SftTrainer(
                policy,
                stage.loss,
                stage.epochs,
                stage.settings,
                seed=seed_of(stage.name, seed),
                accelerator=accelerator,
                checkpoints=StageCheckpoints(checkpoints, stage.name, earlier),
                validate=validate,
                deepspeed=deepspeed,
                section=stage.section,
            )
            state = trainer.run()
            trainer.close()
        if number < len(stages):
            earlier += [{"stage": number, **record} for record in state.curve]
    if stages[-1].rows_only:
        state.best = {**policy.snapshot(state.step).tensors, **state.best}
    state.curve = [*earlier, *state.curve]
    return state


class StageCheckpoints:
    """The checkpoints of one stage, kept in the same place as those of the others (``Checkpoints`` protocol).

    Args:
        name: of the stage.
        earlier: the curve of the stages before it.
    """

    def __init__(self, inner: Checkpoints, name: str, earlier: Sequence[Mapping[str, Any]]) -> None:
        self._inner, self._name, self._earlier = inner, name, earlier

    @contextmanager
    def latest(self) -> Generator[Path | None]:
        """The newest checkpoint if it is of this stage, else None."""
        with self._inner.latest() as directory:
            yield directory if directory is not None and _read(directory)["stage"] == self._name else None

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Keep what ``write`` puts into a directory, with the stage's name and the curve before it."""

        def write_with_stage(directory: Path) -> None:
            write(directory)
            write_json({"stage": self._name, "earlier": self._earlier}, directory / FILE)

        self._inner.save(write_with_stage, metrics)


@contextmanager
def train_only_sid_embeddings(policy: Policy) -> Generator[None]:
    """Inside, only SID embeddings learn: other parameters are frozen, other rows of a whole table get no gradient."""
    tables = {id(table): rows for table, rows in policy.sid_tables()}
    frozen = [parameter for parameter in policy.trainable().values() if id(parameter) not in tables]
    handles = [
        table.register_hook(lambda gradient, rows=rows: _only_rows(gradient, rows))
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


def _only_rows(gradient: Tensor, rows: slice) -> Tensor:
    masked = torch.zeros_like(gradient)
    masked[rows] = gradient[rows]
    return masked


def _resume_point(checkpoints: Checkpoints, names: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
    """The place of the newest checkpoint's stage among ``names`` (0 without one), and the curve before it."""
    with checkpoints.latest() as directory:
        if directory is None:
            return 0, []
        found = _read(directory)
    if found["stage"] not in names:
        raise InputError(
            f"got a checkpoint of stage {found['stage']!r}, wanted one of {list(names)}; delete the run's checkpoints "
            "to begin anew, or restore learning.stages"
        )
    return names.index(found["stage"]), list(found["earlier"])


def _read(directory: Path) -> dict[str, Any]:
    return json.loads((directory / FILE).read_text(encoding="utf-8"))
