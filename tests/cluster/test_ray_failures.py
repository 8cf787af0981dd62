"""What ends when one of Ray's own processes dies: one message, a known exit code, and no process left."""

import socket
import subprocess
import sys
import time

import psutil
import pytest
from ray.exceptions import ActorDiedError, LocalRayletDiedError, RayTaskError, WorkerCrashedError
from ray.train import WorkerGroupError
from ray.train.v2.api.exceptions import ControllerError

from cluster import ray_failures
from cluster.interruption import is_alive
from genrec.errors import MachineError

DIED = ActorDiedError()


def caused_by(cause: Exception) -> Exception:
    error = RuntimeError("wrapped")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        DIED,
        LocalRayletDiedError(),
        WorkerCrashedError(),
        WorkerGroupError("two workers failed", {0: ValueError("connection closed by peer"), 1: DIED}),
        ControllerError(DIED),
        RayTaskError("f", "traceback", DIED),
        caused_by(caused_by(DIED)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_death_of_a_process_is_one_message_however_it_is_wrapped(error: Exception) -> None:
    with pytest.raises(MachineError) as found, ray_failures.explaining_ray_failures("the stage sft"):
        raise error
    text = str(found.value)
    assert text.startswith("the stage sft stopped: ") and "the same command continues from here" in text
    assert "Traceback" not in text and "\n" not in text


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a mistake in the code"),
        RayTaskError("f", "traceback", ValueError("a mistake in the code")),
        WorkerGroupError("one worker failed", {0: ValueError("a mistake in the code")}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_mistake_in_the_work_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as found, ray_failures.explaining_ray_failures("the stage sft"):
        raise error
    assert found.value is error


START = """
import subprocess, sys, time
from cluster import ray_failures
from cluster.interruption import end_on_signals
import psutil, threading
end_on_signals()
ray_failures.GRACE_S = ray_failures.POLL_S = 0.05
gcs, other = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
if {told}:
    ray_failures._told.set()
print(gcs.pid, other.pid, flush=True)
ray_failures.end_when(ray_failures.OwnProcesses(psutil.Process(), ["sleep"]).look, lambda: True)
print("the run goes on")
"""


@pytest.mark.parametrize(("told", "lines"), [(False, 1), (True, 0)])
def test_a_command_ends_with_its_ray_and_says_so_once(told: bool, lines: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(told=told)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    gcs, other = map(int, process.stdout.readline().split())
    psutil.Process(gcs).kill()
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 2 and output == ""
    assert errors.count("error: Ray's sleep on this machine ended") == lines == len(errors.splitlines())
    assert not any(one.pid == other and is_alive(one) for one in psutil.process_iter())


def test_the_end_of_ray_at_the_end_of_a_run_is_no_loss() -> None:
    ray_failures.end_when(lambda: "Ray has ended", lambda: False)


def test_a_cluster_that_refuses_connections_for_long_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        look = ray_failures._refuses("127.0.0.1", port)
        assert look() is None
    now = time.monotonic()
    assert look() is None, "a moment is no loss"
    monkeypatch.setattr(ray_failures.time, "monotonic", lambda: now + ray_failures.SILENT_S + 1)
    assert look() == f"the Ray cluster at 127.0.0.1:{port} refused connections for 30 s"
