"""sft: supervised fine-tuning of the policy on next-item prediction, on Ray Train.

python -m workflows.sft configs/demo.yaml configs/cpu.yaml
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.jobs import Job
from cluster.runs import fit, sft_loop, summary
from cluster.stages import Output, run_stage
from genrec.config import Config
from workflows import assign, prepare
from workflows.door import main

VERSION = 1


def run(config: Config) -> Output:
    """Train the policy; what it needs is made first."""
    data, catalog = prepare.run(config), assign.run(config)
    settings = {
        "policy": config.policy.model_dump(mode="json"),
        "sft": config.learning.sft.model_dump(mode="json"),
        "max_history": config.data.max_history,
        "workers": config.compute.workers,
        "seed": config.seed,
    }
    work = partial(_train, config, data.path, catalog.path)
    return run_stage(config, "sft", version=VERSION, settings=settings, inputs=[data, catalog], work=work)


def _train(config: Config, data: Path, catalog: Path, out: Path) -> Mapping[str, Any]:
    fit(sft_loop, Job(config, data, catalog, out), "sft")
    return summary(out)


if __name__ == "__main__":
    main(run, __doc__)
