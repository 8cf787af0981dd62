"""The benchmark of reinforcement learning at a small size, with two rollout actors."""

import json

import pytest

from benchmarks import rl
from genrec.config import load_config

pytestmark = pytest.mark.benchmark


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_benchmark_gives_every_figure() -> None:
    size = rl.RlSize(layers=1, hidden=32, items=200, history=4, queries=4, step_queries=16, chunk=2, rounds=1)
    found = json.loads(rl.measure(load_config([], ["compute.threads=1", "learning.rl.group=4"]), size).as_json())
    assert {"grpo_over_sft_step", "vs_public_design", "snapshot_share"} <= set(found["ratios"])
    assert all(value > 0 for value in found["ratios"].values())
    curve = [found["figures"][f"sim_fast_prompts_per_s_{actors}"] for actors in rl.ACTORS]
    assert len(curve) == 7 and curve[-1] >= curve[0]
