"""Which files are data, and the columns that the names of their folders give."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from genrec.data.sources.source import is_url
from genrec.errors import InputError

PARQUET = (".parquet", ".parq", ".pq")
PACKED = ("", ".gz", ".zst", ".bz2")
CSV = tuple(kind + packed for kind in (".csv", ".tsv") for packed in PACKED)
JSON = tuple(kind + packed for kind in (".jsonl", ".ndjson") for packed in PACKED)
TEXT = (*CSV, *JSON)
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def is_data_file(name: str, endings: Sequence[str]) -> bool:
    """Whether a path, relative to the folder that is read, has one of ``endings`` and no hidden part.

    As in Hive, Spark and Arrow a file or folder is hidden if its name starts with ``.`` or ``_`` (``_temporary``,
    ``_SUCCESS``, ``.ipynb_checkpoints``, ``._x``); a partition folder such as ``_day=3`` is not.
    """
    hidden = (part[:1] == "." or (part[:1] == "_" and "=" not in part) for part in PurePosixPath(name).parts)
    return name.lower().endswith(tuple(endings)) and not any(hidden)


def find_files(name: str, endings: Sequence[str]) -> list[str]:
    """The data files of ``name``, sorted: the file itself, those in the folder, or those that match the pattern."""
    if is_url(name):
        return _find_remote(name, endings)
    path = Path(name)
    if path.is_file():
        return [name]
    root = folder_of(name)
    matches = glob.glob(name, recursive=True)  # noqa: PTH207 - may be absolute
    found = [path] if path.is_dir() else [Path(match) for match in matches]
    files = {file for match in found for file in (match.rglob("*") if match.is_dir() else [match]) if file.is_file()}
    return sorted(str(file) for file in files if is_data_file(file.relative_to(root).as_posix(), endings))


def refuse_copies(files: Sequence[str], remedy: str) -> None:
    """Raise InputError, which ends in ``remedy``, for a file that is packed and unpacked: it would be read twice."""
    seen: dict[str, str] = {}
    for file in files:
        plain = next((file[: -len(end)] for end in PACKED if end and file.lower().endswith(end)), file)
        if (other := seen.setdefault(plain, file)) != file:
            raise InputError(f"got {other} and {file}, which may be copies; move one of them away; {remedy}")


def folder_of(name: str) -> str:
    """The folder below which partition folders are looked for: ``name``, or what stands before a pattern's first ``*``.

    A file has no such folder: its own parent is given.
    """
    if is_url(name) or Path(name).is_dir():
        return name
    path = Path(name)
    while glob.has_magic(str(path)):
        path = path.parent
    return str(path.parent if path.is_file() else path)


def partition_values(folder: str, file: str) -> dict[str, str | None]:
    """Column → value from Hive's folder names (``event=click/…``) between ``folder`` and ``file``."""
    inner = file.removeprefix(folder.rstrip("/"))
    pairs = (part.partition("=") for part in PurePosixPath(inner).parts[:-1] if "=" in part)
    return {unquote(name): None if value == NO_VALUE else unquote(value) for name, _, value in pairs}


def remote(name: str) -> tuple[fs.FileSystem, str]:
    """Arrow's file system of a URI and the path in it; InputError if it cannot be opened."""
    try:
        return fs.FileSystem.from_uri(name)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name} cannot be opened: {error}; wanted a local path, s3://, gs:// or hdfs://") from None


def _find_remote(name: str, endings: Sequence[str]) -> list[str]:
    system, inner = remote(name)
    if system.get_file_info(inner).type != fs.FileType.Directory:
        return [name]
    prefix = name[: len(name) - len(inner)] if name.endswith(inner) else f"{name.split('://')[0]}://"
    found = (info.path for info in system.get_file_info(fs.FileSelector(inner, recursive=True)) if info.is_file)
    return sorted(prefix + path for path in found if is_data_file(path.removeprefix(inner).lstrip("/"), endings))
