"""Where a training loop keeps its state: in a local directory, or with Ray Train (see ``cluster.train``)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.data.files import share, write_json
from genrec.errors import MachineError


class Checkpoints(Protocol):
    """A place for checkpoints; every worker calls both methods at the same steps."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """The checkpoint that was saved last, as a local directory, or None."""
        ...

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Keep what ``write`` puts into an empty directory as the newest checkpoint.

        Args:
            metrics: figures of the run at this point, for whoever watches it.
        """
        ...


@contextmanager
def refusing_failed_writes(where: str) -> Generator[None]:
    """Turn an error of writing a checkpoint, such as a full disk, into one that says what remains and what to do.

    Raises:
        MachineError: a file could not be written inside the block.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise MachineError(
            f"the checkpoint could not be written to {where} ({str(error).splitlines()[0]}); the one before it is "
            "whole: free space there, then run the same command again, which resumes from it"
        ) from error


PREFIX = "checkpoint-"


class DirectoryCheckpoints:
    """Checkpoints of a single process, of which only the newest is kept: ``checkpoint-<number>``, numbered from 1."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def latest(self) -> AbstractContextManager[Path | None]:
        """The checkpoint with the highest number, or None."""
        complete = self._complete()
        return nullcontext(complete[-1] if complete else None)

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Write into a temporary directory, rename it, then delete the older checkpoints."""
        older = self._complete()
        number = int(older[-1].name.removeprefix(PREFIX)) + 1 if older else 1
        working = self._directory / "writing"
        shutil.rmtree(working, ignore_errors=True)
        with refusing_failed_writes(str(self._directory)):
            working.mkdir(parents=True)
            write(working)
            share(working)
        working.rename(self._directory / f"{PREFIX}{number:09d}")
        for path in older:
            shutil.rmtree(path)

    def _complete(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        return sorted(self._directory.glob(f"{PREFIX}*"))


@dataclass
class TrainingState:
    """All that a loop needs to resume at a step boundary; batches and random numbers are functions of the step.

    ``best`` holds the tensors of the version with the best validation score, which is that of ``best_metric``,
    ``stopped`` why the run ended before its last step ('' if it did not), ``curve`` the measurements by step.
    """

    step: int = 0
    best_score: float = float("-inf")
    best_metric: str = "ndcg@10"
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    best_step: int = 0
    checks_since_best: int = 0
    stopped: str = ""
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def write(self, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor], directory: Path) -> None:
        """Save this state, the policy's trainable ``tensors`` and the optimizer's ``moments``, none of them sharded."""
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "policy.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in moments.items()}, directory / "optimizer.safetensors")
        if self.best:
            save_file(self.best, directory / "best.safetensors")
        fields = ("step", "best_score", "best_metric", "best_step", "checks_since_best", "stopped", "curve")
        write_json({name: getattr(self, name) for name in fields}, directory / "state.json")

    def read(self, directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Restore this state from what ``write`` saved; returns the tensors and the moments."""
        best = directory / "best.safetensors"
        self.best = load_file(best) if best.is_file() else {}
        for name, value in json.loads((directory / "state.json").read_text(encoding="utf-8")).items():
            setattr(self, name, value)
        return load_file(directory / "policy.safetensors"), load_file(directory / "optimizer.safetensors")
