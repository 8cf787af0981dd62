"""What storage holds beside artifacts, where it is a URL: reports of runs, and catalogues that change."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cluster.node_files import artifact_cache, machine_of
from cluster.writer_lease import writer_lease
from genrec.config import Config
from genrec.inference.run_place import NEWEST
from genrec.inference.run_record import RECORD
from genrec.sid.stored_updates import StoredUpdates


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
def change_in_store(config: Config, folder: Path) -> Generator[None]:
    """Have a catalogue's updates in ``folder`` as the store has them, and add to the store what is made meanwhile.

    One process at a time; if the store does not take an update, it was not made.

    Raises:
        InputError: another process is changing it.
    """
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
