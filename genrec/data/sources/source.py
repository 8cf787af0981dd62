"""The interface of sources (an item table, and a log in parts that are streamed), and what identifies their files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from genrec.data.content import HashCache, content_digests
from genrec.errors import InputError


@dataclass(frozen=True)
class Part:
    """A part of the log that one reader streams: a file, or some row groups of a Parquet file.

    ``split`` and ``first_row`` are for sources with one file per split and ordered rows.
    """

    path: str
    groups: tuple[int, ...] = ()
    split: str = ""
    first_row: int = 0


class Source(Protocol):
    """A catalogue and a log. Sources are small and picklable, because readers may run on other machines."""

    @property
    def ignores_unknown_items(self) -> bool:
        """Whether interactions with an item that is not in the catalogue are dropped and counted, or an InputError."""
        ...

    @property
    def whole_histories(self) -> bool:
        """Whether the log was made from rows with histories, so every target needs an earlier event of its user."""
        ...

    def check(self) -> None:
        """Raise InputError for missing files or columns, or wrong types; reads schemas only."""
        ...

    def files(self) -> list[str]:
        """Every file and URL that is read."""
        ...

    def items(self) -> pa.Table:
        """The item table: schema ``columns.CATALOG``, then extra columns; ids are unique."""
        ...

    def parts(self) -> list[Part]:
        """The parts of the log, in order; together they are the whole log."""
        ...

    def read(self, part: Part) -> Iterator[pa.Table]:
        """One part as a stream of tables in the schema ``columns.LOG``."""
        ...


def is_url(path: str) -> bool:
    """Whether ``path`` names a remote place such as ``https://…`` or ``s3://…``."""
    return "://" in path


def resolve(path: str | None, name: str) -> str:
    """``name`` itself if it is a URL, absolute, or there is no ``path``; else ``name`` under ``path``."""
    if path is None or is_url(name) or Path(name).is_absolute():
        return name
    if is_url(path):
        return f"{path.rstrip('/')}/{name}"
    return str(Path(path) / name)


def fingerprint(files: Sequence[str], cache: HashCache | None = None) -> list[list[str]]:
    """What identifies the contents of a source's files: per local file [name, SHA-256 of its bytes], per URL [URL].

    Names are relative to the folder that all local files share, so the same files elsewhere have the same fingerprint.
    The contents of URLs are not read: their fingerprint stays the same when they change.
    """
    local = [Path(file).absolute() for file in files if not is_url(file)]
    folder = Path(os.path.commonpath([file.parent for file in local])) if local else Path()
    digest_of = dict(zip(local, content_digests(local, cache), strict=True))
    found: list[list[str]] = []
    for file in files:
        if is_url(file):
            found.append([file])
        else:
            path = Path(file).absolute()
            found.append([path.relative_to(folder).as_posix(), digest_of[path]])
    return found


def total_bytes(files: Sequence[str]) -> int | None:
    """The size of all files together in bytes; None if one is a URL, whose size is not known."""
    if any(is_url(file) for file in files):
        return None
    return sum(Path(file).stat().st_size for file in files)


def need_path(path: str | None, source: str) -> str:
    """``data.path``; InputError if it is not set, or does not exist (local paths)."""
    if not path:
        raise InputError(f"data.source={source} needs data.path (the directory with its files)")
    if not is_url(path) and not Path(path).exists():
        raise InputError(f"data.path not found: {path}")
    return path
