"""The simulation of rollout actors where the answer is known. In the default suite."""

import pytest

from benchmarks.throughput_model import Service


def test_actors_raise_the_throughput_until_the_learner_never_waits() -> None:
    service = Service(request_s=[1.0], requests=64, learn_s=8.0, transfer_s=0.0)
    found = [service.prompts_per_s(64, actors, max_staleness=1, steps=200) for actors in (1, 2, 4, 8, 16, 64)]
    assert found == pytest.approx([1.0, 2.0, 4.0, 8.0, 8.0, 8.0], rel=0.02)
    assert service.saturating(64, range(1, 65), max_staleness=1) == 8
    assert Service([1.0], 64, 0.5, 0.0).saturating(64, range(1, 65), max_staleness=1) == 0


def test_without_staleness_the_learner_waits_for_each_batch_and_its_snapshot() -> None:
    service = Service(request_s=[1.0, 3.0], requests=4, learn_s=2.0, transfer_s=0.5)
    assert service.prompts_per_s(4, 4, max_staleness=0) == pytest.approx(4 / (2.0 + 3.5))
    assert service.prompts_per_s(4, 1, max_staleness=0) == pytest.approx(4 / (2.0 + 8.5))


def test_an_actor_holds_two_requests_and_the_next_goes_to_the_first_that_has_room() -> None:
    service = Service(request_s=[4.0, 1.0, 1.0, 1.0, 1.0, 1.0], requests=6, learn_s=1.0, transfer_s=0.0)
    assert service.prompts_per_s(6, 2, max_staleness=0, steps=1) == pytest.approx(6 / (1.0 + 5.0))
