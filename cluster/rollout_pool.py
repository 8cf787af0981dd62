"""Rollout actors that come and go: which of them are up, and how many requests each has open.

A run asks for ``compute.rollout_actors`` of them and begins with those for which the cluster has room. The others wait
for room as Ray's demand, which an autoscaler sees, and get requests from when they are up. An actor that failed, or
whose node was taken away, gets none until it is up again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genrec.errors import InputError

LOG = logging.getLogger(__name__)

SETTLE_S = 5.0
"""How long the first actor of a run waits for the others: on one machine they start within seconds of each other."""
ASK_AGAIN_S = 1.0
"""Between two questions to an actor that failed: Ray answers them for it while it starts it again."""
PATIENCE_S = 600.0
"""How long a request is sent again after its first failure, and how long actors may all fail: time for a new actor, an
end for a request that kills actors."""
TRIES = 4
"""Actors that a request may find hanging, each with twice the time of the one before."""


@dataclass
class Request:
    """A call of a rollout actor: the method and its arguments, the actor it was last sent to, and its future answer.

    ``sent_at`` is the time of sending on the monotonic clock, ``hung`` the number of actors that hung on it.
    """

    method: str
    arguments: tuple[Any, ...]
    actor: int
    answer: Any
    sent_at: float
    hung: int = 0


class RolloutPool:
    """Sends each request to the least busy of the actors that are up.

    Args:
        actors: their handles; learners may share them.
        timeout_s: within which an actor that has work answers something (``compute.rollout_timeout_s``).
    """

    def __init__(self, actors: Sequence[Any], timeout_s: float) -> None:
        self.actors, self._timeout_s = actors, timeout_s
        self._open: list[list[Any]] = [[] for _ in actors]
        self._is_up = [False] * len(actors)
        # Futures that are there when their actors are.
        self._asked: list[Any] = [actor.__ray_ready__.remote() for actor in actors]
        self._up_at, self._failed_at, self._answered_at = ([0.0] * len(actors) for _ in range(3))
        self._error: Exception | None = None
        self._has_begun = False

    @property
    def up(self) -> int:
        """The number of actors that were up at the last look."""
        return sum(self._is_up)

    def send(self, method: str, arguments: tuple[Any, ...], hung: int = 0) -> Request:
        """Call ``method`` of the least busy actor that is up; waits until one is.

        Raises:
            InputError: an actor could not be built, or none came up in the time that ``TRIES`` hanging ones may take.
            ray.exceptions.RayActorError: all actors failed for ``PATIENCE_S``, or one cannot be started again.
        """
        index = self._least_busy()
        answer = getattr(self.actors[index], method).remote(*arguments)
        self._open[index].append(answer)
        return Request(method, arguments, index, answer, time.monotonic(), hung)

    def silent_s(self, request: Request) -> float:
        """Seconds since the request's actor answered anything, or since the request was sent."""
        self._note_answers(request.actor)
        return time.monotonic() - max(request.sent_at, self._answered_at[request.actor])

    def note_failure(self, request: Request, error: Exception) -> None:
        """The request's actor did not survive it, or its node is gone: it gets none until it is up again.

        Raises:
            InputError: it never was up, since it could not be built.
            ray.exceptions.RayActorError: it could not be built again.
        """
        if request.sent_at >= self._up_at[request.actor]:  # else the actor was started again since
            self._note_gone(request.actor, error)

    def _note_gone(self, actor: int, error: Exception) -> None:
        if getattr(error, "actor_init_failed", False):
            if self._up_at[actor]:
                raise error
            raise InputError(f"a rollout actor could not be built: {_reason(error)}") from None
        self._error, self._failed_at[actor], self._asked[actor] = error, time.monotonic(), None
        if self._is_up[actor]:
            self._is_up[actor] = False
            LOG.warning("a rollout actor is gone, %d of %d are up", self.up, len(self.actors))

    def _least_busy(self) -> int:
        self._look()
        if not self.up:
            self._wait_for_one()
        for actor in range(len(self.actors)):
            self._note_answers(actor)
        return min((actor for actor, up in enumerate(self._is_up) if up), key=lambda actor: len(self._open[actor]))

    def _look(self) -> None:
        """Note which of the actors that were not up answer now."""
        import ray
        from ray.exceptions import RayActorError

        for actor, asked in enumerate(self._asked):
            if self._is_up[actor]:
                continue
            if asked is None:
                if time.monotonic() - self._failed_at[actor] > ASK_AGAIN_S:
                    self._asked[actor] = self.actors[actor].__ray_ready__.remote()
            elif ray.wait([asked], timeout=0)[0]:
                try:
                    ray.get(asked)
                except RayActorError as error:
                    self._note_gone(actor, error)
                    continue
                self._is_up[actor], self._open[actor] = True, []
                self._up_at[actor] = self._answered_at[actor] = time.monotonic()
                if self._has_begun:
                    LOG.info("a rollout actor joins, %d of %d are up", self.up, len(self.actors))

    def _wait_for_one(self) -> None:
        begun, limit_s = time.monotonic(), self._timeout_s * (2**TRIES - 1)
        step_s, said_at, up_at = 0.02, begun, None
        while not self.up or (up_at is not None and time.monotonic() - up_at < SETTLE_S):
            time.sleep(step_s)
            step_s = min(1.3 * step_s, 0.5)
            self._look()
            now = time.monotonic()
            if self.up == len(self.actors):
                break
            if self.up:
                up_at = up_at or (now - SETTLE_S if self._has_begun else now)
                continue
            if self._error is not None and not any(self._asked) and now - begun > PATIENCE_S:
                raise self._error
            if now - begun > limit_s:
                raise InputError(
                    f"{len(self.actors)} rollout actors answered nothing for {now - begun:.0f} s; "
                    "the cluster has no room for them, or they hang: lower compute.rollout_cpus or rollout_gpus, or "
                    "raise compute.rollout_timeout_s where nodes take longer to come"
                )
            if now - said_at > 60:
                said_at = now
                LOG.warning("no rollout actor is up since %.0f s: waiting for room or a start", now - begun)
        self._has_begun = True

    def _note_answers(self, actor: int) -> None:
        """Close the requests that ``actor`` has answered since the last look, or failed to."""
        import ray

        waiting = self._open[actor]
        if not waiting:
            return
        self._open[actor] = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)[1]
        if len(self._open[actor]) < len(waiting):
            self._answered_at[actor] = time.monotonic()


def _reason(error: BaseException) -> str:
    """The message of what an actor's constructor raised: the lines after the traceback, which is indented."""
    lines = str(error).splitlines()
    last = max((number for number, line in enumerate(lines) if line.startswith(" ")), default=-1)
    kind, _, message = " ".join(lines[last + 1 :]).partition(": ")
    return message if kind.endswith("InputError") else f"{kind}: {message}"
