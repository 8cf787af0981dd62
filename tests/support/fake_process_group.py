"""The processes of one fit as threads of this process; a checkpoint may end them, as a crash would."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genrec.config import Sid
from genrec.sid.distributed.vector_stream import Stream
from genrec.sid.quantizers import Quantizer, make_quantizer
from genrec.sid.quantizers.rqvae import RqVae

LOCK = threading.Lock()
NEW_NET = RqVae._new_net


class Killed(Exception):
    """Raised by the processes of a group whose ``lives`` are used up."""


class FakeProcessGroup:
    """A group of ``size`` threads; all raise ``Killed`` after ``lives`` checkpoints in ``directory`` (0: never)."""

    def __init__(self, size: int, directory: Path | None = None, lives: int = 0) -> None:
        self.size, self.directory, self.lives, self.saved = size, directory, lives, 0
        self.barrier = threading.Barrier(size, timeout=60)
        self.slots: list[Tensor] = [Tensor()] * size

    def run(self, work: Callable[[FakeProcess], Any]) -> list[Any]:
        """``work(process)`` of all processes at once; raises the error of the first that failed."""

        def guarded(rank: int) -> Any:
            try:
                return work(FakeProcess(self, rank))
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            done = [pool.submit(guarded, rank) for rank in range(self.size)]
        errors = [future.exception() for future in done if future.exception()]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in done]


class FakeProcess:
    """One process of the group (``ProcessGroup`` protocol)."""

    device = "cpu"

    def __init__(self, group: FakeProcessGroup, rank: int) -> None:
        self.group, self.rank, self.size = group, rank, group.size

    def sum(self, values: Tensor) -> Tensor:
        self.group.slots[self.rank] = values.detach().clone()
        self.group.barrier.wait()
        total = sum(self.group.slots[1:], start=self.group.slots[0])
        self.group.barrier.wait()
        return total.clone()

    def latest(self) -> AbstractContextManager[Path | None]:
        directory = self.group.directory
        return nullcontext(directory if directory and directory.is_dir() else None)

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        if self.group.directory is None:  # a checkpoint that came due by the clock, in a group that keeps none
            return
        if self.rank == 0:
            shutil.rmtree(self.group.directory, ignore_errors=True)
            self.group.directory.mkdir(parents=True)
            write(self.group.directory)
            self.group.saved += 1
        self.group.barrier.wait()
        if self.group.saved == self.group.lives:
            raise Killed


class Rows:
    """Vectors in memory as a reader, which records the most rows of one call."""

    def __init__(self, vectors_ND: np.ndarray) -> None:
        self.vectors_ND, self.most, self.read_rows = vectors_ND, 0, 0

    def __len__(self) -> int:
        return len(self.vectors_ND)

    @property
    def width(self) -> int:
        return self.vectors_ND.shape[1]

    def read(self, rows: Any) -> np.ndarray:
        self.most, self.read_rows = max(self.most, len(rows)), self.read_rows + len(rows)
        return self.vectors_ND[np.asarray(rows, dtype=np.int64)]


def fit_by(
    group: FakeProcessGroup, settings: Sid, vectors_ND: np.ndarray, seed: int = 0
) -> tuple[list[Quantizer], dict[str, float]]:
    """Each worker's quantizer after a shared fit, and the measures of the first."""

    def work(process: FakeProcess) -> tuple[Quantizer, dict[str, float]]:
        quantizer = make_quantizer(settings, seed=seed, device="cpu")
        stream = Stream(Rows(vectors_ND), range(len(vectors_ND)), rank=process.rank, workers=process.size, seed=seed)
        return quantizer, quantizer.fit_parallel(stream, process)

    found = group.run(work)
    return [quantizer for quantizer, _ in found], found[0][1]


def new_net_of_one_thread(self: RqVae) -> Any:
    """``RqVae._new_net`` under a lock: torch's random numbers are of the process, not of the thread."""
    with LOCK:
        return NEW_NET(self)


def agreement(left: Quantizer, right: Quantizer, vectors: np.ndarray) -> float:
    return float((left.encode(vectors) == right.encode(vectors)).all(axis=1).mean())


def drift(left: Quantizer, right: Quantizer) -> float:
    """The largest difference of two quantizers' tensors, relative to the tensor's largest entry."""
    ours, theirs = left.tensors(), right.tensors()
    return max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(ours[name]).max()) for name in ours)
