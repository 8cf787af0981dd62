"""prepare on Ray Data: a log larger than memory goes through as parts, then as buckets of users.

    parts ─partition→ buckets ─filter→ sorted, filtered buckets ─k-core, numbers (here)→ ─write→ sequences, queries

Each arrow but the middle one is a ``parallel_map`` over files that are skipped when complete. In between, this process
holds catalogue-sized counts and one bucket's columns at a time. The functions of the data live in ``genrec.data``.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.content import hash_cache
from cluster.data import parallel_map
from cluster.stages.plan import Plan, StageRun
from genrec.config import Config
from genrec.data.columns import renames_that_count
from genrec.data.files import write_json, write_parquet
from genrec.data.filters import Bools, Ints, k_core, keep_titles, users_per_item, window
from genrec.data.partition import partition_part, read_bucket, total_counts
from genrec.data.sequences import Numbering, Users, filter_events, read_users, sort_events, split_codes, write_queries
from genrec.data.sources import open_source
from genrec.data.sources.source import Source, fingerprint, total_bytes
from genrec.data.splits import Codes, Cut, cut_points
from genrec.data.statistics import (
    NEVER,
    LogStatistics,
    count_users,
    refuse_missing_splits,
    refuse_nothing_left,
    statistics,
)
from genrec.data.tables import ITEMS, same_spelling
from genrec.data.train_counts import TRAIN_COUNTS, TrainCounts, count_train, total
from genrec.errors import InputError, dropping_what_is_refused

LOG = logging.getLogger(__name__)

SHOWN = ("users", "items", "interactions", "train", "valid", "test")
PLACES = ("path", "items", "interactions")
"""Settings that say where the source's files lie."""


@dataclass(frozen=True)
class PrepareSpec:
    """What the workers of each step need: small, picklable, the same for every shard."""

    source: Source
    config: Config
    folder: Path
    by_position: bool = False
    timed: bool = True
    cuts: tuple[Cut | None, ...] = ()
    numbering: tuple[Numbering, ...] = ()

    @property
    def scratch(self) -> Path:
        """Folder of everything that is removed when the stage is done."""
        return self.folder / "scratch"

    def kept(self, bucket: int) -> Path:
        """A bucket's sorted and filtered events."""
        return self.scratch / "kept" / f"part-{bucket:05d}.parquet"

    def counted(self, bucket: int) -> Path:
        """The train counts of a bucket's users."""
        return self.scratch / "train_counts" / f"part-{bucket:05d}.parquet"

    def alive(self, step: str) -> Bools:
        """Which items of the source's table were left after a step."""
        return np.load(self.scratch / f"{step}.npy")

    def todo(self, pattern: str) -> list[int]:
        """The buckets whose file, named by ``pattern``, does not exist."""
        return [j for j in range(self.config.data.shards) if not (self.folder / pattern.format(j)).is_file()]


def plan(run: StageRun) -> Plan:
    """Check the source's files, then write the data directory.

    The key holds the files' content and names, never their place.
    """
    config, source = run.config, open_source(run.config.data)
    window(config.data.filters)
    files = source.files()
    data = config.data.result_settings()
    data["columns"] = renames_that_count(config.data.columns)
    settings = {
        "data": {name: value for name, value in data.items() if name not in PLACES},
        "files": fingerprint(files, hash_cache(config)),
    }
    return Plan(settings, partial(_prepare_and_tell, source, _in_process_if_small(config, files)))


def _prepare_and_tell(source: Source, config: Config, directory: Path) -> dict[str, Any]:
    stats = prepare(source, config, directory)
    LOG.info("  ".join(f"{name} {stats[name]:,}" for name in SHOWN))
    return stats


def _in_process_if_small(config: Config, files: list[str]) -> Config:
    """The config with Ray Data switched off where the log is so small that starting actors would take longer."""
    size = total_bytes(files)
    if size is None or size >= config.compute.in_process_below_mb * 2**20:
        return config
    return config.replace({"compute.data_actors": 0})


def prepare(source: Source, config: Config, folder: Path) -> dict[str, Any]:
    """Fill ``folder`` with the data directory (``genrec.data.tables``) and return its statistics.

    Raises InputError for data that cannot be used; then nothing stays in ``folder``, unless it is a MachineError.
    """
    spec = PrepareSpec(source, config, folder)
    if not (folder / "stats.json").is_file():
        with dropping_what_is_refused(partial(shutil.rmtree, folder)):
            _prepare(spec)
    shutil.rmtree(spec.scratch, ignore_errors=True)
    return json.loads((folder / "stats.json").read_text(encoding="utf-8"))


