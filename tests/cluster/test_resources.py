"""What a stage takes of the machine: memory is looked at cheaply, and cards are used as Ray gave them."""

import time

import pytest
import torch

from cluster.resources import COST, PeakMemory, data_device
from cluster.train import make_accelerator
from genrec.config import load_config


def test_the_peak_of_memory_is_seen_and_looking_takes_a_small_share_of_the_time() -> None:
    with PeakMemory(0.01) as before:
        time.sleep(0.05)
    with PeakMemory(0.01) as memory:
        held = torch.ones(200 << 20, dtype=torch.uint8)  # Other than bytes, it lets the other thread look.
        deadline = time.monotonic() + 60
        while memory.peak_mb - before.peak_mb < 150 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
    assert len(held) and 150 < memory.peak_mb - before.peak_mb < 300
    assert 0 < memory.cost < 0.5


def test_a_look_that_takes_long_is_repeated_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    memory = PeakMemory(0.0)
    monkeypatch.setattr(memory._stop, "wait", lambda seconds: waits.append(seconds) or len(waits) == 3)
    monkeypatch.setattr("cluster.resources._own_mb", lambda process: time.sleep(0.01) or 1.0)
    memory._watch()
    assert min(waits) >= 0.01 / COST


@pytest.mark.parametrize(
    ("overrides", "device"),
    [
        (["compute.device=cuda", "compute.data_gpus=0"], "cpu"),
        (["compute.device=cuda", "compute.data_gpus=1"], "cuda"),
        (["compute.device=auto", "compute.data_gpus=1"], "cuda"),
        (["compute.device=cpu", "compute.data_gpus=1"], "cpu"),
        (["compute.device=auto", "compute.data_actors=0"], "cuda"),
        (["compute.device=cpu", "compute.data_actors=0"], "cpu"),
    ],
)
def test_shards_use_a_card_only_where_ray_gave_one(
    overrides: list[str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert data_device(load_config([], overrides)) == device


def test_a_worker_without_a_card_of_its_own_trains_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    threads = torch.get_num_threads()
    config = load_config([], ["compute.device=cuda", "compute.workers=1", "compute.worker_gpus=0"])
    assert make_accelerator(config).device.type == "cpu"
    torch.set_num_threads(threads)
