"""sft: supervised fine-tuning of the policy on next-item prediction, on Ray Train.

python -m workflows.sft configs/demo.yaml configs/cpu.yaml
"""

from __future__ import annotations

from cluster.artifacts import Artifact
from cluster.stages import steps
from genrec.config import Config
from workflows import assign, prepare
from workflows.door import main


def run(config: Config) -> Artifact:
    """Train the policy; what it needs is made first."""
    return steps.sft(config, prepare.run(config), assign.run(config))


if __name__ == "__main__":
    main(run, __doc__)
