"""The numbered updates of a catalogue in an object store, which this machine follows and adds to.

In the store an update is complete exactly when its ``change.json`` is there, which is written last. On this machine it
is renamed into place, so that a search never finds half of one. Of earlier updates the store's ``change.json`` is
enough: a catalogue is read from the newest alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from genrec.data.artifact_cache import ArtifactCache
from genrec.data.object_store import StoredFile
from genrec.sid.catalog_updates import CHANGE, STORED

LOCK = ".store.lock"


class StoredUpdates:
    """The updates of a catalogue, in ``folder`` of this machine and at the same place of the store.

    Methods but ``follow`` are for one process of this machine at a time, which holds ``lock``.
    """

    def __init__(self, cache: ArtifactCache, folder: Path) -> None:
        self._store, self._name, self._folder = cache.store, cache.name(folder), folder

    def lock(self) -> FileLock:
        """The lock of this machine's folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._folder / LOCK)

    def follow(self) -> None:
        """``pull``, unless another process of this machine is at it."""
        try:
            with self.lock().acquire(timeout=0):
                self.pull()
        except Timeout:
            return

    def pull(self) -> None:
        """Have what the store has, and no more: an update that never got there was never made.

        Raises:
            InputError: the store cannot be read.
        """
        found = self._found()
        self.drop_unstored()
        for number in self._local() - set(found):
            shutil.rmtree(self._folder / number)
        newest = max(found, key=int, default=None)
        # The newest first: the highest number of this machine is what is searched, so it must be whole.
        for number, files in sorted(found.items(), key=lambda one: int(one[0]), reverse=True):
            whole = number == newest
            wanted = files if whole else {CHANGE: files[CHANGE]}
            if any(not (self._folder / number / file).is_file() for file in wanted):
                self._fetch(number, wanted)

    def push(self) -> None:
        """Add to the store the updates that were made here.

        Raises:
            InputError: the store cannot be written.
        """
        stored = self._store.files(self._name)
        for number in sorted(self._local() - self._marked(), key=int):
            place, local = f"{self._name}/{number}", self._folder / number
            files = {path.name: path for path in local.iterdir() if path.is_file()}
            left = [name for name in stored if name.startswith(f"{number}/")]
            self._store.remove(f"{self._name}/{name}" for name in left)
            self._store.upload({f"{place}/{name}": path for name, path in files.items() if name != CHANGE})
            self._store.upload({f"{place}/{CHANGE}": files[CHANGE]})
            (local / STORED).touch()

    def drop_unstored(self) -> None:
        """Remove the updates of this machine that never got into the store."""
        for number in self._local() - self._marked():
            shutil.rmtree(self._folder / number)

    def _fetch(self, number: str, files: dict[str, StoredFile]) -> None:
        arriving = self._folder / f".{number}.arriving"
        shutil.rmtree(arriving, ignore_errors=True)
        self._store.download({f"{self._name}/{number}/{file}": (arriving / file, files[file]) for file in files})
        (arriving / STORED).touch()
        shutil.rmtree(self._folder / number, ignore_errors=True)
        arriving.rename(self._folder / number)

    def _found(self) -> dict[str, dict[str, StoredFile]]:
        """The files of each update that the store has complete, by its number."""
        found: dict[str, dict[str, StoredFile]] = {}
        for name, about in self._store.files(self._name).items():
            number, _, file = name.partition("/")
            if number.isdecimal() and file and "/" not in file:
                found.setdefault(number, {})[file] = about
        return {number: files for number, files in found.items() if CHANGE in files}

    def _local(self) -> set[str]:
        entries = self._folder.iterdir() if self._folder.is_dir() else ()
        return {path.name for path in entries if path.name.isdecimal() and path.is_dir()}

    def _marked(self) -> set[str]:
        return {number for number in self._local() if (self._folder / number / STORED).is_file()}
