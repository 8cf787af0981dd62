"""Processes killed at random: what is a victim, when it is its turn, and what two runs must have in common."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import chaos
from benchmarks.victims import KINDS, draw, kind_of, session_members, sweep
from genrec.errors import InputError
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
        while not all(psutil.Process(member).cmdline() for member in members):  # Linux tells it soon after an exec.
            time.sleep(0.01)
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
    drawn = [draw(kinds, rng) for _ in range(1200)]  # type: ignore[arg-type]
    counts = Counter(one[0] for one in drawn if one)
    expected = 1200 / (len(KINDS) + 1)
    assert all(0.5 * expected < counts[kind] < 1.5 * expected for kind in kinds) and counts.keys() == kinds.keys()
    assert {one[1] for one in drawn if one} == {1, 2, 3, 4, 5, 6}
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


COUNTING = """
import sys, time
from pathlib import Path
tries = Path(sys.argv[1]).with_suffix("") / "tries"
tries.parent.mkdir(exist_ok=True)
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
{then}
"""


def attempts(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    killer: chaos.Killer | None = None,
    silence_s: float = 60.0,
) -> chaos.Attempts:
    """Attempts of a script that counts its starts in ``round/tries``, and then does ``then``."""
    monkeypatch.setattr(chaos, "command", lambda file: [sys.executable, "-c", COUNTING.format(then=then), str(file)])
    monkeypatch.setattr(chaos, "by_kind", lambda processes: {"driver": found} if (found := list(processes)) else {})
    monkeypatch.setattr(chaos, "draw", lambda kinds, rng: next(((k, found[0]) for k, found in kinds.items()), None))
    config = tiny_config(path, path, f"bench.silence_s={silence_s}")
    return chaos.Attempts(config, path / "round", None, chaos.Tally(), killer)


def killer() -> chaos.Killer:
    return chaos.Killer(generator_of("chaos", 0), lambda: 0.0, float("inf"))


def test_a_command_is_started_again_until_it_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    then = "time.sleep(0.0 if len(tries.read_text()) >= 3 else 60)"
    run = attempts(tmp_path, monkeypatch, then, killer())
    run.run()
    restarts = run.tally.restarts
    assert restarts >= 2 and (tmp_path / "round" / "tries").read_text() == "x" * (restarts + 1)
    assert run.tally.kills == {("driver", "prepare"): restarts}
    assert (run.tally.alone, run.tally.hangs, run.tally.orphans) == (0, [], [])


def test_a_command_that_is_silent_after_a_kill_hangs_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = "import subprocess; subprocess.Popen(['sleep', '60'])"
    then = f"{child}\nif len(tries.read_text()) == 1: time.sleep(60)"
    run = attempts(tmp_path, monkeypatch, then, killer(), silence_s=3.0)
    monkeypatch.setattr(chaos, "draw", lambda kinds, rng: ("raylet", Immortal()))
    monkeypatch.setattr(chaos, "sweep", lambda session: sweep(session, timeout_s=0))
    run.run()
    assert run.tally.hangs == ["prepare, after raylet in prepare was killed"]
    assert run.tally.restarts == 1 and run.tally.orphans == ["sleep 60"] * 2


class Immortal:
    """Stands for a process without which the command goes on, and does nothing."""

    def kill(self) -> None:
        pass


def test_a_command_that_fails_by_itself_ends_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"ended 3 times although nothing was killed, at last with exit code 7: (.|\n)*odd"
    ):
        attempts(tmp_path, monkeypatch, "print('odd', file=sys.stderr); sys.exit(7)").run()
    with pytest.raises(InputError, match=r"wrote nothing for 1 s in prepare although nothing was killed"):
        attempts(tmp_path, monkeypatch, "time.sleep(60)", silence_s=1.0).run()


@pytest.mark.parametrize("faults", [(["a.json"], []), ([], ["sft, after gcs in sft was killed"])])
def test_a_difference_or_a_hang_is_a_failure_of_the_benchmark(faults: tuple[list[str], list[str]]) -> None:
    differ, hangs = faults
    tally = chaos.Tally(Counter({("gcs", "sft"): 2, ("driver", "grpo"): 1}), restarts=3, hangs=hangs)
    found = chaos.report(1, tally, 49, differ)
    assert (
        found.figures["kills"] == 3 and found.figures["kills/gcs"] == 2 and found.figures["files_differ"] == len(differ)
    )
    assert (differ or hangs)[0] in found.failure and chaos.report(1, chaos.Tally(), 49, []).failure == ""
    assert found.table().splitlines()[-1].split() == ["gcs", "2", "0"]


@pytest.mark.benchmark
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_has_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), "bench.minutes=1", "bench.kills=12")
    found = chaos.run(config.replace({"compute.rollout_cpus": 0.25}), {})
    assert found.failure == "" and found.figures["files_differ"] == 0 and found.figures["files_compared"] > 30
    assert found.figures["kills"] > 0 and found.figures["hangs"] == 0
    assert "SIGKILL to" in found.table()
