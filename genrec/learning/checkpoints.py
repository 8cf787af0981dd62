"""Where a training loop keeps its state: in a directory here, or with Ray Train (see ``cluster.train``)."""

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

from genrec.data.files import write_json
from genrec.errors import InputError


class Checkpoints(Protocol):
    """A place for checkpoints; every worker calls both methods at the same steps."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest whole checkpoint as a local directory, or None."""
        ...

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Keep what ``write`` puts into an empty directory as the newest checkpoint."""
        ...


@contextmanager
def refusing_failed_writes(where: str) -> Generator[None]:
    """Turn an error of writing a checkpoint, such as a full disk, into one that says what is left and what to do.

    Raises:
        InputError: the block could not write.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise InputError(
            f"the checkpoint could not be written to {where} ({str(error).splitlines()[0]}); the one before it is "
            "whole: free space there, then run the same command, which goes on from it"
        ) from error


class DirectoryCheckpoints:
    """Checkpoints of a single process, the newest one only."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest whole checkpoint, or None."""
        whole = sorted(self._directory.glob("step-*"))
        return nullcontext(whole[-1] if whole else None)

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Write beside, rename, then drop the older ones."""
        fresh = self._directory / f"step-{int(metrics['step']):09d}"
        working = self._directory / "writing"
        shutil.rmtree(working, ignore_errors=True)
        with refusing_failed_writes(str(self._directory)):
            working.mkdir(parents=True)
            write(working)
        older = [path for path in self._directory.glob("step-*") if path != fresh]
        shutil.rmtree(fresh, ignore_errors=True)
        working.rename(fresh)
        for path in older:
            shutil.rmtree(path)


@dataclass
class TrainingState:
    """All that a loop needs to go on from a step boundary; batches and random numbers are functions of the step."""

    step: int = 0
    best_score: float = float("-inf")
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    best_step: int = 0
    checks_since_best: int = 0
    stopped: str = ""
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def write(self, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor], directory: Path) -> None:
        """Save this state, the policy's trainable ``tensors`` and the optimizer's ``moments``, all of them whole."""
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "policy.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in moments.items()}, directory / "optimizer.safetensors")
        if self.best:
            save_file(self.best, directory / "best.safetensors")
        fields = ("step", "best_score", "best_step", "checks_since_best", "stopped", "curve")
        write_json({name: getattr(self, name) for name in fields}, directory / "state.json")

    def read(self, directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Restore what ``write`` saved; the tensors and the moments are returned."""
        best = directory / "best.safetensors"
        self.best = load_file(best) if best.is_file() else {}
        for name, value in json.loads((directory / "state.json").read_text(encoding="utf-8")).items():
            setattr(self, name, value)
        return load_file(directory / "policy.safetensors"), load_file(directory / "optimizer.safetensors")
