"""Atomic writes of one file by several writers at once: each is through, and the file is one of theirs, whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.s3_server import S3Server

from cluster.newest_run import point_to
from genrec.data.files import remove_temporary, temporary_beside, write_atomically
from genrec.data.object_store import ObjectStore

WRITERS = 4


def test_threads_write_one_file_at_once(tmp_path: Path) -> None:
    all_have_written = threading.Barrier(WRITERS, timeout=30)

    def write(number: int) -> None:
        def content(temporary: Path) -> None:
            temporary.write_text(str(number) * 1000)
            all_have_written.wait()

        write_atomically(tmp_path / "record.json", content)

    at_once(write)
    (only,) = tmp_path.iterdir()
    assert only.read_text() in {str(number) * 1000 for number in range(WRITERS)}


def test_threads_fetch_one_file_at_once(s3: S3Server, tmp_path: Path) -> None:
    store = ObjectStore(s3.url())
    store.write("runs/shop/record.json", b"x" * 1000)
    about = store.files("runs/shop")["record.json"]
    at_once(lambda number: store.download({"runs/shop/record.json": (tmp_path / "record.json", about)}))
    (only,) = tmp_path.iterdir()
    assert only.read_bytes() == b"x" * 1000


def test_threads_point_to_the_newest_run_at_once(tmp_path: Path) -> None:
    for number in range(WRITERS):
        (tmp_path / f"shop-{number}").mkdir()
    for _ in range(20):
        at_once(lambda number: point_to(tmp_path / "shop", tmp_path / f"shop-{number}"))
    assert (tmp_path / "shop").readlink().name.startswith("shop-")
    assert len(list(tmp_path.iterdir())) == WRITERS + 1


def test_what_is_left_of_writers_is_removed_while_another_one_ends(tmp_path: Path) -> None:
    for number in range(50):
        temporary_beside(tmp_path / str(number) / "record.json").parent.mkdir()
        temporary_beside(tmp_path / str(number) / "record.json").write_text("cut off")
    (tmp_path / ".folder.tmp").mkdir()
    at_once(lambda number: remove_temporary(tmp_path))
    assert not list(tmp_path.glob("*/.*")) and (tmp_path / ".folder.tmp").is_dir()


def at_once(work: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(work, range(WRITERS)))
