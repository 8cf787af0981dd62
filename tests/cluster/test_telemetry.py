"""What a run lets be seen, and what its processes may take of a shared card."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cluster import telemetry, trackers
from cluster.resources import cap_memory
from cluster.telemetry import (
    BackgroundLogger,
    MetricLogger,
    Telemetry,
    TimedRollouts,
    metric_loggers,
)
from cluster.trackers import require_trackers
from genrec.config import load_config
from genrec.errors import InputError
from genrec.types import Group, Query, Snapshot

UPDATE = {"step": 1.0, "reward": 0.5, "staleness": 0.0}


class Slow:
    def __init__(self, wait: Callable[[float], None] = time.sleep) -> None:
        self._wait = wait

    def submit(self, queries: list[Query], policy: Snapshot) -> list[Group]:
        four, empty = torch.zeros(4), torch.empty(0)
        return [Group(query, 0, four, empty, empty, empty, {}) for query in queries]

    def collect(self, ticket: list[Group]) -> list[Group]:
        self._wait(0.05)
        return ticket


def test_rollouts_are_counted_and_the_learner_is_idle_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=lambda: now[0]))
    timed = TimedRollouts(Slow(wait))
    ticket = timed.submit([Query(i, 0, (1,), 0) for i in range(3)], Snapshot(0, {}))
    wait(0.05)
    assert len(timed.collect(ticket)) == 3
    found = timed.figures()
    assert found["rollouts_per_s"] == pytest.approx(12 / 0.1)
    assert found["queue_age_s"] == pytest.approx(0.05)
    assert found["learner_utilisation"] == pytest.approx(0.5)
    assert timed.figures()["rollouts_per_s"] == 0


Written = list[tuple[int, dict[str, float]]]


@contextmanager
def to_list(written: Written) -> Generator[MetricLogger]:
    yield lambda step, figures: written.append((step, dict(figures)))


def test_every_sink_gets_the_figures_of_an_update_and_of_a_late_validation() -> None:
    written: Written = []
    rest = Telemetry(TimedRollouts(Slow()), [BackgroundLogger("list", lambda: to_list(written))])
    assert "rollouts_per_s" in rest(UPDATE)
    assert rest({"step": 1.0, "ndcg@10": 0.2}) == {}
    rest.close()
    assert [step for step, _ in written] == [1, 1]
    assert {"reward", "rollouts_per_s", "queue_age_s"} <= set(written[0][1])
    assert set(written[1][1]) == {"step", "ndcg@10"}


def test_a_sink_that_fails_is_named_once_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    @contextmanager
    def no_server() -> Generator[MetricLogger]:
        raise ConnectionError("nobody is there")
        yield

    @contextmanager
    def refuses() -> Generator[MetricLogger]:
        yield lambda step, figures: 1 // 0  # type: ignore[return-value]

    rest = Telemetry(TimedRollouts(Slow()), [BackgroundLogger("A", no_server), BackgroundLogger("B", refuses)])
    for _ in range(3):
        rest(UPDATE)
    rest.close()
    assert sorted(record.getMessage().split(" (")[0] for record in caplog.records) == [
        "A cannot be used: nobody is there",
        "B refused the figures of step 1: integer division or modulo by zero",
    ]


def test_a_server_that_hangs_delays_neither_an_update_nor_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "WAITING", 2)
    answer = threading.Event()

    @contextmanager
    def hangs() -> Generator[MetricLogger]:
        yield lambda step, figures: bool(answer.wait(60)) and None

    rest = Telemetry(TimedRollouts(Slow()), [BackgroundLogger("MLflow", hangs)])
    start = time.monotonic()
    for _ in range(10):
        rest(UPDATE)
    rest.close(timeout_s=0.1)
    assert time.monotonic() - start < 1
    assert [record.getMessage() for record in caplog.records] == [
        "MLflow is too slow or gone: figures from step 1 on are left out (the run goes on; this is said once)"
    ]
    answer.set()


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
    assert metric_loggers(alone, tmp_path, rank=1) == []
    monkeypatch.setattr(trackers, "_summary_writer", lambda: Writer)
    for sink in metric_loggers(alone, tmp_path, rank=0):
        sink(1, UPDATE)
        sink.close(5.0)
    assert written == [("grpo/reward", 0.5, 1), ("grpo/staleness", 0.0, 1)]
    assert metric_loggers(load_config([], ["compute.workers=0", "compute.trackers=[]"]), tmp_path, rank=0) == []


def test_an_mlflow_run_is_filled_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    names = ("set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    client = SimpleNamespace(
        **{name: partial(lambda name, *a, **k: calls.append((name, a, k)), name) for name in names}
    )
    monkeypatch.setattr(trackers, "import_module", lambda name: client)
    config = load_config([], ["compute.trackers=[mlflow]", f"storage={tmp_path}"])
    sink = BackgroundLogger("MLflow", partial(trackers.mlflow, config, tmp_path / "3f0.partial"))
    sink(3, {"ndcg@10": 0.5})
    sink.close(5.0)
    assert [name for name, *_ in calls] == list(names)
    assert calls[0][1] == (f"sqlite:///{tmp_path}/mlflow.db",)
    assert calls[2][2] == {"run_name": "run-3f0"}
    assert calls[4] == ("log_metrics", ({"ndcg_at_10": 0.5},), {"step": 3})


def test_a_wandb_run_is_offline_below_the_storage_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, object]] = []
    calls: list[tuple[object, ...]] = []
    run = SimpleNamespace(
        log=lambda figures: calls.append(("log", figures)),
        finish=lambda: calls.append(("finish",)),
        define_metric=lambda name, step_metric: calls.append((name, step_metric)),
    )
    client = SimpleNamespace(Settings=lambda **options: options, init=lambda **options: started.append(options) or run)
    monkeypatch.setattr(trackers, "import_module", lambda name: client)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = load_config([], ["compute.trackers=[wandb]", f"storage={tmp_path}"])
    sink = BackgroundLogger("W", partial(trackers.wandb, config, tmp_path / "3f0.partial"))
    sink(3, {"ndcg@10": 0.5})
    sink.close(5.0)
    assert (started[0]["mode"], started[0]["dir"], started[0]["name"]) == ("offline", str(tmp_path), "run-3f0")
    assert calls == [("*", "step"), ("log", {"ndcg@10": 0.5, "step": 3}), ("finish",)]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_an_installed_tracker_keeps_its_run_below_the_storage(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed: its offline mode was not tried")
    config = load_config([], [f"compute.trackers=[{name}]", f"storage={tmp_path}", "compute.workers=0"])
    (sink,) = metric_loggers(config, tmp_path, rank=0)
    sink(1, UPDATE)
    sink.close(60.0)
    assert caplog.messages == []
    assert (tmp_path / "mlflow.db").is_file() if name == "mlflow" else list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    require_trackers(load_config([], ["compute.trackers=[]"]))
    with pytest.raises(InputError, match=rf"compute.trackers has {name}.*genrec\[watch\]"):
        require_trackers(load_config([], [f"compute.trackers=[{name}]"]))


def test_the_old_key_of_mlflow_names_the_new_one_and_a_server_needs_its_tracker() -> None:
    with pytest.raises(InputError, match=r"has a new name: 'compute.mlflow_uri'"):
        load_config([], ["compute.mlflow=http://tracking:5000"])
    with pytest.raises(InputError, match=r"put mlflow into compute.trackers"):
        load_config([], ["compute.mlflow_uri=http://tracking:5000"])
    with pytest.raises(InputError, match=r"compute.trackers"):
        load_config([], ["compute.trackers=[tensorbored]"])


def test_memory_is_capped_only_where_a_card_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    capped: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", capped.append)
    for share in (0.0, 0.4, 1.0):
        cap_memory(share)
    assert capped == [0.4]
