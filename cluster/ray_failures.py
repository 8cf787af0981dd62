"""Ray's own processes that die: one message, and an end within seconds, in place of tracebacks, silence or a hang.

A worker or actor that dies is replaced where it is used. What cannot be replaced ends the run: without its raylet or
its control service (GCS) Ray raises errors of many types, or ends this process after a minute without a word.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress

import psutil

from cluster import interruption
from genrec.errors import InputError, MachineError

GRACE_S = 1.0
"""Seconds in which the main thread may raise the error that Ray gives it; five times as many to end then."""
POLL_S = 0.5
SILENT_S = 30.0
"""How long the control service of a cluster may refuse connections; Ray itself gives up after a minute."""

REMEDY = (
    "if nobody killed it, memory ran out (`dmesg` names what was killed for it) or this machine was too busy for Ray "
    "to start (Ray's logs lie in /tmp/ray); the same command continues from here"
)

_told = threading.Event()
"""Set when a message has been raised."""


@contextmanager
def explaining_ray_failures(what: str) -> Generator[None]:
    """Turn an error of Ray that only says that one of its processes or nodes died into one message.

    Raises:
        MachineError: ``what`` stopped for such an error; errors of the work itself stay as they are.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (reason := loss(error)) is None:
            raise
        _told.set()
        raise MachineError(f"{what} stopped: {reason}; {REMEDY}") from error


def loss(error: BaseException) -> str | None:
    """What died, as Ray says it; None for an error of another kind. Errors inside Ray's errors are looked at, too."""
    if "ray" not in sys.modules:
        return None
    from ray import exceptions

    lost = (
        *(exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.LocalRayletDiedError),
        *(exceptions.NodeDiedError, exceptions.ObjectLostError, exceptions.RaySystemError, exceptions.RpcError),
    )
    waiting, seen = [error], list[BaseException]()
    while waiting:
        one = waiting.pop(0)
        if one in seen:
            continue
        seen.append(one)
        if isinstance(one, lost) and not getattr(one, "actor_init_failed", False):
            return f"{type(one).__name__}: {str(one).strip().splitlines()[0].rstrip('.')}"
        inner = (one.__cause__, getattr(one, "cause", None), getattr(one, "controller_failure", None))
        waiting += [other for other in (*inner, *getattr(one, "worker_failures", {}).values()) if other is not None]
    return None


@contextmanager
def ending_with_ray(is_local: bool) -> Generator[None]:
    """For the command line, around ``ray.init``: from now on this process ends, with one message, soon after its Ray.

    One of this machine has ended when its raylet or GCS has, also while it starts; one that was joined, when its GCS
    refuses connections.
    """
    import ray

    starts = threading.Event()

    def in_use() -> bool:
        return not starts.is_set() or ray.is_initialized()

    if is_local:
        _watch(OwnProcesses(psutil.Process()).look, in_use)
    try:
        yield
    finally:
        starts.set()
    if not is_local:
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        _watch(_refuses(host.strip("[]"), int(port)), in_use)


def _watch(is_lost: Callable[[], str | None], in_use: Callable[[], bool]) -> None:
    threading.Thread(target=end_when, args=(is_lost, in_use), daemon=True).start()


def end_when(is_lost: Callable[[], str | None], in_use: Callable[[], bool]) -> None:
    """Wait until ``is_lost()`` says what was lost; then end this process, unless its Ray is no longer ``in_use()``."""
    while (reason := is_lost()) is None:
        time.sleep(POLL_S)
    if in_use():  # Else the run has ended, and Ray with it.
        if told := _told.wait(GRACE_S):
            time.sleep(5 * GRACE_S)
        interruption.end_now("" if told else f"error: {reason}; {REMEDY}", code=2)


class OwnProcesses:
    """The processes of Ray that ``parent`` started, and that it cannot do without."""

    def __init__(self, parent: psutil.Process, names: Sequence[str] = ("gcs_server", "raylet")) -> None:
        self._parent, self._names, self._found = parent, names, dict[str, psutil.Process]()

    def look(self) -> str | None:
        """What ended, of those that were seen running."""
        if len(self._found) < len(self._names):
            for child in self._parent.children():
                with suppress(psutil.Error):
                    if child.name() in self._names:
                        self._found.setdefault(child.name(), child)
        dead = [name for name, process in self._found.items() if not interruption.is_alive(process)]
        return f"Ray's {dead[0]} on this machine ended, and Ray with it" if dead else None


def _refuses(host: str, port: int) -> Callable[[], str | None]:
    answered_at = time.monotonic()

    def look() -> str | None:
        nonlocal answered_at
        try:
            socket.create_connection((host, port), timeout=POLL_S * 4).close()
            answered_at = time.monotonic()
        except OSError:
            if time.monotonic() - answered_at > SILENT_S:
                return f"the Ray cluster at {host}:{port} refused connections for {SILENT_S:g} s"
        return None

    return look
