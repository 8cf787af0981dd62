"""Timings of alternatives that take turns in one run, and the result that every benchmark returns."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from genrec.config import Config, Items
from genrec.errors import InputError

if TYPE_CHECKING:
    import torch

    from genrec.sid.catalog import Catalog


WITHOUT_ROWS = Items(input="none", head=False)
"""No rows of items: a policy whose prompts any other implementation can run."""


@dataclass
class Bench:
    """The result of a benchmark: seconds or other figures by name, and ratios by name.

    ``failure`` says what must not be, and was found all the same: the command prints it and ends with exit code 1.
    """

    name: str
    figures: dict[str, float] = field(default_factory=dict[str, float])
    ratios: dict[str, float] = field(default_factory=dict[str, float])
    failure: str = ""

    def table(self) -> str:
        """Figures and ratios as text."""
        rows = [f"{name:<40}{value:>14.5g}" for name, value in self.figures.items()]
        rows += [f"{'ratio ' + name:<40}{value:>14.3f}" for name, value in self.ratios.items()]
        return "\n".join([f"bench {self.name}", *rows])

    def as_json(self) -> str:
        """One line: ``{"bench", "machine", "figures", "ratios"}``."""
        import torch

        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": psutil.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        return json.dumps({"bench": self.name, "machine": machine, "figures": self.figures, "ratios": self.ratios})


def seeds_of(config: Config) -> range:
    """The seeds of the policies of each row: ``bench.seeds`` of them from the config's own on."""
    return range(config.seed, config.seed + config.bench.seeds)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call, until the GPU has finished what the call gave it."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()  # What the call before gave the GPU is not this one's.
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def interleaved_timings(alternatives: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, list[float]]:
    """Seconds of each alternative per round.

    Each runs once before the first round, to warm up; within a round each runs once, in the order of ``alternatives``.
    """
    for work in alternatives.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, work in alternatives.items():
            seconds[name].append(timed(work))
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of slow / fast. Both of a pair are of one round, so a drift of the machine's speed cancels."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def random_catalog(items: int, generator: torch.Generator) -> Catalog:
    """``items`` distinct SIDs of 3 × 256 codes, drawn at random."""
    import torch

    from genrec.sid.catalog import Catalog

    flat = torch.randperm(256**3, generator=generator)[:items]
    return Catalog(torch.stack([flat // 65536, flat // 256 % 256, flat % 256], 1), (256, 256, 256))


def in_process(config: Config, directory: str = "") -> Config:
    """The config without workers and actors; its artifacts lie under ``<storage>/bench/<directory>`` where given."""
    storage = config.storage_path / "bench" / directory if directory else config.storage
    return config.with_workers(0).replace({"storage": str(storage), "compute.data_actors": 0})


def chosen_variants(config: Config, known: Iterable[str]) -> list[str]:
    """``bench.variants``, or all that are ``known``.

    Raises:
        InputError: ``bench.variants`` names one that does not exist.
    """
    names = list(known)
    if unknown := [name for name in config.bench.variants if name not in names]:
        raise InputError(f"bench.variants names {unknown}; wanted: some of {names}")
    return list(config.bench.variants) or names
