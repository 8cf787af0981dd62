"""Streaming ingest of supervised training: Ray Data reads pools of windows while Ray Train's workers learn from them.

Each worker has a dataset of its own, whose rows are the pools of the run from its position on; a task reads one pool,
on any node, and gives the worker its part of every batch. So no process holds the log, and what a worker learns depends
on (seed, step) alone, whatever was read before a restart.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.fs as pafs
import ray.data
import ray.train
from ray.data import DataIterator, ExecutionOptions, ExecutionResources
from ray.train import DataConfig

from cluster.node_files import offered, ray_storage
from genrec.config import Config
from genrec.learning.schedule import total_steps
from genrec.learning.sft.streaming import WindowStream

if TYPE_CHECKING:
    from genrec.learning.checkpoints import Checkpoints

DATASET = "pools"

AHEAD_BYTES = 256 * 2**20
"""What one worker's dataset may hold in Ray's object store before the worker takes it."""

ReadPool = Callable[[int, int, int], pa.Table]
"""From a pool, a rank and the number of workers to what the worker learns from it."""


@dataclass(frozen=True)
class Position:
    """Where a restarted run reads from: a step at or before that of its newest checkpoint, kept beside the checkpoints.

    Ray Train makes the datasets of new workers before these look at their checkpoint.
    """

    file: str
    filesystem: pafs.FileSystem

    @classmethod
    def of(cls, config: Config, out: Path) -> Position:
        """That of the run whose stage fills ``out``."""
        storage = ray_storage(config, out / "train")
        return cls(
            f"{storage['storage_path']}/position.json", storage.get("storage_filesystem", pafs.LocalFileSystem())
        )

    def read(self) -> int:
        """The step; 0, which is before any checkpoint, where nothing was written, or a kill cut the writing."""
        if self.filesystem.get_file_info(self.file).type == pafs.FileType.NotFound:
            return 0
        with self.filesystem.open_input_stream(self.file) as stream:
            text = stream.read()
        return int(json.loads(text)["step"]) if text.endswith(b"}") else 0

    def write(self, step: int) -> None:
        """Keep a step."""
        with self.filesystem.open_output_stream(self.file) as stream:
            stream.write(json.dumps({"step": step}).encode())


class PositionedCheckpoints:
    """The checkpoints of a run that streams: each moves the position to the one before it (``Checkpoints`` protocol).

    Not to itself: were the run killed before Ray Train knows of it, workers would resume from the one before. From one
    that is older still, they read the pools in between themselves (``StreamedEpochs``).
    """

    def __init__(self, inner: Checkpoints, position: Position) -> None:
        self._inner, self._position = inner, position
        self._before: int | None = None

    @contextmanager
    def latest(self) -> Generator[Path | None]:
        """The newest checkpoint as a local directory, or None."""
        with self._inner.latest() as directory:
            yield directory

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Keep what ``write`` puts into a directory, at step ``metrics["step"]``."""
        self._inner.save(write, metrics)
        if self._before is not None and ray.train.get_context().get_world_rank() == 0:
            self._position.write(self._before)
        self._before = int(metrics["step"])


class PoolShards(DataConfig):
    """Gives each worker the dataset of its own parts of the pools, in order.

    Ray's own split gives every worker other blocks; here each batch is shared among the workers.
    """

    def __init__(self, stream: WindowStream, position: Position, resources: Mapping[str, float]) -> None:
        super().__init__(datasets_to_split=[])
        self._stream, self._position, self._resources = stream, position, dict(resources)
        self._read: ReadPool = offered(stream.read)

    def configure(
        self,
        datasets: Mapping[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Sequence[Any] | None,
        worker_node_ids: Sequence[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """Of each rank: the iterator over its parts, from the first pool on that the run has not learned from."""
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        first = self._stream.pool_of(self._position.read())
        return [
            {name: self._part(pools, first, rank, world_size) for name, pools in datasets.items()}
            for rank in range(world_size)
        ]

    def _part(self, pools: ray.data.Dataset, first: int, rank: int, world: int) -> DataIterator:
        left = ray.data.range(pools.count() - first, override_num_blocks=pools.count() - first)
        rows = left.map_batches(
            cast("Any", partial(_read_rows, self._read, first, rank, world)),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0,  # A pool takes a hundredth of the time that learning from it takes, and must not wait for it.
            resources=self._resources,
            concurrency=1,
        )
        rows.context.execution_options = ExecutionOptions(
            preserve_order=True, resource_limits=ExecutionResources(object_store_memory=AHEAD_BYTES)
        )
        rows.context.enable_progress_bars = False
        return rows.iterator()


def _read_rows(read: ReadPool, first: int, rank: int, world: int, batch: pa.Table) -> pa.Table:
    return read(first + batch["id"][0].as_py(), rank, world)


def make_ingest(config: Config, stream: WindowStream, out: Path) -> tuple[Mapping[str, ray.data.Dataset], PoolShards]:
    """The datasets of the run whose stage fills ``out``, and how workers get their parts of them; Ray must be there."""
    pools = stream.pool_of(total_steps(config.learning.sft, stream.steps) - 1) + 1
    shards = PoolShards(stream, Position.of(config, out), config.compute.data_resources)
    return {DATASET: ray.data.range(pools)}, shards


def open_pools(step: int, rank: int, world: int) -> Iterator[pa.Table]:
    """In a Ray Train worker: what it learns from ``step`` on, or from an earlier one (``OpenPools``)."""
    shard: Any = ray.train.get_dataset_shard(DATASET)
    return iter(shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
