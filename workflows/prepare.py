"""prepare: raw log and catalogue to the data directory: items, sequences, and train, valid and test queries.

python -m workflows.prepare configs/demo.yaml configs/cpu.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.preparing import prepare
from cluster.stages import Output, run_stage
from genrec.config import Config
from genrec.data.filters import window
from genrec.data.sources import open_source
from genrec.data.sources.source import fingerprint
from workflows.door import main

VERSION = 1


def run(config: Config) -> Output:
    """Check the source's files, then write the data directory unless it exists for these files and settings."""
    source = open_source(config.data)
    window(config.data.filters)

    def work(directory: Path) -> dict[str, Any]:
        stats = prepare(source, config, directory)
        print("[prepare] " + "  ".join(f"{name} {stats[name]:,}" for name in SHOWN), flush=True)
        return stats

    settings = {"data": config.data.model_dump(mode="json"), "files": fingerprint(source.files())}
    return run_stage(config, "prepare", version=VERSION, settings=settings, inputs=(), work=work)


SHOWN = ("users", "items", "interactions", "train", "valid", "test")

if __name__ == "__main__":
    main(run, __doc__)
