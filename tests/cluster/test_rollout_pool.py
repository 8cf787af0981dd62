"""Requests go to the actors that have room: a slow one takes fewer, and none waits behind one that fails."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.waiting import wait_until

from cluster.rollout_pool import AHEAD, RolloutPool
from genrec.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("ray_cluster")]


def start(count: int) -> list[Any]:
    """Actors that answer with their number; all are up."""
    import ray

    class Worker:
        def __init__(self, number: int) -> None:
            self._number = number

        def work(self) -> int:
            return self._number

        def work_late(self, at: int, file: Path) -> int:
            while self._number == at and not file.exists():
                time.sleep(0.02)
            return self._number

        def refuse(self) -> None:
            raise InputError("not this one")

        def echo(self, what: int) -> int:
            return what

        def die(self, at: int) -> int:
            if self._number == at:
                ray.actor.exit_actor()
            return self._number

    make = ray.remote(num_cpus=0.1)(Worker)
    actors = [make.remote(number) for number in range(count)]
    ray.get([actor.__ray_ready__.remote() for actor in actors])
    return actors


def settled(pool: RolloutPool) -> RolloutPool:
    """The pool when it knows all its actors."""
    while pool.up < len(pool.actors):
        pool.send("work", ()).result()
    return pool


def test_a_slow_actor_takes_fewer_requests_than_a_fast_one(tmp_path: Path) -> None:
    pool, go = settled(RolloutPool(start(2), 60)), tmp_path / "go"
    answers = [pool.send("work_late", (1, go)) for _ in range(20)]
    wait_until(lambda: sum(answer.done() for answer in answers) >= 20 - AHEAD)
    go.touch()
    done = Counter(answer.result() for answer in answers)
    assert done[1] <= AHEAD, done
    assert done[0] + done[1] == 20


def test_answers_come_in_the_order_of_the_requests_and_the_thread_ends_with_the_last() -> None:
    pool = settled(RolloutPool(start(3), 60))
    ticket = [pool.send("echo", (number,)) for number in range(30)]
    assert [answer.result() for answer in ticket] == list(range(30))
    wait_until(lambda: not any(thread.name == "rollouts" for thread in threading.enumerate()))


def test_a_refused_request_is_its_own_error_and_the_others_are_answered() -> None:
    pool = RolloutPool(start(1), 60)
    answers = [pool.send(method, ()) for method in ("work", "refuse", "work")]
    assert (answers[0].result(), answers[2].result()) == (0, 0)
    with pytest.raises(InputError, match=r"^not this one$"):
        answers[1].result()


def test_what_waited_for_an_actor_that_is_gone_goes_to_the_others() -> None:
    pool = settled(RolloutPool(start(2), 60))
    answers = [pool.send("die", (1,)) for _ in range(40)]
    assert {answer.result() for answer in answers} == {0}
    assert pool.up == 1
    assert pool.send("work", ()).result() == 0


def test_where_the_last_actor_is_gone_for_too_long_all_that_waits_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import rollout_pool

    monkeypatch.setattr(rollout_pool, "PATIENCE_S", 1.0)
    pool = settled(RolloutPool(start(1), 60))
    answers = [pool.send("die", (0,)) for _ in range(3)]
    import ray

    for answer in answers:
        with pytest.raises(ray.exceptions.RayActorError):
            answer.result()
