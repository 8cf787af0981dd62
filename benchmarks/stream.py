"""A chronological log in six parts, one after the other: a policy that stays as it was, one that is updated, a new one.

All train on the first part. Each later part is predicted before any of them has seen it; then ``updated`` goes on from
what it is by ``learning.update``, as `genrec update` does, and ``retrained`` is trained anew on all parts so far. The
catalogue and its semantic IDs are those of the whole item table for all three, so that only the policies differ.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import Bench, in_process
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.progress import STAGE
from cluster.stages.sft import VALIDATION_WIDTH, sft_loop
from cluster.train import RunSpec, make_accelerator, run_training
from genrec.config import Config
from genrec.data.columns import LOG
from genrec.data.files import write_json, write_parquet
from genrec.data.readers import read_items, read_sequences, read_stats
from genrec.data.tables import QUERIES, QUERY_CONTEXT, SEQUENCES
from genrec.errors import InputError

if TYPE_CHECKING:
    from genrec.data.new_events import Appended
    from genrec.evaluation.validate import Search
    from genrec.policy.model import Policy
    from genrec.policy.prompts import Prompts
    from genrec.sid.catalog import Catalog

LOGGER = logging.getLogger(__name__)

NEEDS = ("prepare", "assign")
PARTS = 6
SYSTEMS = ("frozen", "updated", "retrained")
ALL = 1e-12
"""A share of held-out users that holds out none."""


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """NDCG@10 of each part but the first, and the minutes that each system took to be ready for it.

    Raises:
        InputError: a log without times, or too short for six parts; a config that learns tasks.
    """
    data = artifacts["prepare"].path
    if read_stats(data)["log"]["no_time"]:
        raise InputError("bench stream: the log has events without a time, so it cannot be cut by time")
    if config.learns_tasks:
        raise InputError("bench stream: got a config that learns tasks; it trains next items alone")
    own = in_process(config, "stream")
    settings = {
        "policy": own.policy.result_settings(),
        "sft": own.learning.sft.result_settings(),
        "update": own.learning.update.result_settings(),
        "seed": own.seed,
    }
    made = make_artifact(own, Recipe("stream", settings, (__name__,), [artifacts[name] for name in NEEDS]),
                         partial(_measure, own, data, artifacts["assign"].path))  # fmt: skip
    return _bench(made.metrics["rows"])


def _bench(rows: list[dict[str, Any]]) -> Bench:
    bench = Bench("stream")
    for row in rows:
        for system in SYSTEMS:
            for figure in ("ndcg@10", "minutes"):
                bench.figures[f"part{row['part']}/{system}/{figure}"] = row[system][figure]
    bench.ratios.update(ratios_of(rows))
    return bench


def ratios_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Quality and time of the systems over each other, from the rows of the parts.

    For the second part all three are the first training: nothing was updated yet, so it counts only if it is alone.
    """
    later = rows[1:] or rows
    sums = {(name, key): sum(row[name][key] for row in later) for name in SYSTEMS for key in ("ndcg@10", "minutes")}
    ratios = {
        f"updated/{other}/ndcg@10": sums["updated", "ndcg@10"] / max(sums[other, "ndcg@10"], 1e-12)
        for other in ("frozen", "retrained")
    }
    ratios["retrained/updated/minutes"] = sums["retrained", "minutes"] / max(sums["updated", "minutes"], 1e-9)
    return ratios


