"""What storage holds beside artifacts, where it is a URL: reports of runs, and catalogues that change."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cluster.node_files import artifact_cache, machine_of
from cluster.writer_lease import writer_lease
from genrec.config import Config
from genrec.errors import InputError
from genrec.inference.run_place import NEWEST
from genrec.inference.run_record import RECORD
from genrec.sid.stored_updates import StoredUpdates

WAIT_S = 20.0
"""Seconds to wait for another process of this machine that changes a catalogue."""


def publish_in_store(config: Config, kept: Path, newest: Path) -> None:
    """Write the report of the run ``kept`` into the store, there and as the ``newest`` of its name.

    A reader goes by the run's record and by what the newest points to, which are written last, each in one step; then
    files of the one before are removed. Without a store nothing is done.
    """
    cache = artifact_cache(config)
    if cache is None:
        return
    files = [path for path in kept.iterdir() if path.is_file()]
    for name in (cache.name(kept), cache.name(newest)):
        cache.store.upload({f"{name}/{path.name}": path for path in files if path.name != RECORD})
        cache.store.upload({f"{name}/{RECORD}": kept / RECORD})
    place = cache.name(newest)
    cache.store.write(f"{place}/{NEWEST}", json.dumps({"run": kept.name}).encode())
    left = set(cache.store.files(place)) - {path.name for path in files} - {NEWEST}
    cache.store.remove(f"{place}/{name}" for name in left)


def catalog_in_store(config: Config, folder: Path) -> StoredUpdates | None:
    """The updates of a catalogue that lie in ``folder`` of this machine; None where storage is a directory."""
    cache = artifact_cache(config)
    return None if cache is None else StoredUpdates(cache, folder)


@contextmanager
def change_of_catalog(config: Config, folder: Path) -> Generator[None]:
    """Be the only writer of a catalogue, whose updates are in ``folder``.

    Where storage is a URL, they are as the store has them, and what is made meanwhile is added to the store; if the
    store does not take an update, it was not made.

    Raises:
        InputError: another process is changing it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=WAIT_S)
    except Timeout:
        raise InputError(
            f"another process has been changing the catalogue for {WAIT_S:g} s; try again when it ends"
        ) from None
    with lock, _same_in_store(config, folder):
        yield


@contextmanager
def _same_in_store(config: Config, folder: Path) -> Generator[None]:
    cache = artifact_cache(config)
    if cache is None:
        yield
        return
    updates = StoredUpdates(cache, folder)
    with updates.lock(), writer_lease(cache.store, cache.name(folder), machine_of(cache.root)) as lease:
        updates.pull()
        try:
            yield
            lease.require()
            updates.push()
        finally:
            updates.drop_unstored()
