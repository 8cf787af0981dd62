"""Clusters that grow and shrink during a run: workers and rollout actors come and go, and results stay the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

from genrec.config import to_yaml

ROOT = Path(__file__).parents[2]

START = """
import sys, time
from pathlib import Path
from cluster.session import configure_process
from genrec.config import load_config

config = load_config([sys.argv[1]])
configure_process(config)
import ray
from ray.cluster_utils import Cluster

nodes = {"object_store_memory": 80 * 2**20, "num_cpus": 1}
cluster = Cluster(initialize_head=True, head_node_args=nodes)
second = cluster.add_node(**nodes)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
"""

ROLLOUTS = (
    START
    + """
from cluster.rollouts import RayRollouts, start_actors
from cluster.train import RunSpec

from genrec.data.readers import read_queries
from genrec.data.tables import to_queries

data, catalog, start = map(Path, sys.argv[2:5])
job = RunSpec(config, data, catalog, start, start=start)
policy, _, _ = job.build()
queries = to_queries(read_queries(data, "train"))[:40]
rollouts = RayRollouts(job, start_actors(job, 3))

def rolled(version):
    return rollouts.collect(rollouts.submit(queries, policy.snapshot(version)))

def wait_for(up):
    deadline = time.monotonic() + 120
    while rollouts.up != up:
        assert time.monotonic() < deadline, rollouts.up
        rolled(0)

def require_equal(groups, version):
    for ours, theirs in zip(groups, expected, strict=True):
        assert ours.query == theirs.query and ours.version == version
        assert (ours.items_G == theirs.items_G).all() and (ours.logp_GL == theirs.logp_GL).all()

expected = rolled(0)
wait_for(2)
assert rollouts.up == 2, "the third has no room yet"
cluster.add_node(**nodes)
wait_for(3)
homes = ray.get([a.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()) for a in rollouts.actors])
assert len(set(homes)) == 3, homes
ticket = rollouts.submit(queries, policy.snapshot(1))
cluster.remove_node(second, allow_graceful=False)
require_equal(rollouts.collect(ticket), 1)
require_equal(rolled(2), 2)
assert rollouts.up == 2
cluster.add_node(**nodes)
wait_for(3)
require_equal(rolled(3), 3)
print("the same groups")
ray.shutdown()
cluster.shutdown()
"""
)

LEARNERS = (
    START
    + """
import threading
from functools import partial
import ray.train
from cluster.train import RayCheckpoints, train_on_ray

out = Path(sys.argv[2])
worlds = out / "worlds"
worlds.mkdir(parents=True)

def count(where):
    # A step is a checkpoint. The run ends when it had one, two, three and two workers, whatever it takes.
    import json, time
    import ray.train
    checkpoints, context = RayCheckpoints(str(where)), ray.train.get_context()
    with checkpoints.latest() as directory:
        step = json.loads((directory / "step.json").read_text())["step"] if directory else 0
    while True:
        step += 1
        checkpoints.save(lambda path: (path / "step.json").write_text(json.dumps({"step": step})), {"step": step})
        if context.get_world_rank() == 0:
            with (where / "worlds" / "steps").open("a") as file:
                print(step, context.get_world_size(), file=file)
        if (where / "worlds" / "end").exists():
            return
        time.sleep(0.3)

def seen():
    file = worlds / "steps"
    return [tuple(map(int, line.split())) for line in file.read_text().splitlines()] if file.exists() else []

def wait_for(world):
    deadline = time.monotonic() + 150
    while not seen() or seen()[-1][1] != world:
        assert time.monotonic() < deadline, seen()
        time.sleep(0.5)

