"""The machine: memory that a stage took, a process's share of a card, and the device that shards are worked on."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Literal

import psutil

from genrec.config import Config


class PeakMemory:
    """Context manager; ``peak_mb`` is the largest sum of unique set sizes (MiB) of this process and its descendants.

    Sampled every few seconds. Pages that processes share are counted once at most, so Ray's object store is left out.
    On a cluster only this machine's share is seen.
    """

    def __init__(self, interval_s: float = 3.0) -> None:
        self.peak_mb = 0.0
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
        me = psutil.Process()
        while True:
            self.peak_mb = max(self.peak_mb, sum(map(_unique_mb, [me, *me.children(recursive=True)])))
            if self._stop.wait(self._interval_s):
                return


def _unique_mb(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().uss / 2**20
    except psutil.Error:
        return 0.0


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
    if compute.device != "auto":
        return compute.device
    if compute.data_actors:
        return "cuda" if compute.data_gpus else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
