"""A finished run of an object store, fetched to this machine: ``genrec.load("s3://bucket/genrec/runs/demo")``."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from genrec.config import Compute, Config
from genrec.config.root import FILE
from genrec.data.artifact_cache import ArtifactCache, SharedFolder
from genrec.data.files import write_text
from genrec.data.object_store import ObjectStore
from genrec.errors import InputError
from genrec.inference.run_record import RECORD


def local_run(run: str | Path) -> Path:
    """The directory of a run's report on this machine; of a URL, after its artifacts and changes were fetched.

    What was fetched before is not fetched again.

    Raises:
        InputError: a URL that is none of a run's report, or a store that cannot be read.
    """
    if not isinstance(run, str) or "://" not in run:
        return Path(run)
    if run.startswith(FILE):
        return Path(run.removeprefix(FILE))
    parts = urlsplit(run)
    root, found, name = parts.path.rstrip("/").rpartition("/runs/")
    if not found or not name or "/" in name:
        raise InputError(f"got {run}; wanted the URL of a run's report, <storage>/runs/<name>")
    config = Config(storage=urlunsplit(parts._replace(path=root)), compute=Compute())
    return _fetched(ArtifactCache(ObjectStore(config.storage), config.storage_path), name)


def _fetched(cache: ArtifactCache, name: str) -> Path:
    record = cache.store.read(f"runs/{name}/{RECORD}")
    if record is None:
        raise InputError(f"{cache.store.url} has no finished run {name!r}; make one with `genrec full`")
    try:
        parts = [Path(part) for part in json.loads(record)["parts"].values()]
        catalog = Path(json.loads(record)["parts"]["catalog"]).name
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the record of run {name!r} in {cache.store.url} is damaged ({error})") from None
    for part in {cache.root.joinpath(*part.parts[:2]) for part in parts if ".." not in part.parts}:
        if not cache.fetch(part):
            raise InputError(f"run {name!r} needs {cache.name(part)}, which is gone from {cache.store.url}")
    SharedFolder(cache, cache.root / "live" / catalog).pull()
    report = cache.root / "runs" / name
    write_text(record.decode(), report / RECORD)
    return report.resolve()