def _prepare(spec: PrepareSpec) -> None:
    catalogue = _catalogue(spec)
    spec, counts = _partition(spec)
    left = _filter(spec, catalogue.num_rows)
    counts["duplicates"] = left.pop("duplicates")
    _tell_duplicates(counts, spec.config)
    alive = _core(spec)
    spec, survey = _number(spec, int(alive.sum()))
    refuse_nothing_left(counts, left, survey.events, spec.config.data)
    refuse_missing_splits(survey, spec.config.data, spec.source.whole_histories)
    _map(spec, _writer, spec.todo("sequences/part-{:05d}.parquet"), "write sequences and queries")
    items = _final_items(catalogue, alive, survey if spec.timed else None)
    write_parquet(items, spec.folder / "items.parquet")
    counted = (TrainCounts.read(spec.counted(bucket)) for bucket in range(spec.config.data.shards))
    total(counted, items.num_rows).write(spec.folder / TRAIN_COUNTS)
    written = {split: _rows(spec.folder / "queries" / split) for split in survey.targets}
    write_json(statistics(survey, written, counts, left, items.num_rows), spec.folder / "stats.json")


def _map(
    spec: PrepareSpec, make: Callable[[PrepareSpec], Callable[[int], None]], shards: list[int], label: str
) -> None:
    parallel_map(spec.config, partial(_without_result, make, spec), shards, label=label)


def _without_result(
    make: Callable[[PrepareSpec], Callable[[int], None]], spec: PrepareSpec
) -> Callable[[int], dict[str, Any]]:
    work = make(spec)

    def done(shard: int) -> dict[str, Any]:
        work(shard)
        return {}

    return done


def _catalogue(spec: PrepareSpec) -> pa.Table:
    file = spec.scratch / "catalogue.parquet"
    if not file.is_file():
        items = spec.source.items()
        if items.num_rows == 0:
            raise InputError("the catalogue is empty; at least one item was expected")
        write_parquet(items, file)
    catalogue = pq.ParquetFile(file).read()
    np.save(spec.scratch / "titles.npy", keep_titles(catalogue["title"], spec.config.data.filters))
    return catalogue


def _partition(spec: PrepareSpec) -> tuple[PrepareSpec, dict[str, Any]]:
    folder = spec.scratch / "scatter"
    parts = range(len(spec.source.parts()))
    todo = [part for part in parts if not (folder / f"part-{part:05d}" / "counts.json").is_file()]
    _map(spec, _partitioner, todo, "read the log")
    counts = total_counts(folder)
    _refuse_unusable_log(counts, spec)
    return replace(spec, by_position=counts["no_position"] == 0, timed=counts["no_time"] == 0), counts


def _partitioner(spec: PrepareSpec) -> Callable[[int], None]:
    parts = spec.source.parts()
    ids = pq.ParquetFile(spec.scratch / "catalogue.parquet").read(columns=["id"])["id"].combine_chunks()
    keep, inside = spec.alive("titles"), window(spec.config.data.filters)

    def work(index: int) -> None:
        folder = spec.scratch / "scatter" / f"part-{index:05d}"
        shards = spec.config.data.shards
        partition_part(
            spec.source, parts[index], index, ids=ids, keep_N=keep, window=inside, buckets=shards, folder=folder
        )

    return work


def _refuse_unusable_log(counts: dict[str, Any], spec: PrepareSpec) -> None:
    rows, kept, split = counts["rows"], counts["kept"], spec.config.data.split
    if rows == 0:
        raise InputError("the log is empty; at least one interaction was expected")
    if counts["unknown"] and not spec.source.ignores_unknown_items:
        examples = ", ".join(repr(name) for name in counts["unknown_examples"])
        raise InputError(
            f"{counts['unknown']:,} of {rows:,} interactions name an item that the catalogue lacks, e.g. {examples}; "
            + _hint(counts["unknown_examples"], spec)
        )
    refuse_nothing_left(counts, {}, kept, spec.config.data)
    if 0 < counts["no_position"] < kept:
        raise InputError(
            f"{counts['no_position']:,} of {kept:,} interactions have no position, others have one; "
            "give all of them one, or leave the column out"
        )
    if counts["no_time"] and counts["no_position"]:
        raise InputError(
            f"{counts['no_time']:,} of {kept:,} interactions have no timestamp (and no position); "
            "their order cannot be known"
        )
    if counts["no_time"] and split == "chronological":
        raise InputError(
            f"{counts['no_time']:,} of {kept:,} interactions have no timestamp; data.split=chronological "
            "needs all of them (leave_one_out and given do not)"
        )
    if counts["no_time"] and window(spec.config.data.filters):
        raise InputError(
            f"{counts['no_time']:,} of {kept:,} interactions have no timestamp; data.filters.start and end need all "
            "of them: leave both out, or name the column with data.columns.timestamp"
        )
    if split == "given" and counts["no_split"] == kept:
        raise InputError("data.split=given needs a split for each interaction, and this log has none")


def _hint(unknown: list[str], spec: PrepareSpec) -> str:
    """The remedy for unknown items: other spelling if an id of the catalogue differs by zeros, spaces or case alone."""
    ids = pq.ParquetFile(spec.scratch / "catalogue.parquet").read(columns=["id"])["id"].to_pylist()
    near = {same_spelling(name): name for name in ids}
    for name in unknown:
        if same_spelling(name) in near:
            return (
                f"the catalogue has {near[same_spelling(name)]!r} for {name!r}: write ids in both tables in the same "
                "way, as text where they have leading zeros"
            )
    return "add these items to the item table, or take the interactions out"


