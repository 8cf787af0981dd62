"""evaluate: the test of the trained policy beside tuned baselines: metrics.json and report.html.

python -m workflows.evaluate configs/demo.yaml configs/cpu.yaml
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from cluster.artifacts import Artifact, run_stage
from cluster.stages.evaluate import evaluate
from genrec.config import Config
from workflows import assign, embed, grpo, prepare, sft
from workflows.door import main

VERSION = 2
SHOWN = ("metrics.json", "report.html", "recommender.json", "config.yaml")


def run(config: Config, rewards: str | None = None) -> Artifact:
    """Judge the run; everything before it is made first. The results also appear under ``<storage>/runs/<name>``."""
    embedded = [] if config.sid.quantizer == "given" else [embed.run(config)]
    done = [prepare.run(config), *embedded, assign.run(config), sft.run(config), grpo.run(config, rewards)]
    stages = {stage.name: stage for stage in done}
    settings = {
        "decode": config.decode.model_dump(mode="json", exclude={"batch_size"}),
        "evaluation": config.evaluation.model_dump(mode="json"),
        "name": config.name,
        "seed": config.seed,
    }
    work = partial(evaluate, config, stages)
    report = run_stage(config, "evaluate", version=VERSION, settings=settings, inputs=done, work=work)
    shown = Path(config.storage) / "runs" / config.name
    shown.mkdir(parents=True, exist_ok=True)
    for name in SHOWN:
        shutil.copyfile(report.path / name, shown / name)
    print(f"headline: {report.metrics['headline']}\nreport: {shown / 'report.html'}", flush=True)
    return report


if __name__ == "__main__":
    main(run, __doc__, options=grpo.OPTIONS)
