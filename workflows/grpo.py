"""grpo: reinforcement learning of the SFT policy on rewards, with rollout actors beside a Ray Train learner.

python -m workflows.grpo configs/demo.yaml configs/cpu.yaml learning.rl.lr=1e-4 rewards.rank_log=-0.2
python -m workflows.grpo configs/demo.yaml configs/cpu.yaml rewards.custom.mine=0.5 --rewards mine.py
"""

from __future__ import annotations

from cluster.artifacts import Artifact
from cluster.stages import steps
from genrec.config import Config
from workflows import assign, embed, prepare, sft
from workflows.door import main

OPTIONS = {"rewards": "Python file whose mapping TERMS holds reward terms; rewards.custom.NAME gives their weights"}


def run(config: Config, rewards: str | None = None) -> Artifact:
    """Improve the SFT policy, with the reward terms of the file ``rewards`` too; what it needs is made first."""
    data, catalog, start = prepare.run(config), assign.run(config), sft.run(config)
    vectors = embed.run(config) if config.rewards.semantic else None
    return steps.grpo(config, data, catalog, start, vectors, rewards)


if __name__ == "__main__":
    main(run, __doc__, options=OPTIONS)
