"""Learners and rollout actors in any number: one policy, that of one process."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

from cluster.stages.grpo import grpo_loop
from cluster.train import RunSpec, train_on_ray

SETTINGS = [
    "sid.quantizer=title",
    "sid.cf_weight=0",
    "policy.dropout=0.0",
    "learning.sft.epochs=1",
    "learning.rl.steps=5",
    "learning.rl.queries=12",
    "learning.rl.eval_every=2",
    "learning.rl.checkpoint_every=3",
    "learning.rl.generation=mixed",
    "learning.rl.rollout_chunk=3",
]


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("learners", "actors"),  # 2 learners and 1 actor: one learner would have no actor of its own
    [((2,), (0, 1, 3)), pytest.param((1, 2, 3), (0, 1, 2, 3, 4), marks=pytest.mark.slow)],
)
def test_the_policy_is_the_same_with_any_number_of_learners_and_actors(
    learners: tuple[int, ...], actors: tuple[int, ...], tmp_path: Path
) -> None:
    from cluster.rollouts import start_actors

    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), *SETTINGS)
    paths = [made(config, stage).path for stage in ("prepare", "assign", "sft")]
    (tmp_path / "alone").mkdir()
    grpo_loop(RunSpec(config, paths[0], paths[1], tmp_path / "alone", start=paths[2]))
    cpus = ["compute.workers=1", "compute.worker_cpus=0.5", "compute.rollout_cpus=0.1", "compute.max_failures=0"]
    config = tiny_config(tmp_path / "storage", tmp_path / "shop", *SETTINGS, *cpus)
    spec = RunSpec(config, paths[0], paths[1], tmp_path, start=paths[2])
    running = start_actors(spec, max(actors))

    def run_all() -> None:
        """SFT, and GRPO per number of actors, in the same learners; actors take long to start, so all but one run
        share."""
        import ray.train

        from cluster import rollouts
        from cluster.stages import grpo, sft

        class NoCheckpoints:
            """Runs one after the other in one worker would resume each other."""

            def latest(self) -> nullcontext[None]:
                return nullcontext(None)

            def save(self, write: object, metrics: object) -> None:
                pass

        shared, world = rollouts.shared_actors, ray.train.get_context().get_world_size()
        grpo.make_checkpoints = sft.make_checkpoints = lambda spec: NoCheckpoints()

        def run(loop: Any, name: str, start: Path | None, count: int) -> None:
            out = tmp_path / f"{world}-{name}"
            out.mkdir(exist_ok=True)
            variant = config.replace({"compute.workers": world, "compute.rollout_actors": count})
            loop(replace(spec, config=variant, out=out, start=start))

        run(sft.sft_loop, "sft", None, 0)
        for count in actors:
            own = count == 1 and world == 2
            rollouts.shared_actors = shared if own else lambda spec, accelerator, count=count: running[:count]
            run(grpo.grpo_loop, str(count), spec.start, count)

    for workers in learners:
        train_on_ray(run_all, config, tmp_path / f"run-{workers}", f"run-{workers}", workers)
    alone = json.loads((paths[2] / "curve.json").read_text())["curve"]
    before, wanted = (load_file(place / "policy.safetensors") for place in (paths[2], tmp_path / "alone"))
    for workers in learners:
        curve = json.loads((tmp_path / f"{workers}-sft" / "curve.json").read_text())["curve"]
        assert [point["loss"] for point in curve] == pytest.approx([point["loss"] for point in alone], rel=2e-2)
        places = [tmp_path / f"{workers}-{count}" for count in actors]
        runs = [[(place / name).read_bytes() for name in ("policy.safetensors", "curve.json")] for place in places]
        assert all(run == runs[0] for run in runs), f"{workers} learners"
        found = load_file(places[0] / "policy.safetensors")
        moved = sum(float((wanted[name] - before[name]).square().sum()) for name in before) ** 0.5
        apart = sum(float((wanted[name] - found[name]).square().sum()) for name in before) ** 0.5
        assert moved > 0 and apart < 0.01 * moved, f"apart by {apart:.2g}, moved by {moved:.2g}"
