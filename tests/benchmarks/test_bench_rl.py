"""The benchmark of reinforcement learning at a small size, and its simulation where the answer is known."""

import json

import pytest

from benchmarks import rl
from benchmarks.throughput_model import Service
from genrec.config import load_config
from workflows.bench import NEEDS


def test_actors_raise_the_throughput_until_the_learner_never_waits() -> None:
    service = Service(request_s=[1.0], requests=64, learn_s=8.0, mail_s=0.0)
    found = [service.prompts_per_s(64, actors, max_staleness=1, steps=200) for actors in (1, 2, 4, 8, 16, 64)]
    assert found == pytest.approx([1.0, 2.0, 4.0, 8.0, 8.0, 8.0], rel=0.02)
    assert service.saturating(64, range(1, 65), max_staleness=1) == 8
    assert Service([1.0], 64, 0.5, 0.0).saturating(64, range(1, 65), max_staleness=1) == 0


def test_without_staleness_the_learner_waits_for_each_batch_and_its_snapshot() -> None:
    service = Service(request_s=[1.0, 3.0], requests=4, learn_s=2.0, mail_s=0.5)
    assert service.prompts_per_s(4, 4, max_staleness=0) == pytest.approx(4 / (2.0 + 3.5))
    assert service.prompts_per_s(4, 1, max_staleness=0) == pytest.approx(4 / (2.0 + 8.5))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_benchmark_gives_every_figure() -> None:
    assert "rl" in NEEDS
    size = rl.RlSize(layers=1, hidden=32, items=200, history=4, queries=4, step_queries=16, chunk=2, rounds=1)
    found = json.loads(rl.run(load_config([], ["compute.threads=1", "learning.rl.group=4"]), size).as_json())
    assert {"grpo_over_sft_step", "vs_public_design", "snapshot_share"} <= set(found["ratios"])
    assert all(value > 0 for value in found["ratios"].values())
    curve = [found["figures"][f"sim_fast_prompts_per_s_{actors}"] for actors in rl.ACTORS]
    assert len(curve) == 7 and curve[-1] >= curve[0]
