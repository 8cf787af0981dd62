"""Artifacts of a run, in one call."""

from pathlib import Path

from cluster import pipeline
from cluster.artifacts import Artifact
from genrec.config import Config


def made(config: Config, stage: str, reward_file: Path | None = None) -> Artifact:
    """The artifact of ``stage``; what it needs is made first."""
    return pipeline.run(config, stage, reward_file=reward_file)[stage]
