"""Requests wait here while a search runs, and the next search takes all that wait.

This is dynamic batching without a window of time. One thread runs the searches of a run; it owns the model.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Made = TypeVar("Made")

NEWEST = 0.2
"""Weight of the last search in the moving average of a search's seconds."""


class TooLateError(Exception):
    """The queue is full, or the answer would come after its deadline."""


@dataclass
class _Waiting:
    """A request, or ``work`` that wants the thread for itself, and where its result goes."""

    asked: object
    future: Future[Any]
    deadline: float
    work: Callable[[], object] | None = None


class SearchQueue(Generic[Asked, Answer]):
    """Runs ``search`` over up to ``batch`` waiting requests at a time, in a thread of its own.

    Args:
        search: requests to an answer for each, in their order; an exception in its place is raised to that request.
        batch: requests per search.
        limit: requests that may wait.
        gather_s: so long a search waits for as many requests as were answered by the last one or wait already: under
            load its clients ask again at once, and one search for all is cheaper than two. Alone, nobody waits.
    """

    def __init__(
        self,
        search: Callable[[Sequence[Asked]], Sequence[Answer | Exception]],
        batch: int,
        limit: int,
        gather_s: float = 0.0,
    ) -> None:
        self._search, self._batch, self._limit, self._gather_s = search, batch, limit, gather_s
        self._last = 0
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._began: float | None = None
        self._search_s = 0.0
        threading.Thread(target=self._run, name="searches", daemon=True).start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, asked: Asked, deadline: float) -> Future[Answer]:
        """The answer to come. A request that is cancelled, or late by ``time.monotonic()``, is not searched for.

        Where nothing is searched for and nothing waits, a request is taken whatever the last searches took: without it
        nobody would learn that they are quick again.

        Raises:
            TooLateError: too many wait, or the searches before this one's end take until after ``deadline``.
        """
        waiting = _Waiting(asked, Future(), deadline)
        with self._changed:
            idle = self._began is None and not self._waiting
            if len(self._waiting) >= self._limit or time.monotonic() + (0 if idle else self._expected_s()) > deadline:
                raise TooLateError
            self._add(waiting)
        return waiting.future

    def call(self, work: Callable[[], Made]) -> Future[Made]:
        """The result of ``work()``, run between two searches, to come.

        Raises:
            TooLateError: too many requests wait.
        """
        waiting = _Waiting(None, Future(), float("inf"), work)
        with self._changed:
            if len(self._waiting) >= self._limit:
                raise TooLateError
            self._add(waiting)
        return waiting.future

    def close(self) -> None:
        """End the thread once nothing waits."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _add(self, waiting: _Waiting) -> None:
        if self._closed:
            raise RuntimeError("the queue is closed")
        self._waiting.append(waiting)
        self._changed.notify()

    def _expected_s(self) -> float:
        """Seconds until a request that comes now has its answer, by the last searches."""
        running = 0.0 if self._began is None else max(0.0, self._search_s - (time.monotonic() - self._began))
        return running + self._search_s * (1 + len(self._waiting) // self._batch)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            if taken and taken[0].work is not None:
                _finish(taken[0], taken[0].work)
            elif taken:
                self._answer(taken)

    def _take(self) -> list[_Waiting] | None:
        """The next requests whose answers are still wanted, or one piece of work; None when all is done."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return None
            self._gather()
            if self._waiting[0].work is not None:
                return [self._waiting.popleft()]
            taken: list[_Waiting] = []
            while self._waiting and self._waiting[0].work is None and len(taken) < self._batch:
                one = self._waiting.popleft()
                if one.future.set_running_or_notify_cancel() and one.deadline > time.monotonic():
                    taken.append(one)
                elif not one.future.cancelled():
                    one.future.set_exception(TooLateError())
            self._began, self._last = time.monotonic() if taken else None, len(taken)
            return taken

    def _gather(self) -> None:
        """Wait for the clients of the last search, those of a queue that grows, or ``gather_s``."""
        if self._last < 2 and len(self._waiting) < 2:
            return
        wanted = min(self._batch, self._last + len(self._waiting))
        self._changed.wait_for(lambda: len(self._waiting) >= wanted or self._closed, self._gather_s)

    def _answer(self, taken: list[_Waiting]) -> None:
        began = time.monotonic()
        try:
            answers = self._search([cast("Asked", one.asked) for one in taken])
        except Exception as error:  # It is raised again where the answers are awaited.
            answers = [error] * len(taken)
        with self._changed:
            spent = time.monotonic() - began
            self._search_s = spent if not self._search_s else (1 - NEWEST) * self._search_s + NEWEST * spent
            self._began = None
        for one, answer in zip(taken, answers, strict=True):
            if isinstance(answer, Exception):
                one.future.set_exception(answer)
            else:
                one.future.set_result(answer)


def _finish(waiting: _Waiting, work: Callable[[], object]) -> None:
    if not waiting.future.set_running_or_notify_cancel():
        return
    try:
        waiting.future.set_result(work())
    except Exception as error:  # As above.
        waiting.future.set_exception(error)
