"""full: everything, from the raw log to the report, resumable at any point.

python -m workflows.full configs/demo.yaml configs/cpu.yaml
"""

from __future__ import annotations

from cluster.artifacts import Artifact
from genrec.config import Config
from workflows import assign, embed, evaluate, grpo, prepare, sft
from workflows.door import main

STEPS = (
    (prepare, "tables and splits from the raw log"),
    (embed, "item texts to vectors"),
    (assign, "vectors to semantic IDs"),
    (sft, "the policy learns from the log"),
    (grpo, "the policy learns from rewards"),
    (evaluate, "the test beside the baselines"),
)


def run(config: Config, rewards: str | None = None) -> Artifact:
    """Run every stage in order; finished ones are skipped."""
    names = [step.__name__.rpartition(".")[2] for step, _ in STEPS]
    for number, (step, about) in enumerate(STEPS, start=1):
        left = ", ".join(names[number:]) or "nothing"
        print(f"── {number}/{len(STEPS)} {names[number - 1]}: {about} (then: {left})", flush=True)
        if step is embed and config.sid.quantizer == "given":
            print("[embed] not needed: the semantic IDs are given", flush=True)
            continue
        output = step.run(config, rewards) if step in (grpo, evaluate) else step.run(config)
    return output


if __name__ == "__main__":
    main(run, __doc__, options=grpo.OPTIONS)
