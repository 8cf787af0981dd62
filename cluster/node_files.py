"""Files of a stage on the nodes of a cluster, where storage is no directory that all of them see.

The command's machine makes a stage in its cache. A worker on another machine first fetches the artifacts that the stage
reads and what is there of the unfinished one, and puts what it made into the store, from where the command takes it.
Workers that see the command's cache (one machine, or a shared disk) move nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import uuid4

from filelock import FileLock

from cluster.session import joins_cluster
from genrec.config import Config
from genrec.data.artifact_cache import ArtifactCache, SharedFolder
from genrec.data.files import require_directory_at, write_text
from genrec.data.object_store import ObjectStore, explained, store_error
from genrec.errors import InputError, MachineError

P = ParamSpec("P")
T = TypeVar("T")

MACHINE = ".machine"
"""A file of a cache that names it: a worker that reads the same name sees the same files."""


def artifact_cache(config: Config) -> ArtifactCache | None:
    """The cache of ``storage`` on this machine; None where storage is a directory."""
    return ArtifactCache(ObjectStore(config.storage), config.storage_path) if config.is_remote else None


def machine_of(root: Path) -> str:
    """The name of the cache in ``root``, which is made at the first call, of whichever process comes first."""
    file = root / MACHINE
    if not file.is_file():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                write_text(uuid4().hex, file)
    return file.read_text(encoding="utf-8")


@dataclass
class NodeFiles:
    """The files of the stage in work: the command's cache and its name, the artifacts that are read, what is written.

    Picklable: it travels to the workers. ``joined``: whether they may be on other machines.
    """

    cache: ArtifactCache
    machine: str
    inputs: Sequence[Path]
    out: Path
    joined: bool
    _folder: SharedFolder | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folder": None}

    @property
    def folder(self) -> SharedFolder:
        """The unfinished artifact here and in the store."""
        if self._folder is None:
            self._folder = SharedFolder(self.cache, self.out)
        return self._folder

    def offer(self) -> None:
        """In the command: put what is there of the unfinished artifact where workers on other machines find it."""
        if self.joined:
            self.folder.push()
            self.folder.note()

    def collect(self) -> None:
        """In the command: take what workers on other machines made."""
        if self.joined:
            self.folder.pull()

    def arrive(self) -> None:
        """In a worker: have the files that the stage reads.

        Raises:
            MachineError: an artifact is no longer in the store, or the store cannot be read.
        """
        if self._is_here():
            return
        for path in self.inputs:
            if not self.cache.fetch(path):
                raise MachineError(
                    f"{self.cache.store.url}/{self.cache.name(path)} is gone from storage; run the same command again, "
                    "which makes it again"
                )
        self.out.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.out}.arrive.lock"):
            self.folder.pull()
            self.folder.note()

    def leave(self) -> None:
        """In a worker: put what it made into the store."""
        if not self._is_here():
            self.folder.push()

    def _is_here(self) -> bool:
        return machine_of(self.cache.root) == self.machine


def files_of_stage(config: Config, inputs: Sequence[Path], out: Path) -> NodeFiles | None:
    """The files of a stage that reads ``inputs`` and fills ``out``, in which work that lies in the store goes on.

    None where storage is a directory.
    """
    cache = artifact_cache(config)
    if cache is None:
        return None
    own = [path for path in inputs if path.is_relative_to(cache.root)]
    files = NodeFiles(cache, machine_of(cache.root), own, out, joins_cluster(config))
    files.folder.resume()
    return files


_IN_WORK: ContextVar[NodeFiles | None] = ContextVar("_IN_WORK", default=None)


def files_in_work() -> NodeFiles | None:
    """The files of the stage that this process works at; None where storage is a directory."""
    return _IN_WORK.get()


@contextmanager
def working_with(files: NodeFiles | None) -> Generator[None]:
    """Let ``files_in_work`` be ``files`` meanwhile."""
    token = _IN_WORK.set(files)
    try:
        yield
    finally:
        _IN_WORK.reset(token)


@contextmanager
def on_this_node(files: NodeFiles | None) -> Generator[None]:
    """In a worker: what its work reads is here meanwhile, and what it made is in the store afterwards."""
    if files is None:
        yield
        return
    files.arrive()
    with working_with(files):
        try:
            yield
        finally:
            files.leave()


def require_storage(config: Config) -> None:
    """Refuse, before any work, a store that cannot be reached, read or written, and a file in a directory's place.

    Raises:
        InputError: with the reason and the remedy.
    """
    key = f"compute.cache={config.compute.cache}" if config.is_remote else f"storage={config.storage}"
    require_directory_at(config.storage_path, key)
    if (cache := artifact_cache(config)) is not None:
        cache.store.require_usable(f".probe-{uuid4().hex}")


@contextmanager
def explaining_failed_storage(config: Config) -> Generator[None]:
    """Turn the error of a store that Ray or a worker met into one with its remedy.

    Raises:
        MachineError: such an error was raised inside the block.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not config.is_remote or (line := store_error(str(error))) is None:
            raise
        raise explained(OSError(line), config.storage) from error


def offered(work: Callable[P, T]) -> Callable[P, T]:
    """In the command: ``work`` as a process on any node runs it; what it reads is put where it finds it."""
    files = files_in_work()
    if files is None:
        return work
    files.offer()

    def run(*args: P.args, **options: P.kwargs) -> T:  # Ray takes functions alone.
        with on_this_node(files):
            return work(*args, **options)

    return run


def collect_files() -> None:
    """In the command: take what workers on other machines made."""
    if (files := files_in_work()) is not None:
        files.collect()


def ray_storage(config: Config, path: Path) -> Mapping[str, Any]:
    """Where Ray Train and Tune keep checkpoints and results that would lie in ``path``: options of their RunConfig."""
    cache = artifact_cache(config)
    if cache is None or not path.is_relative_to(cache.root):
        return {"storage_path": str(path)}
    filesystem, root = cache.store.filesystem
    return {"storage_path": f"{root}/{cache.ray_place(path)}", "storage_filesystem": filesystem}
