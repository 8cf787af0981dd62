"""The directories of an object store on this machine: each is fetched when it is read, and uploaded when it is done.

In the store, ``<stage>/<key>/`` is complete exactly when its ``manifest.json`` is there, which is written last;
``files.json`` has the size and digest of every file. Work that is not done lies under ``<stage>/<key>.partial/``, what
Ray's workers on other machines made of it, and ``<stage>/<key>.ray/``, checkpoints of Ray Train and Tune.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from genrec.data.object_store import FileDigest, ObjectStore, StoredFile
from genrec.errors import MachineError

MANIFEST = "manifest.json"
FILES = "files.json"
UNFINISHED = ".partial"
RAY = ".ray"

FileState = tuple[int, int]
"""Size and time of the last change of a local file."""


@dataclass(frozen=True)
class ArtifactCache:
    """The directories under ``store``, each at the same place below ``root`` of this machine."""

    store: ObjectStore
    root: Path

    def name(self, path: Path) -> str:
        """The name in the store of what lies at ``path``."""
        return path.relative_to(self.root).as_posix()

    def holds(self, directory: Path) -> bool:
        """Whether the store has ``directory``, complete."""
        return self.store.holds(f"{self.name(directory)}/{MANIFEST}")

    def fetch(self, directory: Path) -> bool:
        """Have ``directory`` complete on this machine; False where the store has it not.

        Processes of this machine that want the same one wait for the first of them.

        Raises:
            MachineError: the store cannot be read, or a file in it is damaged.
        """
        if (directory / MANIFEST).is_file():
            return True
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.fetch.lock"):
            if (directory / MANIFEST).is_file():
                return True
            name = self.name(directory)
            if not self.store.holds(f"{name}/{MANIFEST}"):
                return False
            arriving = directory.with_name(f"{directory.name}.arriving")
            self._download(name, arriving)
            shutil.rmtree(directory, ignore_errors=True)
            arriving.rename(directory)
        Path(f"{directory}.fetch.lock").unlink(missing_ok=True)
        return True

    def _download(self, name: str, target: Path) -> None:
        record = self.store.read_json(f"{name}/{FILES}")
        if record is None:
            raise MachineError(f"{self.store.url}/{name} has a {MANIFEST} and no {FILES}; remove it, to make it again")
        wanted = {file: FileDigest(**about) for file, about in record.items()}
        target.mkdir(parents=True, exist_ok=True)
        missing = {
            f"{name}/{file}": (target / file, digest)
            for file, digest in wanted.items()
            if not (target / file).is_file() or FileDigest.of(target / file) != digest
        }
        self.store.download(missing)

    def upload(self, local: Path, directory: Path) -> None:
        """Write the files of ``local`` as those of ``directory``, their record after them, and the manifest last.

        What the store had of it unfinished is removed then.
        """
        name = self.name(directory)
        files = {path.relative_to(local).as_posix(): path for path in sorted(local.rglob("*")) if path.is_file()}
        record = {file: asdict(FileDigest.of(path)) for file, path in files.items()}
        manifest = files.pop(MANIFEST)
        self.store.upload({f"{name}/{file}": path for file, path in files.items()})
        self.store.write(f"{name}/{FILES}", json.dumps(record, indent=1).encode())
        self.store.upload({f"{name}/{MANIFEST}": manifest})
        for unfinished in (f"{name}{UNFINISHED}", f"{name}{RAY}"):
            self.store.remove_folder(unfinished)

    def ray_place(self, path: Path) -> str:
        """The name in the store under which Ray Train or Tune keeps what it would keep in ``path``."""
        return self.name(path).replace(UNFINISHED, RAY, 1)


class SharedFolder:
    """A folder of unfinished work that several machines fill, each file written by one of them.

    Only what changed since the last look is moved, removed files too. Hidden files are being written, and stay.
    """

    def __init__(self, cache: ArtifactCache, folder: Path) -> None:
        self._store, self._name, self._folder = cache.store, cache.name(folder), folder
        self._local: dict[str, FileState] = {}
        self._stored: dict[str, StoredFile] = {}

    def resume(self) -> None:
        """Download what lies in the store alone: where a file is on this machine, that one is as new or newer."""
        self._download({name: about for name, about in self._listed().items() if self._state(name) is None})

    def pull(self) -> None:
        """Download what others put into the store since the last look; at the first, what differs in its size."""
        before, found = self._stored, self._listed()
        if before:
            # Stores tell whole seconds: what was newest at the last look may have been written again within its second.
            newest = max(about.changed_ns for about in before.values())
            fresh = {
                name: about
                for name, about in found.items()
                if before.get(name) != about or (about.changed_ns == newest and self._is_as_moved(name))
            }
        else:
            fresh = {name: about for name, about in found.items() if self._size(name) != about.size}
        self._download(fresh)
        for name in set(before) - set(found):
            (self._folder / name).unlink(missing_ok=True)

    def push(self) -> None:
        """Upload what changed on this machine since the last look."""
        before, now = self._local, self._now()
        changed = [name for name, state in now.items() if before.get(name) != state]
        self._store.upload({f"{self._name}/{name}": self._folder / name for name in changed}, may_vanish=True)
        self._store.remove(f"{self._name}/{name}" for name in set(before) - set(now))
        self._local = now

    def note(self) -> None:
        """Take what is on this machine and in the store as moved."""
        self._local = self._now()
        self._listed()

    def _is_as_moved(self, name: str) -> bool:
        """Whether a file is on this machine as it was last moved."""
        return self._local.get(name) == self._state(name)

    def _listed(self) -> dict[str, StoredFile]:
        self._stored = self._store.files(self._name)
        return self._stored

    def _download(self, files: Mapping[str, StoredFile]) -> None:
        self._store.download({f"{self._name}/{name}": (self._folder / name, about) for name, about in files.items()})
        self._local |= {name: state for name in files if (state := self._state(name)) is not None}

    def _now(self) -> dict[str, FileState]:
        paths = (path for path in self._folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        names = [path.relative_to(self._folder).as_posix() for path in paths]
        return {name: state for name in names if (state := self._state(name)) is not None}

    def _state(self, name: str) -> FileState | None:
        try:
            about = (self._folder / name).stat()
        except FileNotFoundError:
            return None
        return about.st_size, about.st_mtime_ns

    def _size(self, name: str) -> int | None:
        state = self._state(name)
        return None if state is None else state[0]
