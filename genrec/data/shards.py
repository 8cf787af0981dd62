"""Numbered Parquet files of a table whose rows are worked on in shards, so that a killed work goes on with the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def shard_path(directory: Path, shard: int) -> Path:
    """The file of one shard."""
    return Path(directory) / f"part-{shard:05d}.parquet"


def missing_shards(directories: Sequence[Path], rows: int, shard_rows: int) -> list[int]:
    """The shards of ``rows`` rows, ``shard_rows`` in each, that lack a file in one of ``directories``."""
    shards = range(-(-rows // shard_rows))
    return [shard for shard in shards if not all(shard_path(place, shard).is_file() for place in directories)]
