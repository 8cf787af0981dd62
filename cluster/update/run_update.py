"""A near-line update of a finished run: new events, new items, some steps of training, the guard, a new run.

<storage>/update/<key>/              the policy that the guard kept, if any, and what it saw (curve.json)
<storage>/update/<key>/data/         the log with the new events
<storage>/runs/<name>-<key>/         the new run; <storage>/runs/<name> points to it, so /v1/reload finds it
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.newest_run import point_to
from cluster.serve.catalog_writer import CatalogWriter
from cluster.store_folders import publish_in_store
from cluster.train import CURVE, make_accelerator, read_summary
from cluster.update.policy_update import UpdateTask, update_policy
from cluster.update.update_data import appended, write_update_data
from genrec.data.content import content_digest
from genrec.data.files import write_json
from genrec.data.new_events import Appended, read_new_log
from genrec.data.readers import read_items, read_queries, read_sequences, read_stats, read_train_queries
from genrec.errors import InputError
from genrec.evaluation.validate import Search
from genrec.inference.catalog_view import CatalogView
from genrec.inference.run_place import RunPlace
from genrec.inference.run_record import RECORD, RunRecord
from genrec.policy.backbone import load, save
from genrec.sid import catalog_updates
from genrec.sid.catalog import Catalog

LOG = logging.getLogger(__name__)

UPDATED_FROM = "updated_from"
VALIDATION_WIDTH = 10


@dataclass(frozen=True)
class Updated:
    """What an update did: the events and queries by kind, the run that it published (None: the guard kept the old)."""

    counts: Mapping[str, int]
    inserted: int
    run: Path | None
    curve: list[dict[str, Any]]


def update_run(run: Path | str, log: Path, items: Path | None, overrides: Mapping[str, object]) -> Updated:
    """Update a run, the directory or the URL of its report, with the events of the file ``log``.

    Args:
        items: a table of the items that the catalogue lacks; they are inserted first.
        overrides: of the run's config: ``learning.update.*``.

    Raises:
        InputError: no finished run, or one without times; events or items that cannot be used, none that is new, or
            another update of the run's name that was published meanwhile.
    """
    place = RunPlace.find(run)
    before = place.read()
    old = replace(before, config=before.config.replace(overrides))
    _require_times(old)
    newest = place.neighbour(old.config.name)
    events = read_new_log(log, old.config.data)
    inserted = 0 if items is None else _insert(old, items)
    settings = {
        "update": old.config.learning.update.result_settings(),
        "log": content_digest(log),
        "run": [part.relative_to(old.storage).as_posix() for part in (old.data, old.catalog, old.policy)],
        "catalog": _current(old).name,
        "seed": old.config.seed,
    }
    made = make_artifact(old.config, Recipe("update", settings, (__name__,)), partial(_update, old, events))
    curve = read_summary(made.path)["curve"]
    kept = None if not made.metrics["best_step"] else _publish(place, old, made, newest)
    return Updated(made.metrics["counts"], inserted, kept, curve)


def roll_back(run: Path | str) -> RunPlace:
    """Make the run that ``run`` was updated from the newest of its name again; returns it.

    Raises:
        InputError: no finished run, or one that is no update, or whose predecessor is gone.
    """
    place = RunPlace.find(run)
    own, record = place.read(), _record(place)
    if UPDATED_FROM not in record:
        raise InputError(f"{run} ({place.folder}) is no update of another run, so there is none to go back to")
    former = place.neighbour(Path(record[UPDATED_FROM]).name)
    former.read()
    _point_to(own, former.directory())
    return former


def _require_times(run: RunRecord) -> None:
    """Refuse a run whose sequences have positions in the place of times: no new event could be told from an old one."""
    untimed = read_stats(run.data).get("log", {}).get("no_time", 0)
    if untimed and read_sequences(run.data, ["user"]).num_rows:  # an imported run has the counts and no users
        raise InputError(
            f"{untimed:,} events of the run's log have no timestamp, so which of the new ones are known already cannot "
            "be told; prepare and train the run again from a log with a timestamp for each event"
        )


def _insert(run: RunRecord, items: Path) -> int:
    """Insert the items that the catalogue lacks; returns how many."""
    table = catalog_updates.read_new_items(items, run.config.data.columns)
    known = set(catalog_updates.read(_current(run))[1])
    fresh = table.filter(pa.array([item not in known for item in table["id"].to_pylist()], pa.bool_()))
    return CatalogWriter().insert_table(run, fresh)["inserted"] if fresh.num_rows else 0


def _current(run: RunRecord) -> Path:
    return catalog_updates.current(run.catalog, run.live)


def _update(run: RunRecord, events: pa.Table, out: Path) -> Mapping[str, Any]:
    """Fill the directory of an update; its best step is 0 where the guard kept the policy of before."""
    config, assigned = run.config, Catalog.load(run.catalog)
    history, cache = config.data.max_history, run.storage / "backbones"
    policy, prompts = load(config.policy, assigned, run.policy, max_history=history, seed=config.seed, cache=cache)
    items = read_items(run.data)
    view = CatalogView.read(_current(run), items.slice(0, len(assigned)), prompts, assigned.digest)
    new = appended(run, events, view)
    _tell(new)
    write_update_data(run, new, view, catalog_updates.read(view.path)[2], out / "data")
    if policy.items is not None:
        policy.items.set_catalog(view.catalog, prompts.sids)
    task = UpdateTask(
        policy,
        view.prompts,
        view.catalog,
        new=new.train,
        old=read_train_queries(run.data, with_context=config.policy.context.is_on),
        valid={"old": _old_queries(run.data), "new": new.valid},
        search=Search.of(VALIDATION_WIDTH, history, mask_seen=run.mask_seen),
    )
    found = update_policy(task, config, make_accelerator(config))
    if found.tensors:
        save(policy, dict(found.tensors), assigned, {"settings": config.policy.model_dump(mode="json")}, out)
    write_json({"best_step": found.best_step, "curve": found.curve}, out / CURVE)
    return {"best_step": found.best_step, "counts": new.counts}


def _old_queries(data: Path) -> pa.Table:
    """Queries of before that no training has seen: of validation, or of test where ``refit`` has trained on those."""
    valid = read_queries(data, "valid")
    return valid if valid.num_rows else read_queries(data, "test")


def _tell(new: Appended) -> None:
    counts = new.counts
    LOG.info("events: %s", "  ".join(f"{name} {count:,}" for name, count in counts.items()))
    if counts["unknown_items"]:
        LOG.warning(
            f"{counts['unknown_items']} events are of items that the catalogue lacks, such as {new.unknown}, and were "
            "left out; --items FILE inserts items"
        )


def _publish(place: RunPlace, run: RunRecord, made: Artifact, newest: RunPlace) -> Path:
    """Write the record of the new run, and point the newest of its name to it, which was ``newest`` when this began.

    Raises:
        InputError: the newest is another one now, whose events the new run does not know.
    """
    kept = run.storage / "runs" / f"{run.config.name}-{made.key}"
    now = place.neighbour(run.config.name)
    if now.folder not in (newest.folder, kept.name):
        raise InputError(
            f"while this update ran, another one made {now.folder} the newest {run.config.name!r}; nothing was "
            "published: run this again, to go on from it"
        )
    record = _record(place)
    parts = {"policy": f"update/{made.key}", "data": f"update/{made.key}/data"}
    record |= {"parts": record["parts"] | parts, "config": run.config.model_dump(mode="json")}
    if not (kept / RECORD).is_file():
        kept.mkdir(parents=True, exist_ok=True)
        write_json(read_summary(made.path), kept / "update.json")
        write_json({**record, UPDATED_FROM: place.folder}, kept / RECORD)
    _point_to(run, kept)
    return kept


def _point_to(run: RunRecord, kept: Path) -> None:
    """Make the report in ``kept`` the newest of the run's name, in the object store too where the run is in one."""
    newest = kept.with_name(run.config.name)
    point_to(newest, kept)
    publish_in_store(run.config, kept, newest)


def _record(place: RunPlace) -> dict[str, Any]:
    """``recommender.json`` of a run that could be read before."""
    return json.loads((place.directory() / RECORD).read_text(encoding="utf-8"))