@dataclass(frozen=True)
class _TimeParts:
    """The whole log, cut by time into parts."""

    config: Config
    data: Path
    catalog_path: Path

    @cached_property
    def rows(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(read_items(self.data)["id"].to_pylist())}

    @cached_property
    def parts(self) -> list[pa.Table]:
        """The events of each part (schema ``LOG``), oldest first."""
        log = _log(read_sequences(self.data), list(self.rows))
        times_E = log["timestamp"].to_numpy()
        bounds = [int(times_E[len(times_E) * part // PARTS]) for part in range(1, PARTS)]
        part_E = np.searchsorted(bounds, times_E, side="right")
        parts = [log.filter(pa.array(part_E == part)) for part in range(PARTS)]
        if empty := [number for number, part in enumerate(parts, 1) if not part.num_rows]:
            raise InputError(f"bench stream: part {empty[0]} of {PARTS} is empty: too many events have the same time")
        return parts

    def append(self, sequences: pa.Table, log: pa.Table, held_out: float) -> Appended:
        from genrec.data.new_events import append_events

        options: dict[str, Any] = {
            "max_history": self.config.data.max_history,
            "first_query": 0,
            "seed": self.config.seed,
        }
        return append_events(sequences, log, self.rows, held_out=held_out, **options)

    def until(self, parts: int, held_out: float) -> Appended:
        """The first ``parts`` parts, of which each user's last event may be held out."""
        return self.append(SEQUENCES.empty_table(), pa.concat_tables(self.parts[:parts]), held_out)


def _log(sequences: pa.Table, ids: list[str]) -> pa.Table:
    """Sequences as a log, oldest first."""
    rows: list[dict[str, Any]] = []
    for user in sequences.to_pylist():
        events, values = (user[name] or [None] * len(user["items"]) for name in ("events", "values"))
        for item, at, event, value in zip(user["items"], user["times"], events, values, strict=True):
            row = {"user_id": user["user_id"], "item_id": ids[item], "timestamp": at, "event": event, "value": value}
            rows.append(row)
    rows.sort(key=lambda row: row["timestamp"])
    return pa.Table.from_pylist(rows, schema=LOG)


def _measure(config: Config, data: Path, catalog: Path, out: Path) -> Mapping[str, Any]:
    stream = _TimeParts(config, data, catalog)
    held_out, rows = config.learning.update.held_out, list[dict[str, Any]]()
    first, minutes = _trained(stream, 1, out)
    updated, retrained = first, first
    spent = {"frozen": 0.0, "updated": minutes, "retrained": minutes}
    for part in range(2, PARTS + 1):
        seen, coming = stream.until(part - 1, held_out), stream.parts[part - 1]
        queries = stream.append(seen.sequences, coming, ALL).train
        policies = {"frozen": first, "updated": updated, "retrained": retrained}
        row: dict[str, Any] = {"part": part}
        for system, tested in policies.items():
            row[system] = {"ndcg@10": _ndcg(stream, tested, seen, queries), "minutes": spent[system]}
        rows.append(row)
        shown = "  ".join(f"{system} {row[system]['ndcg@10']:.4f}" for system in SYSTEMS)
        LOGGER.info("part %d of %d, NDCG@10: %s", part, PARTS, shown, extra={STAGE: "stream"})
        if part < PARTS:
            new = stream.append(seen.sequences, coming, held_out)
            updated, spent["updated"] = _updated(stream, updated, seen, new)
            retrained, spent["retrained"] = _trained(stream, part, out)
    return {"rows": rows}


@dataclass(frozen=True)
class _Version:
    """A policy, by its trainable tensors; ``start`` is where such a policy can be built from."""

    start: Path
    tensors: Mapping[str, Any]

    def build(self, stream: _TimeParts) -> tuple[Policy, Prompts, Catalog]:
        spec = RunSpec(stream.config, stream.data, stream.catalog_path, self.start, self.start)
        policy, prompts, catalog = spec.build()
        policy.adopt(self.tensors)
        return policy, prompts, catalog


def _trained(stream: _TimeParts, parts: int, out: Path) -> tuple[_Version, float]:
    """A policy that is trained on the first parts, by validation on its users' last events; minutes it took."""
    begin, config = time.perf_counter(), stream.config
    seen, where = stream.until(parts, config.learning.update.held_out), out / f"until-{parts}"
    _write(stream, seen, where / "data")
    run_training(sft_loop, RunSpec(config, where / "data", stream.catalog_path, where), "sft")
    version = _Version(where, {})
    spec = RunSpec(config, where / "data", stream.catalog_path, where, where)
    trained = replace(version, tensors=spec.build()[0].snapshot(0).tensors)
    return trained, _minutes(where / "minutes.json", begin)


def _minutes(file: Path, begin: float) -> float:
    """Minutes since ``begin``, or those of the command that finished this training before it was killed."""
    if not file.is_file():
        write_json({"minutes": (time.perf_counter() - begin) / 60}, file)
    return float(json.loads(file.read_text(encoding="utf-8"))["minutes"])


def _updated(stream: _TimeParts, version: _Version, seen: Appended, new: Appended) -> tuple[_Version, float]:
    """The policy after the new events, or the same where the guard kept it; minutes it took."""
    from cluster.update.policy_update import UpdateTask, update_policy

    begin = time.perf_counter()
    policy, prompts, catalog = version.build(stream)
    valid = {"old": seen.valid, "new": new.valid}
    task = UpdateTask(policy, prompts, catalog, new.train, seen.train, valid, _search(stream, seen))
    found = update_policy(task, stream.config, make_accelerator(stream.config))
    kept = replace(version, tensors=found.tensors) if found.best_step else version
    return kept, (time.perf_counter() - begin) / 60


def _ndcg(stream: _TimeParts, version: _Version, seen: Appended, queries: pa.Table) -> float:
    from genrec.evaluation.validate import Validator

    policy, prompts, catalog = version.build(stream)
    config, accelerator = stream.config, make_accelerator(stream.config)
    options: dict[str, Any] = {"count": config.learning.update.eval_queries, "batch_size": config.decode.batch_size}
    policy.to(accelerator.device)
    search = _search(stream, seen)
    return Validator(queries, prompts, catalog.trie, accelerator, search=search, **options)(policy)["ndcg@10"]


def _search(stream: _TimeParts, seen: Appended) -> Search:
    from genrec.baselines.train_log import train_log
    from genrec.evaluation.validate import Search

    masks = train_log(seen.sequences, len(stream.rows)).mask_seen
    return Search.of(VALIDATION_WIDTH, stream.config.data.max_history, mask_seen=masks)


def _write(stream: _TimeParts, seen: Appended, out: Path) -> None:
    """A data directory of what was seen so far."""
    if (out / "stats.json").is_file():
        return
    empty = pa.schema([*QUERIES, *QUERY_CONTEXT]).empty_table()
    for split, table in (("train", seen.train), ("valid", seen.valid), ("test", empty)):
        write_parquet(table, out / "queries" / split / "part-00000.parquet")
    write_parquet(seen.sequences, out / "sequences" / "part-00000.parquet")
    write_parquet(read_items(stream.data), out / "items.parquet")
    write_json(seen.counts, out / "stats.json")
