"""Learners and rollout actors in any number: one policy."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

from cluster.train import RunSpec, train_on_ray

LEARNERS, ACTORS = ((1, 2, 3), (0, 1, 2, 3, 4)) if "GENREC_SLOW_TESTS" in os.environ else ((2,), (0, 1, 3))
"""2 learners and 1 actor: one learner would have no actor of its own."""


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_the_policy_is_the_same_with_any_number_of_learners_and_actors(tmp_path: Path) -> None:
    from cluster.rollouts import start_actors

    steps = [f"learning.rl.{key}" for key in ("steps=5", "queries=12", "eval_every=2", "checkpoint_every=3")]
    cpus = ["compute.workers=1", "compute.worker_cpus=0.5", "compute.rollout_cpus=0.1", "compute.max_failures=0"]
    drawn = ["learning.rl.generation=mixed", "learning.rl.rollout_chunk=3"]
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), "learning.sft.epochs=3", *steps, *drawn)
    paths = [made(config, stage).path for stage in ("prepare", "assign", "sft")]
    config = tiny_config(tmp_path / "storage", tmp_path / "shop", "learning.sft.epochs=3", *steps, *drawn, *cpus)
    spec = RunSpec(config, paths[0], paths[1], tmp_path, start=paths[2])
    running = start_actors(spec, max(ACTORS))

    def run_all() -> None:
        """One run per number of actors, in the same learners; actors take long to start, so all but one run share."""
        import ray.train

        from cluster import rollouts
        from cluster.stages import grpo

        class NoCheckpoints:
            """Runs one after the other in one worker would resume each other."""

            def latest(self) -> nullcontext[None]:
                return nullcontext(None)

            def save(self, write: object, metrics: object) -> None:
                pass

        shared, world = rollouts.shared_actors, ray.train.get_context().get_world_size()
        grpo.make_checkpoints = lambda spec: NoCheckpoints()
        for count in ACTORS:
            own = count == 1 and world == 2
            rollouts.shared_actors = shared if own else lambda spec, accelerator, count=count: running[:count]
            out = tmp_path / f"{world}-{count}"
            out.mkdir(exist_ok=True)
            variant = config.replace({"compute.workers": world, "compute.rollout_actors": count})
            grpo.grpo_loop(replace(spec, config=variant, out=out))

    for learners in LEARNERS:
        train_on_ray(run_all, config, tmp_path / f"run-{learners}", f"run-{learners}", learners)
    results = ("policy.safetensors", "curve.json")
    found = {
        learners: {
            count: [(tmp_path / f"{learners}-{count}" / name).read_bytes() for name in results] for count in ACTORS
        }
        for learners in LEARNERS
    }
    for learners, runs in found.items():
        assert all(run == runs[0] for run in runs.values()), f"{learners} learners"
    before = load_file(paths[2] / "policy.safetensors")
    one, *others = (load_file(tmp_path / f"{learners}-0" / "policy.safetensors") for learners in LEARNERS)
    moved = sum(float((one[name] - before[name]).square().sum()) for name in before) ** 0.5
    assert moved > 0
    for other in others:
        apart = sum(float((one[name] - other[name]).square().sum()) for name in before) ** 0.5
        assert apart < 0.01 * moved
