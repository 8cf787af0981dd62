"""Processes killed at random: what is a victim, when it is its turn, and what two runs must have in common."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import chaos
from benchmarks.victims import draw, kind_of, session_members, sweep
from genrec.seeds import generator_of

SLEEPER = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print(flush=True); sys.stdin.read()"


@pytest.mark.parametrize(
    ("command_line", "kind"),
    [
        ("/venv/bin/python -m workflows.cli full /tmp/calm.yaml ", "driver"),
        ("ray::RayTrainWorker ", "learner"),
        ("ray::RolloutWorker.__init__ ", "rollout_actor"),
        ("ray::MapWorker(Map(_Actor)).submit ", "data_actor"),
        ("ray::TrainController.run ", "controller"),
        ("ray::IDLE ", "idle_worker"),
        ("ray::_StatsActor ", "helper"),
        ("ray::DashboardAgent ", "agent"),
        ("python -u /ray/_private/log_monitor.py --session-dir=/tmp ", "agent"),
        ("/ray/core/src/ray/raylet/raylet --raylet_socket_name=x --python_worker_command=default_worker.py ", "raylet"),
        ("/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp ", "gcs"),
        ("python -u /ray/_private/workers/default_worker.py --raylet-name=/tmp/sockets/raylet ", "starting_worker"),
        ("python -c from multiprocessing.resource_tracker import main;main(45) ", None),
    ],
)
def test_a_process_is_known_by_its_command_line(command_line: str, kind: str | None) -> None:
    assert kind_of(command_line) == kind


def test_only_processes_of_the_session_are_found_and_all_of_them_are_swept() -> None:
    other = subprocess.Popen(["sleep", "60"])
    parent = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert parent.stdout is not None and parent.stdin is not None
        parent.stdout.readline()
        members = {process.pid for process in session_members(parent.pid)}
        assert len(members) == 2 and parent.pid in members and not members & {other.pid, os.getpid()}
        parent.kill()
        parent.wait()
        assert sweep(parent.pid, timeout_s=0) == ["sleep 60"], "the child outlived its parent, in the same session"
        assert not list(session_members(parent.pid)) and other.poll() is None
    finally:
        for process in (other, parent):
            process.kill()
            process.communicate()


def test_kinds_are_drawn_evenly_however_many_processes_they_have_and_each_seed_draws_its_own() -> None:
    kinds = {"learner": [1], "idle_worker": [2, 3, 4, 5, 6]}
    rng = generator_of("chaos", 0, 1)
    drawn = [draw(kinds, rng) for _ in range(1000)]  # type: ignore[arg-type]
    counts = Counter(one[0] for one in drawn if one)
    assert counts.total() == 1000 and 400 < counts["learner"] < 600
    assert {one[1] for one in drawn if one} == {1, 2, 3, 4, 5, 6}
    assert draw({}, rng) is None
    gaps = [chaos.moments(generator_of("chaos", 0, number), 30.0) for number in (1, 1, 2)]
    first, again, other = ([gap() for _ in range(20)] for gap in gaps)
    assert first == again != other and 0 <= min(first) < max(first) <= 30


def storage(path: Path, *, loss: float = 0.5, seconds: float = 1.0, weights: bytes = b"w") -> Path:
    stage = path / "sft" / "abc"
    stage.mkdir(parents=True)
    metrics = {"loss": loss, "wall_s": seconds, "fits": [{"seconds": seconds, "peak_rss_mb": seconds}]}
    (stage / "manifest.json").write_text(json.dumps({"metrics": metrics}))
    (stage / "config.yaml").write_text(f"storage: {path}\nname: x\n")
    (stage / "policy.safetensors").write_bytes(weights)
    for name in ("stage.log", "report.html", ".manifest.json.1.tmp", "abc.lock"):
        (stage / name).write_text(str(seconds))
    return path


def test_runs_are_compared_without_times_paths_and_logs(tmp_path: Path) -> None:
    calm = chaos.digests(storage(tmp_path / "calm"))
    assert set(calm) == {f"sft/abc/{name}" for name in ("manifest.json", "config.yaml", "policy.safetensors")}
    assert chaos.different(calm, chaos.digests(storage(tmp_path / "slow", seconds=9.0))) == []
    other = chaos.digests(storage(tmp_path / "other", loss=0.6, weights=b"v"))
    assert chaos.different(calm, other) == ["sft/abc/manifest.json", "sft/abc/policy.safetensors"]
    more = chaos.digests(storage(tmp_path / "more")) | {"grpo/abc.partial/x": ""}
    assert chaos.different(calm, more) == ["grpo/abc.partial/x"]


@pytest.mark.benchmark
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.skipif("GENREC_SLOW_TESTS" not in os.environ, reason="minutes; GENREC_SLOW_TESTS=1 runs it")
def test_a_run_that_is_killed_again_and_again_has_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), "bench.minutes=1", "bench.kills=12")
    found = chaos.run(config.replace({"compute.rollout_cpus": 0.25}), {})
    assert found.failure == "" and found.figures["files_differ"] == 0 and found.figures["files_compared"] > 30
    assert found.figures["kills"] > 0 and found.figures["hangs"] == 0
    assert "SIGKILL to" in found.table()
