"""Where a finished run is: in a directory, or in an object store, from which it is fetched to this machine.

``genrec.load("s3://bucket/genrec/runs/demo")``, and whatever else takes a run, finds it here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from genrec.config import Compute, Config
from genrec.config.root import FILE, is_url
from genrec.data.artifact_cache import ArtifactCache
from genrec.data.files import write_text
from genrec.data.object_store import ObjectStore
from genrec.errors import InputError
from genrec.inference.run_record import RECORD, RunRecord
from genrec.sid.stored_updates import StoredUpdates

NEWEST = "newest.json"
"""In an object store, what ``runs/<name>`` points to; a directory has a symbolic link there."""


@dataclass(frozen=True)
class RunPlace:
    """A run: the name that it was asked for by, and where its report is.

    ``where``: a directory with symbolic links resolved, or the URL of ``<storage>/runs/<name>-<key>``.
    """

    name: str
    where: str

    @classmethod
    def find(cls, run: str | Path) -> RunPlace:
        """The run whose report is at ``run``, or where that points to.

        Raises:
            InputError: a URL that is none of a run's report, or a store that cannot be read.
        """
        if is_url(run):
            storage, name = _split(str(run))
            newest = ObjectStore(storage).read_json(f"runs/{name}/{NEWEST}")
            return cls(name, _joined(storage, name if newest is None else str(newest["run"])))
        directory = Path(str(run).removeprefix(FILE)).expanduser().absolute()
        return cls(directory.name, str(directory.resolve()))

    @classmethod
    def kept(cls, name: str, storage: str, folder: str) -> RunPlace:
        """The run in a ``folder`` of the runs of a storage."""
        return cls(name, _joined(storage, folder) if is_url(storage) else str(Path(storage) / "runs" / folder))

    @property
    def folder(self) -> str:
        """The name of its folder among the runs of its storage."""
        return _split(self.where)[1] if self.is_remote else Path(self.where).name

    @property
    def is_remote(self) -> bool:
        """Whether it is in an object store."""
        return is_url(self.where)

    def neighbour(self, name: str) -> RunPlace:
        """The run of that name in the same storage."""
        if self.is_remote:
            return self.find(_joined(_split(self.where)[0], name))
        return self.find(Path(self.where).parent / name)

    def has_neighbour(self, name: str) -> bool:
        """Whether a run of that name is in the same storage."""
        if self.is_remote:
            return ObjectStore(self.storage).holds(f"runs/{name}/{RECORD}")
        return (Path(self.where).parent / name).is_dir()

    @property
    def storage(self) -> str:
        """The storage that it lies in: a directory, or the URL of a store."""
        return _split(self.where)[0] if self.is_remote else str(Path(self.where).parents[1])

    def directory(self, *, parts: bool = True) -> Path:
        """The directory of its report on this machine; of a URL, after its files, parts and changes were fetched.

        What was fetched before is not fetched again.

        Args:
            parts: also what the report is of, such as the policy; False for who only looks.

        Raises:
            InputError: a store that has no such run, or cannot be read.
        """
        return _fetched(*_split(self.where), parts=parts) if self.is_remote else Path(self.where)

    def read(self, *, parts: bool = True) -> RunRecord:
        """Its record; the config of one in an object store has that as its storage. ``parts``: as for ``directory``.

        Raises:
            InputError: as ``directory``, or no finished run that can be read.
        """
        record = RunRecord.read(self.directory(parts=parts))
        if not self.is_remote:
            return record
        own = {"storage": self.storage, "compute.cache": str(Path(Compute().cache).expanduser())}
        return replace(record, config=record.config.replace(own))


def _split(url: str) -> tuple[str, str]:
    """The storage of a run's URL, and the name of the run."""
    parts = urlsplit(url)
    root, found, name = parts.path.rstrip("/").rpartition("/runs/")
    if not found or not name or "/" in name:
        raise InputError(f"got {url}; wanted the URL of a run's report, <storage>/runs/<name>")
    return urlunsplit(parts._replace(path=root)), name


def _joined(storage: str, name: str) -> str:
    parts = urlsplit(storage)
    return urlunsplit(parts._replace(path=f"{parts.path}/runs/{name}"))


def _fetched(storage: str, name: str, *, parts: bool) -> Path:
    config = Config(storage=storage, compute=Compute())
    cache = ArtifactCache(ObjectStore(config.storage), config.storage_path)
    record = cache.store.read(f"runs/{name}/{RECORD}")
    if record is None:
        raise InputError(f"{cache.store.url} has no finished run {name!r}; make one with `genrec full`")
    if parts:
        _fetch_parts(cache, name, record)
    report = cache.root / "runs" / name
    files = {file: about for file, about in cache.store.files(f"runs/{name}").items() if "/" not in file}
    missing = {file: about for file, about in files.items() if not _has_size(report / file, about.size)}
    cache.store.download({f"runs/{name}/{file}": (report / file, about) for file, about in missing.items()})
    write_text(record.decode(), report / RECORD)
    return report.resolve()


def _fetch_parts(cache: ArtifactCache, name: str, record: bytes) -> None:
    try:
        parts = [Path(part) for part in json.loads(record)["parts"].values()]
        catalog = Path(json.loads(record)["parts"]["catalog"]).name
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the record of run {name!r} in {cache.store.url} is damaged ({error})") from None
    for part in {cache.root.joinpath(*part.parts[:2]) for part in parts if ".." not in part.parts}:
        if not cache.fetch(part):
            raise InputError(f"run {name!r} needs {cache.name(part)}, which is gone from {cache.store.url}")
    updates = StoredUpdates(cache, cache.root / "live" / catalog)
    with updates.lock():
        updates.pull()


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size