def _filter(spec: PrepareSpec, items: int) -> dict[str, int]:
    least = spec.config.data.filters.item_users
    alive = spec.alive("titles")
    if least:
        _map(spec, _user_counter, spec.todo("scratch/item_users/{:05d}.npy"), "count each item's users")
        files = sorted((spec.scratch / "item_users").glob("*.npy"))
        alive &= sum((np.load(file) for file in files), np.zeros(items, np.int64)) >= least
    np.save(spec.scratch / "item_users.npy", alive)
    _map(spec, _bucket_filter, spec.todo("scratch/kept/part-{:05d}.json"), "sort and filter")
    left = [json.loads(spec.kept(j).with_suffix(".json").read_text()) for j in range(spec.config.data.shards)]
    return {step: sum(counts[step] for counts in left) for step in left[0]}


def _tell_duplicates(counts: dict[str, Any], config: Config) -> None:
    if counts["duplicates"]:
        done = (
            "dropped" if config.data.filters.drop_duplicates else "kept; data.filters.drop_duplicates=true drops them"
        )
        LOG.warning(
            f"{counts['duplicates']:,} of {counts['kept']:,} interactions are equal to an earlier one in user, item, "
            f"time, position, event and value: {done}"
        )


def _user_counter(spec: PrepareSpec) -> Callable[[int], None]:
    items = len(spec.alive("titles"))
    folder = spec.scratch / "item_users"
    folder.mkdir(exist_ok=True)

    def work(bucket: int) -> None:
        events = read_bucket(spec.scratch / "scatter", bucket, ["user_id", "item"])
        user = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        counts = users_per_item(user, events["item"].to_numpy().astype(np.int64), items)
        np.save(folder / f"{bucket:05d}.tmp.npy", counts)
        (folder / f"{bucket:05d}.tmp.npy").rename(folder / f"{bucket:05d}.npy")

    return work


def _bucket_filter(spec: PrepareSpec) -> Callable[[int], None]:
    alive = spec.alive("item_users")

    def work(bucket: int) -> None:
        events = sort_events(read_bucket(spec.scratch / "scatter", bucket), spec.by_position)
        events, left = filter_events(events, spec.config.data.filters, alive)
        write_parquet(events, spec.kept(bucket))
        write_json(left, spec.kept(bucket).with_suffix(".json"))

    return work


def _core(spec: PrepareSpec) -> Bools:
    def pairs() -> Iterator[tuple[Ints, Ints]]:
        for bucket in range(spec.config.data.shards):
            table = pq.ParquetFile(spec.kept(bucket)).read(columns=["user", "item"])
            yield tuple(table[name].to_numpy().astype(np.int64) for name in ("user", "item"))

    filters = spec.config.data.filters
    alive = k_core(pairs, spec.alive("item_users"), filters.user_core, filters.item_core)
    np.save(spec.scratch / "alive.npy", alive)
    return alive


def _number(spec: PrepareSpec, items: int) -> tuple[PrepareSpec, LogStatistics]:
    data = spec.config.data
    if data.split == "chronological":
        spec = replace(spec, cuts=cut_points(lambda: (users.targets() for users in _all_users(spec))))
    coded = ((users, split_codes(users, data.split, spec.cuts)) for users in _all_users(spec))
    survey = count_users(coded, items, data.eval_queries)
    return replace(spec, numbering=survey.numbering()), survey


def _all_users(spec: PrepareSpec) -> Iterator[Users]:
    alive = spec.alive("alive")
    for bucket in range(spec.config.data.shards):
        yield read_users(spec.kept(bucket), alive, spec.config.data.filters.user_core, timed=spec.timed)


def _writer(spec: PrepareSpec) -> Callable[[int], None]:
    alive, data = spec.alive("alive"), spec.config.data

    def work(bucket: int) -> None:
        users = read_users(spec.kept(bucket), alive, data.filters.user_core, timed=spec.timed)
        codes: Codes = split_codes(users, data.split, spec.cuts)
        sequences = write_queries(users, codes, spec.numbering[bucket], data.max_history, spec.folder, bucket)
        count_train(sequences, int(alive.sum())).write(spec.counted(bucket))
        # Written last: it marks the bucket as done.
        write_parquet(sequences, spec.folder / "sequences" / f"part-{bucket:05d}.parquet")

    return work


def _final_items(catalogue: pa.Table, alive: Bools, survey: LogStatistics | None) -> pa.Table:
    items = catalogue.filter(pa.array(alive))
    first = np.full(items.num_rows, NEVER) if survey is None else survey.first_seen_N
    columns: dict[str, Any] = {"item": pa.array(np.arange(items.num_rows, dtype=np.int32))}
    for name in items.column_names:
        columns[name] = items[name]
        if name == "categories":
            columns["first_seen"] = pa.array(first, mask=first == NEVER)
    table = pa.table(columns)
    extra = [table.schema.field(name) for name in table.column_names if name not in ITEMS.names]
    return table.cast(pa.schema([*ITEMS, *extra]))


def _rows(folder: Path) -> int:
    return sum(pq.ParquetFile(file).metadata.num_rows for file in folder.glob("part-*.parquet"))
