"""The machine: memory that a stage took, a process's share of a card, and the device that shards are worked on."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Literal

import psutil

from genrec.config import Config

COST = 0.01
"""Share of the time that ``PeakMemory`` may take: where a look takes longer, it looks less often."""


class PeakMemory:
    """Context manager; ``peak_mb`` is the largest sum of resident pages (MiB) of this process and its descendants.

    Pages that processes share, such as Ray's object store and mapped files, are left out. A look reads one line per
    process, whatever its size; ``cost`` is the share of the time that the looks took. On a cluster only this machine's
    share is seen.
    """

    def __init__(self, interval_s: float = 3.0) -> None:
        self.peak_mb = self.cost = 0.0
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me, spent_s, start = psutil.Process(), 0.0, time.perf_counter()
        while True:
            began = time.perf_counter()
            self.peak_mb = max(self.peak_mb, sum(map(_own_mb, [me, *me.children(recursive=True)])))
            look_s = time.perf_counter() - began
            spent_s += look_s
            stopped = self._stop.wait(max(self._interval_s, look_s / COST))
            self.cost = spent_s / (time.perf_counter() - start)
            if stopped:
                return


def _own_mb(process: psutil.Process) -> float:
    """Resident less shared pages: from ``statm``, where the unique set size would walk all pages (``smaps``)."""
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0.0
    return (memory.rss - getattr(memory, "shared", 0)) / 2**20


def cap_memory(share: float) -> None:
    """Let this process take no more than ``share`` of its CUDA card's memory, where the card is shared (share < 1).

    Beyond it PyTorch raises an out-of-memory error here, instead of taking the room of the card's other processes.
    """
    import torch

    if 0 < share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def data_device(config: Config) -> Literal["cpu", "cuda"]:
    """The device of the shards' work: that of this process, or of the actors that do it (``compute.data_gpus``)."""
    compute = config.compute
    if not compute.data_may_use_gpu:
        return "cpu"
    if compute.device == "cuda" or compute.data_actors:
        return "cuda"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
