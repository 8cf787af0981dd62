"""Progress from a training worker to the terminal: the worker writes lines to a file, the driver shows them.

A file, because a worker's own output comes through Ray mixed with the logs of Ray's actors, and only while the driver
that started it lives. The file stays beside the result.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

FILE = "progress.log"


@contextmanager
def log_to_file(directory: Path) -> Generator[None]:
    """In the worker: what is printed goes to the progress file."""
    with (directory / FILE).open("a", encoding="utf-8", buffering=1) as file, redirect_stdout(file):
        yield


@contextmanager
def tail_log(directory: Path, interval_s: float = 0.5) -> Generator[None]:
    """In the driver: print what is added to the progress file meanwhile."""
    path, stop = directory / FILE, threading.Event()
    path.touch()
    with path.open(encoding="utf-8") as file:
        file.seek(0, 2)

        def follow() -> None:
            while not stop.wait(interval_s):
                print(file.read(), end="", flush=True)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            print(file.read(), end="", flush=True)
