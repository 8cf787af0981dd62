"""grpo: reinforcement learning of the SFT policy on rewards, with rollout actors beside a Ray Train learner.

python -m workflows.grpo configs/demo.yaml configs/cpu.yaml learning.grpo.lr=1e-4 rewards.rank_log=-0.2
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.jobs import Job
from cluster.runs import fit, grpo_loop, summary
from cluster.stages import Output, run_stage
from genrec.config import Config
from workflows import assign, prepare, sft
from workflows.door import main

VERSION = 1


def run(config: Config) -> Output:
    """Improve the SFT policy; what it needs is made first."""
    data, catalog, start = prepare.run(config), assign.run(config), sft.run(config)
    settings = {
        "policy": config.policy.model_dump(mode="json"),
        "grpo": config.learning.grpo.model_dump(mode="json"),
        "rewards": config.rewards.model_dump(mode="json"),
        "workers": config.compute.workers,
        "seed": config.seed,
    }
    work = partial(_train, config, data.path, catalog.path, start.path)
    return run_stage(config, "grpo", version=VERSION, settings=settings, inputs=[data, catalog, start], work=work)


def _train(config: Config, data: Path, catalog: Path, start: Path, out: Path) -> Mapping[str, Any]:
    fit(grpo_loop, Job(config, data, catalog, out, start), "grpo")
    return summary(out)


if __name__ == "__main__":
    main(run, __doc__)
