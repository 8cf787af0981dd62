"""Which runs are served, which user gets which, and the runs of the last reload, in a file that all replicas read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from genrec.config.root import is_url
from genrec.data.files import write_json
from genrec.data.object_store import ObjectStore
from genrec.errors import InputError
from genrec.inference.run_place import RunPlace

LOCK_S = 20.0
"""Seconds that a reload waits for another one's file."""


@dataclass(frozen=True)
class Split:
    """Which share of the users the second of two runs gets; by a hash, so that a user stays with a run."""

    second: float = 0.0

    def of(self, user: str) -> int:
        """0 for a user of the first run, 1 for one of the second."""
        number = int.from_bytes(hashlib.sha256(user.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        return int(number / 2**64 < self.second)


@dataclass(frozen=True)
class RunsFile:
    """``<storage>/serving/<deployment>.json``: written by the first reload, so that a restarted replica finds it.

    A new deployment has a file of its own, and begins with the runs that it was told. ``storage``: a directory, or the
    URL of an object store.
    """

    storage: str
    deployment: str

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store, where a look is a request."""
        return is_url(self.storage)

    def read(self) -> tuple[int, list[RunPlace]]:
        """The number of reloads so far, and the runs of the last one; 0 and none before the first.

        Raises:
            InputError: the file is damaged, or the store cannot be read.
        """
        try:
            text = self._text()
            if text is None:
                return 0, []
            content = json.loads(text)
            runs = [RunPlace.kept(one["name"], self.storage, one["folder"]) for one in content["runs"]]
            return int(content["reloads"]), runs
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._name} of {self.storage} cannot be read ({error}); remove it to serve the deployed runs"
            ) from None

    def write(self, places: Sequence[RunPlace], after: int) -> int:
        """Tell the others to serve ``places``; returns the number of reloads so far.

        Raises:
            InputError: there were more reloads than ``after`` meanwhile, or it cannot be written.
        """
        if self.is_remote:
            return self._next(
                places, after, lambda content: self._store.write(self._name, json.dumps(content).encode())
            )
        path = Path(self.storage) / self._name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock"), timeout=LOCK_S):
                return self._next(places, after, lambda content: write_json(content, path))
        except OSError as error:
            raise InputError(f"{self._name} cannot be written ({error})") from None

    def _next(self, places: Sequence[RunPlace], after: int, write: Callable[[dict[str, object]], None]) -> int:
        if self.read()[0] != after:
            raise InputError("another replica was told to reload meanwhile; ask again")
        runs = [{"name": place.name, "folder": place.folder} for place in places]
        write({"reloads": after + 1, "runs": runs})
        return after + 1

    @cached_property
    def _store(self) -> ObjectStore:
        return ObjectStore(self.storage)

    @property
    def _name(self) -> str:
        return f"serving/{self.deployment}.json"

    def _text(self) -> str | bytes | None:
        if self.is_remote:
            return self._store.read(self._name)
        path = Path(self.storage) / self._name
        return path.read_text(encoding="utf-8") if path.is_file() else None
