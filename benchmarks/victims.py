"""The processes of a run on Ray: which there are, what each is, and one of them drawn to be killed.

A command is started in a session of its own (``setsid``). All that it starts stays in it, also when the parent is dead,
and nothing else ever joins it: so a process belongs to the command exactly when its session does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import psutil

from cluster.interruption import is_alive

KINDS: Mapping[str, str] = {
    "learner": r"^ray::(\S*RayTrainWorker|\S*_wrapped_loop)",
    "rollout_actor": r"^ray::\S*RolloutWorker",
    "data_actor": r"^ray::\S*MapWorker",
    "controller": r"^ray::TrainController",
    "idle_worker": r"^ray::IDLE",
    "agent": r"^ray::(DashboardAgent|RuntimeEnvAgent)|/(log_monitor|monitor|dashboard|agent|main)\.py ",
    "helper": r"^ray::",
    "gcs": r"^\S*/gcs_server ",
    "raylet": r"^\S*/raylet ",
    "starting_worker": r"/(default|setup)_worker\.py ",
    "driver": r" -m workflows\.",
}
"""The kinds of processes, each with the pattern of its command line; the first that fits is a process's kind."""

NODE = "node"
"""The kind of a whole node that is lost; its process is the raylet."""


def kind_of(command_line: str) -> str | None:
    """What a process is, by its command line; None for what is not named in ``KINDS``, such as a resource tracker."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, command_line)), None)


def session_members(session: int) -> Iterator[psutil.Process]:
    """The living processes of ``session``, the process id of the command that was started in it."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and is_alive(process):
                yield process


def by_kind(processes: Iterator[psutil.Process]) -> dict[str, list[psutil.Process]]:
    """The processes whose kind is known, by kind."""
    found: dict[str, list[psutil.Process]] = {}
    for process in processes:
        with suppress(psutil.Error):
            if (kind := kind_of(" ".join(process.cmdline()) + " ")) is not None:
                found.setdefault(kind, []).append(process)
    return found


def draw(kinds: Mapping[str, Sequence[psutil.Process]], rng: np.random.Generator) -> tuple[str, psutil.Process] | None:
    """A kind, each as likely as any other, and one of its processes; None where there is none of that kind.

    So a driver that has started nothing yet is not killed each time because it is alone.
    """
    known = (*KINDS, NODE)
    kind = known[int(rng.integers(len(known)))]
    processes = kinds.get(kind, ())
    return (kind, processes[int(rng.integers(len(processes)))]) if processes else None


def sweep(session: int, timeout_s: float = 10.0) -> list[str]:
    """Kill what is left of ``session``; returns the command lines of those that were still there after ``timeout_s``.

    Ray's processes notice within seconds that their driver is gone; the ones that do not are orphans.
    """
    _, orphans = psutil.wait_procs(list(session_members(session)), timeout=timeout_s)
    lines: list[str] = []
    while orphans:
        for process in orphans:
            with suppress(psutil.Error):
                lines.append(" ".join(process.cmdline()))
                process.kill()
        psutil.wait_procs(orphans, timeout=5)
        orphans = list(session_members(session))
    return lines


class HostedNodes:
    """Context manager: a Ray cluster of two nodes on this machine, whose second one can be lost.

    The head stays: without its GCS there is no cluster that a command could join again. An agent is none of the
    victims here, since a raylet ends with its agents.
    """

    def __init__(self, object_store_mb: int, cpus: int = 2) -> None:
        self._options: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": object_store_mb * 2**20}

    def __enter__(self) -> HostedNodes:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=True, head_node_args=self._options)
        self._second = self._cluster.add_node(**self._options)
        self.address = str(self._cluster.address)
        return self

    def __exit__(self, *raised: object) -> None:
        self._cluster.shutdown()

    def victims(self) -> dict[str, list[psutil.Process]]:
        """The workers of both nodes by kind, and as ``NODE`` the second one's raylet."""
        found: dict[str, list[psutil.Process]] = {}
        for node in (self._cluster.head_node, self._second):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for kind, workers in by_kind(iter(raylet.children(recursive=True))).items():
                if kind != "agent":
                    found.setdefault(kind, []).extend(workers)
            if node is self._second:
                found[NODE] = [raylet]
        return found

    def replace_second(self) -> None:
        """Lose the second node, all of its processes by SIGKILL at once, and add a new one."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(**self._options)
