"""grpo: reinforcement learning of the SFT policy on rewards, with rollout actors beside a Ray Train learner.

python -m workflows.grpo configs/demo.yaml configs/cpu.yaml learning.grpo.lr=1e-4 rewards.rank_log=-0.2
python -m workflows.grpo configs/demo.yaml configs/cpu.yaml rewards.custom.mine=0.5 --rewards mine.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.jobs import Job
from cluster.runs import fit, grpo_loop, summary
from cluster.stages import Output, run_stage
from cluster.terms import kept_terms, terms_settings
from genrec.config import Config
from workflows import assign, embed, prepare, sft
from workflows.door import main

VERSION = 2
OPTIONS = {"rewards": "Python file whose mapping TERMS holds reward terms; rewards.custom.NAME gives their weights"}


def run(config: Config, rewards: str | None = None) -> Output:
    """Improve the SFT policy, with the reward terms of the file ``rewards`` too; what it needs is made first."""
    data, catalog, start = prepare.run(config), assign.run(config), sft.run(config)
    vectors = [embed.run(config)] if config.rewards.semantic else []
    settings = {
        "policy": config.policy.model_dump(mode="json"),
        "grpo": config.learning.grpo.model_dump(mode="json"),
        "rewards": config.rewards.model_dump(mode="json"),
        "workers": config.compute.workers,
        "seed": config.seed,
        **terms_settings(rewards),
    }
    job = partial(Job, config, data.path, catalog.path, start=start.path, vectors=vectors[0].path if vectors else None)
    work, inputs = partial(_train, job, rewards), [data, catalog, start, *vectors]
    return run_stage(config, "grpo", version=VERSION, settings=settings, inputs=inputs, work=work)


def _train(job: Callable[..., Job], rewards: str | None, out: Path) -> Mapping[str, Any]:
    fit(grpo_loop, job(out=out, rewards=kept_terms(rewards, out)), "grpo")
    return summary(out)


if __name__ == "__main__":
    main(run, __doc__, options=OPTIONS)
