"""Content fingerprints: SHA-256 digests of files and directories, kept so that unchanged files are not read again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from genrec.data.files import write_json
from genrec.errors import InputError

BLOCK = 1 << 20
"""Bytes that are read at once."""


class HashCache:
    """Digests of files in a JSON file: absolute path → [size in bytes, mtime in ns, digest].

    An entry is used only while the file has the same size and mtime. A missing or broken cache file is an empty cache.
    Several processes may share a cache file: each write is atomic and keeps the entries of the others.
    """

    def __init__(self, file: Path) -> None:
        self._file = Path(file)
        self._entries = self._read()
        self._added: dict[str, list[Any]] = {}

    def get(self, path: Path) -> str | None:
        """The digest of a file that was not changed since ``put``, else None."""
        entry = self._entries.get(_key(path))
        return str(entry[2]) if entry is not None and entry[:2] == _state(path) else None

    def put(self, path: Path, state: list[int], digest: str) -> None:
        """Remember the digest of a file that had ``state`` ([size, mtime in ns]) when it was read."""
        self._entries[_key(path)] = self._added[_key(path)] = [*state, digest]

    def save(self) -> None:
        """Write the entries that were added since the last call, atomically."""
        if self._added:
            write_json(self._read() | self._added, self._file)
            self._added = {}

    def _read(self) -> dict[str, list[Any]]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        entries = cast("dict[str, Any]", found)
        return {path: entry for path, entry in entries.items() if isinstance(entry, list) and len(entry) == 3}


def content_digest(path: Path, cache: HashCache | None = None) -> str:
    """The SHA-256 of a file's bytes; for a directory, of the relative names and bytes of its files, sorted by name.

    Hidden files and directories (whose names start with a dot) are left out, and so are empty directories. The place
    of ``path``, modification times and permissions have no influence. With a ``cache``, files that did not change since
    their digest was computed are not read.

    Raises:
        InputError: there is no file or directory at ``path``.
    """
    return content_digests([path], cache)[0]


def content_digests(paths: Sequence[Path], cache: HashCache | None = None) -> list[str]:
    """``content_digest`` of each path; the cache is written once, after all of them.

    Raises:
        InputError: there is no file or directory at one of ``paths``.
    """
    digests = [_digest(Path(path), cache) for path in paths]
    if cache is not None:
        cache.save()
    return digests


def _digest(path: Path, cache: HashCache | None) -> str:
    if path.is_file():
        return _file_digest(path, cache)
    if not path.is_dir():
        raise InputError(f"{path}: got no file or directory there; check the path")
    total = hashlib.sha256()
    for name in sorted(_visible_files(path)):
        total.update(f"{name}\0{_file_digest(path / name, cache)}\n".encode())
    return total.hexdigest()


def _file_digest(path: Path, cache: HashCache | None) -> str:
    known = cache.get(path) if cache is not None else None
    if known is not None:
        return known
    state, total = _state(path), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    if cache is not None and _state(path) == state:
        cache.put(path, state, total.hexdigest())
    return total.hexdigest()


def _visible_files(folder: Path) -> list[str]:
    found = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return [name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts)]


def _key(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps '..', Path.resolve follows links


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
