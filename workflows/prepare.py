"""prepare: raw log and catalogue to the data directory: items, sequences, and train, valid and test queries.

python -m workflows.prepare configs/demo.yaml configs/cpu.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact, run_stage
from cluster.stages.prepare import prepare
from genrec.config import Config
from genrec.data.filters import window
from genrec.data.sources import open_source
from genrec.data.sources.source import fingerprint, total_bytes
from workflows.door import main

VERSION = 1


def run(config: Config) -> Artifact:
    """Check the source's files, then write the data directory unless it exists for these files and settings."""
    source = open_source(config.data)
    window(config.data.filters)
    files = fingerprint(source.files())
    here = in_process(config, total_bytes(source.files()))

    def work(directory: Path) -> dict[str, Any]:
        stats = prepare(source, here, directory)
        print("[prepare] " + "  ".join(f"{name} {stats[name]:,}" for name in SHOWN), flush=True)
        return stats

    settings = {"data": config.data.model_dump(mode="json"), "files": files}
    return run_stage(config, "prepare", version=VERSION, settings=settings, inputs=(), work=work)


def in_process(config: Config, size: int | None) -> Config:
    """The config without Ray Data if ``size`` bytes are known and so few that starting actors would take longer."""
    if size is None or size >= config.compute.in_process_below_mb * 2**20:
        return config
    return config.model_copy(update={"compute": config.compute.model_copy(update={"data_actors": 0})})


SHOWN = ("users", "items", "interactions", "train", "valid", "test")

if __name__ == "__main__":
    main(run, __doc__)
