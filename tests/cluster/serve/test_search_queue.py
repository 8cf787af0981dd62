"""The queue of searches: what waits, what is refused, and that it is idle again."""

import threading
import time
from collections.abc import Sequence

import pytest

from cluster.serve.search_queue import SearchQueue, TooLateError


def test_a_full_queue_and_a_late_request_are_refused_at_once() -> None:
    go = threading.Event()
    queue: SearchQueue[int, int] = SearchQueue(lambda asked: go.wait(5) and asked, batch=1, limit=2)
    first = queue.submit(0, time.monotonic() + 60)
    time.sleep(0.05)
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


def test_one_slow_search_does_not_make_all_later_requests_late() -> None:
    spent = iter([0.3, *[0.0] * 50])
    queue: SearchQueue[int, int] = SearchQueue(lambda asked: time.sleep(next(spent)) or asked, batch=1, limit=2)
    with pytest.raises(TimeoutError):
        queue.submit(0, time.monotonic() + 0.1).result(0.1)
    time.sleep(0.3)
    assert [queue.submit(n, time.monotonic() + 0.1).result(5) for n in range(1, 9)] == list(range(1, 9))
    queue.close()


def test_requests_that_were_late_behind_a_slow_search_leave_the_queue_idle() -> None:
    begun, searched = threading.Event(), list[list[int]]()

    def search(asked: Sequence[int]) -> list[int]:
        searched.append(list(asked))
        if len(searched) == 1:
            begun.set()
            time.sleep(0.3)
        return list(asked)

    queue = SearchQueue[int, int](search, batch=2, limit=8)
    first = queue.submit(1, time.monotonic() + 9)
    assert begun.wait(5)
    late = queue.submit(2, time.monotonic() + 0.1)
    assert first.result(5) == 1
    with pytest.raises(TooLateError):
        late.result(5)
    assert queue.submit(3, time.monotonic() + 0.2).result(5) == 3
    assert searched == [[1], [3]]
    queue.close()
