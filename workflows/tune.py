"""tune: a search over reward weights; each trial is a short GRPO run from the same SFT policy.

python -m workflows.tune configs/demo.yaml configs/cpu.yaml tune.trials=8
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.jobs import Job
from cluster.search import search, write_table
from cluster.stages import Output, run_stage
from genrec.config import Config
from genrec.data.files import write_json
from workflows import assign, prepare, sft
from workflows.door import main

VERSION = 1


def run(config: Config) -> Output:
    """Search, and print the trials ranked by validation NDCG@10 with the overrides of the best one."""
    data, catalog, start = prepare.run(config), assign.run(config), sft.run(config)
    settings = {
        "grpo": config.learning.grpo.model_dump(mode="json"),
        "rewards": config.rewards.model_dump(mode="json"),
        "tune": config.tune.model_dump(mode="json", exclude={"max_concurrent"}),
        "seed": config.seed,
    }
    work = partial(_search, config, data.path, catalog.path, start.path)
    found = run_stage(config, "tune", version=VERSION, settings=settings, inputs=[data, catalog, start], work=work)
    print((found.path / "trials.txt").read_text(encoding="utf-8"), end="")
    best = found.metrics["best"]
    print("best:", " ".join(f"rewards.{name}={value:.4f}" for name, value in best["rewards"].items()), flush=True)
    return found


def _search(config: Config, data: Path, catalog: Path, start: Path, out: Path) -> Mapping[str, Any]:
    trials = search(config, Job(config, data, catalog, out, start))
    write_json(trials, out / "trials.json")
    write_table(trials, out / "trials.txt")
    return {"trials": len(trials), "best": trials[0]}


if __name__ == "__main__":
    main(run, __doc__)
