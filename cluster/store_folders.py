"""What storage holds beside artifacts, where it is a URL: reports of runs, and catalogues that change."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from cluster.node_files import artifact_cache, machine_of
from cluster.writer_lease import writer_lease
from genrec.config import Config
from genrec.data.artifact_cache import SharedFolder


def publish_in_store(config: Config, folder: Path, places: Iterable[Path], last: str) -> None:
    """Write the files of ``folder`` into the store, at each of ``places``; the file ``last`` after the others.

    A reader goes by ``last``, which is replaced in one step. Without a store nothing is done.
    """
    cache = artifact_cache(config)
    if cache is None:
        return
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name == last)
    for place in places:
        name = cache.name(place)
        for group in ([path for path in files if path.name != last], [path for path in files if path.name == last]):
            cache.store.upload({f"{name}/{path.name}": path for path in group})


@contextmanager
def change_in_store(config: Config, folder: Path) -> Generator[None]:
    """Have ``folder`` as the store has it, and put what is added to it there; one process at a time.

    Raises:
        InputError: another process is changing it.
    """
    cache = artifact_cache(config)
    if cache is None:
        yield
        return
    with writer_lease(cache.store, cache.name(folder), machine_of(cache.root)) as lease:
        shared = SharedFolder(cache, folder)
        shared.pull()
        shared.note()
        yield
        lease.require()
        shared.push()
