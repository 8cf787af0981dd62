"""Telemetry of a GRPO run: Ray metrics, the trackers of the config, and figures for its progress lines.

None of it enters the result: these figures depend on the machine, the curve does not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import TYPE_CHECKING, Any

from cluster.trackers import NAMES, TRACKERS, MetricLogger
from genrec.config import Config

if TYPE_CHECKING:
    from genrec.types import Group, Query, Rollouts, Snapshot

LOG = logging.getLogger(__name__)

GAUGES = {
    "rollouts_per_s": "candidates that this learner was handed per second",
    "queue_age_s": "seconds from the request for a batch to its use",
    "staleness": "versions between a batch's snapshot and its update",
}
WAITING, FLUSH_S = 1000, 5.0
"""Steps that wait for a slow logger at most; seconds that the end of a run waits for it."""

UTILISATION = "share of the time that this process worked: a learner that did not wait, an actor that was not idle"


class TimedRollouts:
    """Rollouts that measure how long the learner waits for them (``Rollouts`` protocol)."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts
        self._made, self._waited_s, self._age_s, self._since = 0, 0.0, 0.0, time.monotonic()

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> tuple[float, Any]:
        """Request groups; the ticket holds the time of the request."""
        with self._waiting() as start:
            return start, self._rollouts.submit(queries, policy)

    def collect(self, ticket: tuple[float, Any]) -> list[Group]:
        """Wait for the groups of ``ticket``."""
        with self._waiting() as now:
            self._age_s = now - ticket[0]
            groups = self._rollouts.collect(ticket[1])
        self._made += sum(len(group.items_G) for group in groups)
        return groups

    def figures(self) -> dict[str, float]:
        """Rollouts/s and the learner's utilisation since the last call, and the age of the last batch."""
        now = time.monotonic()
        elapsed_s = max(now - self._since, 1e-9)
        found = {
            "rollouts_per_s": self._made / elapsed_s,
            "queue_age_s": self._age_s,
            "learner_utilisation": max(0.0, 1 - self._waited_s / elapsed_s),
        }
        self._made, self._waited_s, self._since = 0, 0.0, now
        return found

    @contextmanager
    def _waiting(self) -> Generator[float]:
        start = time.monotonic()
        try:
            yield start
        finally:
            self._waited_s += time.monotonic() - start


class Telemetry:
    """Gives each update's measurements, and the machine's part in them, to every sink (``Callback``)."""

    def __init__(self, rollouts: TimedRollouts, sinks: Sequence[BackgroundLogger]) -> None:
        self._rollouts, self._sinks = rollouts, sinks

    def __call__(self, record: Mapping[str, float]) -> Mapping[str, float]:
        """Returns the machine's part; there is none in a validation that came later than its update."""
        figures = self._rollouts.figures() if "staleness" in record else {}
        for sink in self._sinks:
            sink(int(record["step"]), {**record, **figures})
        return figures

    def close(self, timeout_s: float = FLUSH_S) -> None:
        """Let the sinks write what waits, for ``timeout_s`` at most, all together."""
        deadline = time.monotonic() + timeout_s
        for sink in self._sinks:
            sink.close(max(0.0, deadline - time.monotonic()))


def metric_loggers(config: Config, out: Path, *, rank: int) -> list[BackgroundLogger]:
    """Where a learner's figures go: Ray metrics on a cluster; from rank 0 the trackers of ``compute.trackers``."""
    found = [BackgroundLogger("Ray's metrics", partial(ray_metrics, rank))] if config.compute.workers else []
    if rank == 0:
        found += [
            BackgroundLogger(NAMES[name], partial(TRACKERS[name], config, out)) for name in config.compute.trackers
        ]
    return found


class BackgroundLogger:
    """A ``MetricLogger`` in a thread of its own: a slow or broken server neither delays an update nor ends the run.

    ``connect`` gives a context manager whose value takes the figures; it is entered in the thread. The first thing that
    goes wrong is logged, once. When ``WAITING`` steps wait, those that come are left out.
    """

    def __init__(self, name: str, connect: Callable[[], AbstractContextManager[MetricLogger]]) -> None:
        self._name, self._connect, self._said = name, connect, False
        self._queue: Queue[tuple[int, dict[str, float]] | None] = Queue(WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __call__(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand in the figures of a step; returns at once."""
        try:
            self._queue.put_nowait((step, dict(figures)))
        except Full:
            self._say(f"is too slow or gone: figures from step {step} on are left out")

    def close(self, timeout_s: float) -> None:
        """Write what waits, for ``timeout_s`` at most."""
        deadline = time.monotonic() + timeout_s
        if self._thread.is_alive():
            with suppress(Full):
                self._queue.put(None, timeout=timeout_s)
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                self._say(f"did not take the last figures within {timeout_s:g} s: they are left out")

    def _work(self) -> None:
        try:
            with self._connect() as write:
                while (item := self._queue.get()) is not None:
                    try:
                        write(*item)
                    except Exception as error:
                        self._say(f"refused the figures of step {item[0]}: {error}")
        except Exception as error:
            self._say(f"cannot be used: {error}")

    def _say(self, what: str) -> None:
        if not self._said:
            self._said = True
            LOG.warning("%s %s (the run goes on; this is said once)", self._name, what)


@contextmanager
def ray_metrics(rank: int) -> Generator[MetricLogger]:
    """Gauges ``genrec_<figure>``, and ``genrec_utilisation`` by role."""
    from ray.util.metrics import Gauge

    tags = {"rank": str(rank)}
    gauges = {name: Gauge(f"genrec_{name}", about, ("rank",)) for name, about in GAUGES.items()}
    utilisation = Gauge("genrec_utilisation", UTILISATION, ("role",))

    def write(step: int, figures: Mapping[str, float]) -> None:
        if "staleness" not in figures:
            return
        for name, gauge in gauges.items():
            gauge.set(figures[name], tags)
        utilisation.set(figures["learner_utilisation"], {"role": "learner"})

    yield write


class UtilisationGauge:
    """Context manager around an actor's requests: its utilisation, from one request's end to the next one's."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._gauge = Gauge("genrec_utilisation", UTILISATION, ("role",))
        self._start = self._end = time.monotonic()

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *error: object) -> None:
        now = time.monotonic()
        self._gauge.set((now - self._start) / max(now - self._end, 1e-9), {"role": "rollout"})
        self._end = now
