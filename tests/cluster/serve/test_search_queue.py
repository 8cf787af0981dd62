"""The queue of searches: what waits, what is refused, and that it is idle again."""

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from cluster.serve import search_queue
from cluster.serve.search_queue import SearchQueue, TooLateError


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a queue goes by; it passes where a test adds to it, on a busy machine too."""
    found = [0.0]
    monkeypatch.setattr(search_queue, "time", SimpleNamespace(monotonic=lambda: found[0]))
    return found


def test_a_full_queue_and_a_late_request_are_refused_at_once() -> None:
    begun, go = threading.Event(), threading.Event()
    queue: SearchQueue[int, int] = SearchQueue(lambda asked: begun.set() or (go.wait(20) and asked), batch=1, limit=2)
    first = queue.submit(0, time.monotonic() + 60)
    assert begun.wait(20)
    waiting = [queue.submit(n, time.monotonic() + 60) for n in (1, 2)]
    with pytest.raises(TooLateError):
        queue.submit(3, time.monotonic() + 60)
    with pytest.raises(TooLateError):
        queue.call(lambda: None)
    go.set()
    assert [one.result(5) for one in (first, *waiting)] == [0, 1, 2]
    time.sleep(0.01)
    with pytest.raises(TooLateError):
        queue.submit(4, time.monotonic() - 1)
    queue.close()


def test_one_slow_search_does_not_make_all_later_requests_late(now: list[float]) -> None:
    go, spent = threading.Event(), iter([0.3, *[0.0] * 50])

    def search(asked: Sequence[int]) -> Sequence[int]:
        go.wait(20)
        now[0] += next(spent)
        return asked

    queue = SearchQueue[int, int](search, batch=1, limit=2)
    first = queue.submit(0, now[0] + 0.1)
    with pytest.raises(TimeoutError):
        first.result(0.1)
    go.set()
    assert first.result(5) == 0
    assert [queue.submit(n, now[0] + 0.1).result(5) for n in range(1, 9)] == list(range(1, 9))
    queue.close()


def test_requests_that_were_late_behind_a_slow_search_leave_the_queue_idle(now: list[float]) -> None:
    begun, go, searched = threading.Event(), threading.Event(), list[list[int]]()

    def search(asked: Sequence[int]) -> list[int]:
        searched.append(list(asked))
        if len(searched) == 1:
            begun.set()
            go.wait(20)
            now[0] += 0.3
        return list(asked)

    queue = SearchQueue[int, int](search, batch=2, limit=8)
    first = queue.submit(1, now[0] + 9)
    assert begun.wait(5)
    late = queue.submit(2, now[0] + 0.1)
    go.set()
    assert first.result(5) == 1
    with pytest.raises(TooLateError):
        late.result(5)
    assert queue.submit(3, now[0] + 0.2).result(5) == 3
    assert searched == [[1], [3]]
    queue.close()
