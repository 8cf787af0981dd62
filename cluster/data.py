"""Ray Data over shards: each shard's work writes its own file, so a killed run loses one shard at most."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from cluster.node_check import require_nodes
from cluster.node_files import NodeFiles, collect_files, files_in_work
from cluster.session import connect, require_resources
from genrec.config import Config
from genrec.errors import InputError, packed_error, unpacked_error
from genrec.progress import Progress, log_progress

LOG = logging.getLogger(__name__)

REPORT_S = 5.0
"""Seconds between two reports of how many shards are done."""

T = TypeVar("T")

Work = Callable[[int], Mapping[str, Any]]


def parallel_map(
    config: Config, make: Callable[[], Work], shards: Sequence[int], *, label: str
) -> list[dict[str, Any]]:
    """Run ``make()(shard)`` for every shard, and return the small rows that come back, in shard order.

    ``make`` is called once per actor and loads what the work needs; it must be picklable. The work writes its result
    itself, atomically; callers pass only the shards whose file is missing. ``compute.data_actors: 0`` works in this
    process without Ray. ``label`` says in the log what is done.

    Raises:
        InputError: the work refused its input.
    """
    if not shards:
        return []
    if config.compute.data_actors == 0:
        work = make()
        rows = [dict(work(shard), shard=shard) for shard in _counted(shards, len(shards), label)]
    else:
        rows = [_accepted(row) for row in _counted(_on_ray(config, make, shards), len(shards), label)]
    return sorted(rows, key=lambda row: row["shard"])


class _Actor:
    """Bad input comes back as a row: an actor's exception would arrive wrapped, after retries."""

    def __init__(self, make: Callable[[], Work], files: NodeFiles | None) -> None:
        self._make, self._files = make, files
        self._work: Work | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = int(row["shard"])
        try:
            if self._work is None:
                if self._files is not None:
                    self._files.arrive()
                self._work = self._make()
            row = dict(self._work(shard), shard=shard, refused="")
            if self._files is not None:
                self._files.leave()
            return row
        except InputError as error:
            return {"shard": shard, "refused": packed_error(error)}


def _accepted(row: dict[str, Any]) -> dict[str, Any]:
    if refused := row.pop("refused"):
        raise unpacked_error(refused)
    return row


def _on_ray(config: Config, make: Callable[[], Work], shards: Sequence[int]) -> Iterator[dict[str, Any]]:
    connect(config)
    import ray.data
    from ray.data import ActorPoolStrategy

    compute = config.compute
    require_resources(config, "an actor of Ray Data", compute.data_cpus, compute.data_gpus)
    require_nodes(config)
    files = files_in_work()
    if files is not None:
        files.offer()
    rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    results = rows.map(
        cast("Any", _Actor),
        fn_constructor_args=(make, files),
        compute=ActorPoolStrategy(size=min(compute.data_actors, len(shards))),
        num_cpus=compute.data_cpus,
        num_gpus=compute.data_gpus or None,
        resources=compute.data_resources,
    )
    yield from results.iter_rows()
    collect_files()


def _counted(rows: Iterable[T], total: int, label: str) -> Iterator[T]:
    """``rows`` as they come; every few seconds it is logged how many came."""
    start = shown = time.monotonic()
    for done, row in enumerate(rows, start=1):
        yield row
        now = time.monotonic()
        if now - shown > REPORT_S or done == total:
            left_s = (now - start) / done * (total - done)
            log_progress(LOG, Progress("shard", done, total, left_s, task=label))
            shown = now
