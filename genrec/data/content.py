"""Digests of what files hold, wherever they lie: the same bytes in another folder have the same digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from genrec.data.files import write_json

BLOCK_BYTES = 2**20


class HashCache:
    """Digests of files read before, in a JSON file: a file of the same place, size and time is not read again.

    A cache file that is missing or broken is an empty cache.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = _read(path)

    def digest(self, file: Path) -> str:
        """SHA-256 of the bytes of ``file``, in hexadecimal digits."""
        place, status = str(file.absolute()), file.stat()
        facts = [status.st_size, status.st_mtime_ns]
        known = self._known.get(place)
        if known is not None and known[:2] == facts:
            return str(known[2])
        found = _sha256(file)
        self._known[place] = [*facts, found]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._known, self._path)
        return found


def content_digest(path: Path, cache: HashCache | None = None) -> str:
    """SHA-256 of a file's bytes; of a directory, over the relative names and bytes of its files, hidden ones left out.

    Raises:
        OSError: ``path`` or a file in it cannot be read.
    """
    if path.is_file():
        return _sha256(path) if cache is None else cache.digest(path)
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            total.update(f"{name.as_posix()} {content_digest(file, cache)}\n".encode())
    return total.hexdigest()


def _sha256(file: Path) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            total.update(block)
    return total.hexdigest()


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    known = cast("dict[str, Any]", found)
    return {place: facts for place, facts in known.items() if isinstance(facts, list) and len(facts) == 3}
