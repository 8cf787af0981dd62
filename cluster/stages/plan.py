"""What a stage is given (``StageRun``) and what it answers with (``Plan``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact
from genrec.config import Config


def _no_pipeline(config: Config, *until: str, reward_file: Path | None = None) -> Mapping[str, Artifact]:
    raise RuntimeError("this stage was not run by a pipeline, and cannot make other stages")


@dataclass(frozen=True)
class StageRun:
    """One run of one stage. ``inputs`` holds the artifacts that the stage reads, by the names of their stages.

    ``remake(config, "sft", …)`` makes stages of another config, or finds them, for a stage that varies its inputs.
    """

    config: Config
    inputs: Mapping[str, Artifact]
    reward_file: Path | None = None
    remake: Callable[..., Mapping[str, Artifact]] = _no_pipeline

    def path(self, stage: str) -> Path:
        """The directory of the artifact of ``stage``."""
        return self.inputs[stage].path

    def path_or_none(self, stage: str) -> Path | None:
        """The same; None where the config makes this run do without ``stage``."""
        return self.inputs[stage].path if stage in self.inputs else None


@dataclass(frozen=True)
class Plan:
    """How a stage comes to its result.

    ``settings``, JSON-able, is what the result depends on, besides the stage's inputs and its code. ``work(directory)``
    fills the directory, going on from what a killed run left there, and returns the stage's metrics.
    """

    settings: Mapping[str, Any]
    work: Callable[[Path], Mapping[str, Any]]
