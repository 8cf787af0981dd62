"""What a run lets be seen, and what its processes may take of a shared card."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from cluster import telemetry
from cluster.resources import cap_memory
from cluster.telemetry import Telemetry, TimedRollouts, metric_loggers, require_mlflow
from genrec.config import load_config
from genrec.errors import InputError
from genrec.types import Group, Query, Snapshot

UPDATE = {"step": 1.0, "reward": 0.5, "staleness": 0.0}


class Slow:
    def submit(self, queries: list[Query], policy: Snapshot) -> list[Group]:
        four, empty = torch.zeros(4), torch.empty(0)
        return [Group(query, 0, four, empty, empty, empty, {}) for query in queries]

    def collect(self, ticket: list[Group]) -> list[Group]:
        time.sleep(0.05)
        return ticket


def test_rollouts_are_counted_and_the_learner_is_idle_while_it_waits() -> None:
    timed = TimedRollouts(Slow())
    ticket = timed.submit([Query(i, 0, (1,), 0) for i in range(3)], Snapshot(0, {}))
    time.sleep(0.05)
    assert len(timed.collect(ticket)) == 3
    found = timed.figures()
    assert 0 < found["rollouts_per_s"] <= 12 / 0.1
    assert found["queue_age_s"] >= 0.05
    assert 0 < found["learner_utilisation"] <= 0.6
    assert timed.figures()["rollouts_per_s"] == 0


def test_every_sink_gets_the_figures_of_an_update_and_of_a_late_validation() -> None:
    log_to_file: list[tuple[int, Mapping[str, float]]] = []
    telemetry = Telemetry(TimedRollouts(Slow()), [lambda step, figures: log_to_file.append((step, figures))])
    assert "rollouts_per_s" in telemetry(UPDATE)
    assert telemetry({"step": 1.0, "ndcg@10": 0.2}) == {}
    assert [step for step, _ in log_to_file] == [1, 1]
    assert {"reward", "rollouts_per_s", "queue_age_s"} <= set(log_to_file[0][1]) and set(log_to_file[1][1]) == {
        "step",
        "ndcg@10",
    }


def test_scalars_are_written_under_the_run_where_a_writer_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, place: str) -> None:
            assert place == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None: ...

    alone = load_config([], ["compute.workers=0"])
    monkeypatch.setattr(telemetry, "_summary_writer", lambda: Writer)
    for sink in metric_loggers(alone, tmp_path, rank=0):
        sink(1, UPDATE)
    assert written == [("grpo/reward", 0.5, 1), ("grpo/staleness", 0.0, 1)]
    assert metric_loggers(alone, tmp_path, rank=1) == []
    monkeypatch.setattr(telemetry, "_summary_writer", lambda: None)
    assert metric_loggers(alone, tmp_path, rank=0) == []


def test_mlflow_that_is_not_installed_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "find_spec", lambda name: None)
    require_mlflow(load_config([]))
    with pytest.raises(InputError, match="pip install mlflow"):
        require_mlflow(load_config([], ["compute.mlflow=http://tracking:5000"]))


def test_memory_is_capped_only_where_a_card_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    capped: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", capped.append)
    for share in (0.0, 0.4, 1.0):
        cap_memory(share)
    assert capped == [0.4]