ray.train.ScalingConfig = partial(ray.train.ScalingConfig, elastic_resize_monitor_interval_s=2.0)
# Nodes can be added in the main thread alone.
training = threading.Thread(target=lambda: train_on_ray(partial(count, out), config, out, "count", 3, at_least=1))
training.start()
wait_for(2)
third = cluster.add_node(**nodes)
wait_for(3)
cluster.remove_node(third, allow_graceful=False)
wait_for(2)
(worlds / "end").touch()
training.join()
steps = seen()
sizes = [world for place, (_, world) in enumerate(steps) if not place or steps[place - 1][1] != world]
assert sizes == [2, 3, 2], sizes
last = [step for place, (step, world) in enumerate(steps) if place + 1 == len(steps) or steps[place + 1][1] != world]
first = [step for place, (step, world) in enumerate(steps) if not place or steps[place - 1][1] != world]
assert all(0 < begun <= ended + 1 for begun, ended in zip(first[1:], last)) and min(first[1:]) > 1, (first, last)
print("went on", sizes, first, last)
ray.shutdown()
cluster.shutdown()
"""
)


FULL = (
    START
    + """
import os, subprocess

def full(folder, *more):
    folder.mkdir()
    command = [sys.executable, "-m", "workflows.full", sys.argv[1], f"storage={folder}/storage", *more]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "RAY_ADDRESS": cluster.address})

def wait_for(text, run, log):
    deadline = time.monotonic() + 300
    while text not in log.read_text():
        assert run.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)

third = cluster.add_node(**nodes)
place = Path(sys.argv[2])
run = full(place / "three")
wait_for("[grpo] step", run, place / "three" / "log")
cluster.remove_node(third, allow_graceful=False)
cluster.add_node(**nodes)
assert run.wait() == 0, (place / "three" / "log").read_text()[-3000:]
one = full(place / "one", "compute.workers=0", "compute.rollout_actors=0", "compute.data_actors=0")
assert one.wait() == 0, (place / "one" / "log").read_text()[-3000:]
print("both ended")
ray.shutdown()
cluster.shutdown()
"""
)


def run(script: str, config: Path, *paths: Path) -> str:
    """What a script printed that has a Ray of its own, as ``Cluster`` ends every Ray of its process."""
    file = config.with_name("script.py")
    file.write_text(script)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, str(file), str(config), *map(str, paths)]
    done = subprocess.run(
        command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_that_join_bring_rollout_actors_and_one_that_is_lost_changes_no_group(tmp_path: Path) -> None:
    shop = chain_shop(tmp_path / "shop")
    config = tiny_config(tmp_path / "storage", shop, "learning.sft.epochs=1", "compute.rollout_cpus=1")
    paths = [made(config, stage).path for stage in ("prepare", "assign", "sft")]
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert "the same groups" in run(ROLLOUTS, tmp_path / "config.yaml", *paths)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_join_and_leave_and_training_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    shop = chain_shop(tmp_path / "shop")
    keys = ("compute.workers=3", "compute.min_workers=1", "compute.worker_cpus=1", "compute.max_failures=3")
    config = tiny_config(tmp_path / "storage", shop, "learning.rl.queries=12", *keys)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert "went on [2, 3, 2]" in run(LEARNERS, tmp_path / "config.yaml", tmp_path / "out")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_on_three_nodes_that_loses_one_and_gains_one_gives_the_tables_of_one_process(tmp_path: Path) -> None:
    shop = chain_shop(tmp_path / "shop")
    keys = ["compute.workers=1", "compute.rollout_actors=2", "compute.data_actors=1", "compute.in_process_below_mb=0"]
    keys += ["compute.worker_cpus=1", "compute.rollout_cpus=0.5", "compute.data_cpus=0.5", "compute.max_failures=3"]
    keys += ["learning.rl.steps=12", "data.shards=4", "policy.dropout=0.0"]
    (tmp_path / "config.yaml").write_text(to_yaml(tiny_config(tmp_path / "storage", shop, *keys)))
    assert "both ended" in run(FULL, tmp_path / "config.yaml", tmp_path)
    three, one = (tmp_path / name / "storage" for name in ("three", "one"))
    tables = [json.loads((storage / "runs/tiny/metrics.json").read_text()) for storage in (three, one)]
    for name in ("model", "sft", "sid_path", "baselines", "spread"):
        assert tables[0][name] == tables[1][name], name
    weights = [next(storage.glob("grpo/*/policy.safetensors")).read_bytes() for storage in (three, one)]
    assert weights[0] == weights[1]
