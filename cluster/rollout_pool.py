"""Rollout actors that come and go, and the requests that wait for them: each goes to the first actor that has room.

A run asks for ``compute.rollout_actors`` of them and begins with those for which the cluster has room. The others wait
for room as Ray's demand, which an autoscaler sees, and get requests from when they are up. An actor that failed, or
whose node was taken away, gets none until it is up again, and what it had not answered goes to the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from genrec.errors import InputError

LOG = logging.getLogger(__name__)

AHEAD = 2
"""Requests that an actor holds: the one that it answers, and one whose snapshot reaches it meanwhile. The others wait
here, so that a slow actor takes fewer of them than a fast one."""
SETTLE_S = 5.0
"""Actors that come so soon after the first one of a run are not worth a line of the log."""
LOOK_S = 0.05
"""Between two looks at what was sent since, and at actors that are not up or say nothing."""
ASK_AGAIN_S = 1.0
"""Between two questions to an actor that failed: Ray answers them for it while it starts it again."""
PATIENCE_S = 600.0
"""How long a request is sent again after its first failure, and how long actors may all fail: time for a new actor, an
end for a request that kills actors."""
TRIES = 4
"""Actors that a request may find hanging, each with twice the time of the one before."""


@dataclass(eq=False)
class Request:
    """A call of a rollout actor: the method, its arguments and the answer that will come.

    ``reference`` is Ray's of the last sending, to ``actor``, at ``sent_at`` on the monotonic clock. ``failed_at`` is
    the time of its first failure, 0 before, and ``hung`` the number of actors that hung on it.
    """

    method: str
    arguments: tuple[Any, ...]
    answer: Future[Any] = field(default_factory=Future[Any])
    reference: Any = None
    actor: int = 0
    sent_at: float = 0.0
    failed_at: float = 0.0
    hung: int = 0


class RolloutPool:
    """Hands out requests, in their order, to the least busy actor that is up; a thread does so while any waits.

    Args:
        actors: their handles; learners may share them.
        timeout_s: within which an actor that has work answers something (``compute.rollout_timeout_s``).
    """

    def __init__(self, actors: Sequence[Any], timeout_s: float) -> None:
        self.actors, self._timeout_s = actors, timeout_s
        self._lock, self._thread = threading.Lock(), None
        self._waiting: deque[Request] = deque()
        self._open: list[list[Request]] = [[] for _ in actors]
        self._is_up = [False] * len(actors)
        # Futures that are there when their actors are.
        self._asked: list[Any] = [actor.__ray_ready__.remote() for actor in actors]
        self._up_at, self._failed_at, self._answered_at = ([0.0] * len(actors) for _ in range(3))
        self._error: Exception | None = None
        self._some_up_at = self._said_at = self._first_up_at = 0.0

    @property
    def up(self) -> int:
        """The number of actors that were up at the last look."""
        return sum(self._is_up)

    def send(self, method: str, arguments: tuple[Any, ...]) -> Future[Any]:
        """Call ``method`` of the next actor that has room; returns at once.

        The answer is the actor's, or one of these errors:

        - ``InputError``: an actor refused its input or could not be built, a request found ``TRIES`` actors hanging, or
          no actor came up in the time that they may take; another try would not help.
        - ``ray.exceptions.RayActorError``: a request failed, or all actors did, for ``PATIENCE_S``, or an actor could
          not be built again.
        """
        request = Request(method, arguments)
        with self._lock:
            self._waiting.append(request)
            self._hand_out()
            if self._thread is None:
                self._some_up_at = self._said_at = time.monotonic()
                self._thread = threading.Thread(target=self._serve, name="rollouts")
                self._thread.start()
        return request.answer

    def _serve(self) -> None:
        """Hand out what waits and take what is answered, until all is, or the process ends."""
        while threading.main_thread().is_alive():
            try:
                with self._lock:
                    self._look()
                    self._find_hanging()
                    self._hand_out()
                    sent = {request.reference: request for open_ in self._open for request in open_}
                self._take(sent)
            except Exception as error:
                self._fail(error)
            with self._lock:
                if not self._waiting and not any(self._open):
                    self._thread = None
                    return

    def _hand_out(self) -> None:
        while self._waiting:
            free = [actor for actor, up in enumerate(self._is_up) if up and len(self._open[actor]) < AHEAD]
            if not free:
                return
            actor = min(free, key=lambda actor: len(self._open[actor]))
            request = self._waiting.popleft()
            request.actor, request.sent_at = actor, time.monotonic()
            request.reference = getattr(self.actors[actor], request.method).remote(*request.arguments)
            self._open[actor].append(request)

    def _take(self, sent: dict[Any, Request]) -> None:
        """Take the next answer, or wait a moment for one."""
        import ray
        from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

        if not sent:
            time.sleep(LOOK_S)
            return
        for reference in ray.wait(list(sent), timeout=LOOK_S, fetch_local=False)[0]:
            request = sent[reference]
            try:
                answer = ray.get(reference)
            except RayTaskError as error:
                self._close(request)
                request.answer.set_exception(error.cause if isinstance(error.cause, InputError) else error)
            except (RayActorError, ObjectLostError) as error:
                self._close(request)
                self._send_again(request, error)
            else:
                self._close(request)
                request.answer.set_result(answer)

    def _close(self, request: Request) -> None:
        with self._lock:
            self._open[request.actor].remove(request)
            self._answered_at[request.actor] = time.monotonic()

    def _send_again(self, request: Request, error: Exception) -> None:
        """The request's actor did not survive it, or its node is gone: it gets none until it is up again.

        Raises:
            InputError: it never was up, since it could not be built.
            ray.exceptions.RayActorError: it could not be built again, or the request failed for ``PATIENCE_S``.
        """
        now = time.monotonic()
        request.failed_at = request.failed_at or now
        with self._lock:
            self._waiting.appendleft(request)
            if now - request.failed_at > PATIENCE_S:
                raise error
            if request.sent_at >= self._up_at[request.actor]:  # else the actor was started again since
                self._note_gone(request.actor, error)

    def _fail(self, error: Exception) -> None:
        """Nothing can be answered any more."""
        with self._lock:
            lost = [*self._waiting, *(request for open_ in self._open for request in open_)]
            self._waiting.clear()
            for open_ in self._open:
                open_.clear()
        for request in lost:
            request.answer.set_exception(error)

    def _note_gone(self, actor: int, error: Exception) -> None:
        if getattr(error, "actor_init_failed", False):
            if self._up_at[actor]:
                raise error
            raise InputError(f"a rollout actor could not be built: {_reason(error)}") from None
        self._error, self._failed_at[actor], self._asked[actor] = error, time.monotonic(), None
        if self._is_up[actor]:
            self._is_up[actor] = False
            LOG.warning("a rollout actor is gone, %d of %d are up", self.up, len(self.actors))

    def _look(self) -> None:
        """Note which of the actors that were not up answer now."""
        import ray
        from ray.exceptions import RayActorError

        for actor, asked in enumerate(self._asked):
            if self._is_up[actor]:
                continue
            now = time.monotonic()
            if asked is None:
                if now - self._failed_at[actor] > ASK_AGAIN_S:
                    self._asked[actor] = self.actors[actor].__ray_ready__.remote()
            elif ray.wait([asked], timeout=0)[0]:
                try:
                    ray.get(asked)
                except RayActorError as error:
                    self._note_gone(actor, error)
                    continue
                self._is_up[actor] = True
                self._up_at[actor] = self._answered_at[actor] = now
                self._first_up_at = self._first_up_at or now
                if now - self._first_up_at > SETTLE_S:
                    LOG.info("a rollout actor joins, %d of %d are up", self.up, len(self.actors))

    def _find_hanging(self) -> None:
        """Kill an actor that is silent for too long: Ray starts it again, and its requests are answered by an error.

        Raises:
            InputError: a request found ``TRIES`` actors hanging, or no actor is up for longer than they may take.
            ray.exceptions.RayActorError: all actors failed, for ``PATIENCE_S``.
        """
        import ray

        self._require_one()
        for actor, open_ in enumerate(self._open):
            if not open_:
                continue
            request, limit_s = open_[0], self._timeout_s * 2 ** open_[0].hung
            silent_s = time.monotonic() - max(request.sent_at, self._answered_at[actor])
            if silent_s < limit_s:
                continue
            request.hung += 1
            if request.hung == TRIES:
                raise InputError(
                    f"{TRIES} rollout actors answered nothing for {self._timeout_s:g} s and longer, the last one for "
                    f"{silent_s:.0f} s, on the same request; raise compute.rollout_timeout_s, or lower "
                    "learning.rl.rollout_chunk if requests take so long"
                )
            LOG.warning("a rollout actor answered nothing for %.0f s: it is started again", silent_s)
            ray.kill(self.actors[actor], no_restart=False)

    def _require_one(self) -> None:
        now = time.monotonic()
        if self.up:
            self._some_up_at = self._said_at = now
            return
        waited_s = now - self._some_up_at
        if self._error is not None and not any(self._asked) and waited_s > PATIENCE_S:
            raise self._error
        if waited_s > self._timeout_s * (2**TRIES - 1):
            raise InputError(
                f"{len(self.actors)} rollout actors answered nothing for {waited_s:.0f} s; "
                "the cluster has no room for them, or they hang: lower compute.rollout_cpus or rollout_gpus, or "
                "raise compute.rollout_timeout_s where nodes take longer to come"
            )
        if now - self._said_at > 60:
            self._said_at = now
            LOG.warning("no rollout actor is up since %.0f s: waiting for room or a start", waited_s)


def _reason(error: BaseException) -> str:
    """The message of what an actor's constructor raised: the lines after the traceback, which is indented."""
    lines = str(error).splitlines()
    last = max((number for number, line in enumerate(lines) if line.startswith(" ")), default=-1)
    kind, _, message = " ".join(lines[last + 1 :]).partition(": ")
    return message if kind.endswith("InputError") else f"{kind}: {message}"
