"""tune: a search over reward weights; each trial is a short GRPO run from the same SFT policy.

python -m workflows.tune configs/demo.yaml configs/cpu.yaml tune.trials=8
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact, run_stage
from cluster.reward_file import kept_terms, terms_settings
from cluster.run_spec import RunSpec
from cluster.stages.tune import run_search, write_table
from genrec.config import Config
from genrec.data.files import write_json
from workflows import assign, embed, grpo, prepare, sft
from workflows.door import main

VERSION = 2


def run(config: Config, rewards: str | None = None) -> Artifact:
    """Search, and print the trials ranked by validation NDCG@10 with the overrides of the best one."""
    data, catalog, start = prepare.run(config), assign.run(config), sft.run(config)
    vectors = [embed.run(config)] if config.rewards.semantic or "semantic" in config.tune.space else []
    settings = {
        "grpo": config.learning.rl.model_dump(mode="json"),
        "rewards": config.rewards.model_dump(mode="json"),
        "tune": config.tune.model_dump(mode="json", exclude={"max_concurrent"}),
        "seed": config.seed,
        **terms_settings(rewards),
    }
    job = partial(
        RunSpec, config, data.path, catalog.path, start=start.path, vectors=vectors[0].path if vectors else None
    )
    work, inputs = partial(_search, job, rewards), [data, catalog, start, *vectors]
    found = run_stage(config, "tune", version=VERSION, settings=settings, inputs=inputs, work=work)
    print((found.path / "trials.txt").read_text(encoding="utf-8"), end="")
    custom = config.rewards.custom
    best = {f"custom.{n}" if n in custom else n: w for n, w in found.metrics["best"]["rewards"].items()}
    print("best:", " ".join(f"rewards.{name}={weight:.4f}" for name, weight in best.items()), flush=True)
    return found


def _search(job: Callable[..., RunSpec], rewards: str | None, out: Path) -> Mapping[str, Any]:
    trials = run_search(job(out=out, rewards=kept_terms(rewards, out)))
    write_json(trials, out / "trials.json")
    write_table(trials, out / "trials.txt")
    return {"trials": len(trials), "best": trials[0]}


if __name__ == "__main__":
    main(run, __doc__, options=grpo.OPTIONS)
