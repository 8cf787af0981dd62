"""Atomic writes: a reader sees the complete file, or none; and a disk that takes no more is one clear error."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.errors import InputError, MachineError

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk answers that is full, or not to be written by this user. Libraries hand it on as text alone."""


def temporary_beside(path: Path) -> Path:
    """A hidden name in the folder of ``path`` that no other writer has: no other thread, process or machine."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def remove_temporary(folder: Path) -> None:
    """Remove what killed writers left below ``folder``, where nobody writes any more."""
    for place, _, names in os.walk(folder):  # A writer that is being ended may still move or remove something.
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):
                Path(place, name).unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path in the same folder, flush the file to disk, then rename it to ``path``.

    The file gets the mode that the umask gives to new files, whatever ``write`` (safetensors: 0600) left it with.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link_file(file: Path, place: Path) -> None:
    """The same file at another place, in place of what is there: a link where the file system can, else a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def fill_once(folder: Path, write: Callable[[Path], object]) -> Path:
    """``folder``, filled by ``write`` unless it is there; what a killed run left half-written is written again."""
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        partial.rename(folder)
    return folder


def write_parquet(table: pa.Table, path: Path, **options: Any) -> None:
    """Write ``table`` as Parquet, atomically; ``options`` are pyarrow's, with zstd compression by default."""
    chosen: dict[str, Any] = {"compression": "zstd"} | options
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, **chosen))


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(value: Any, path: Path) -> None:
    """Write indented JSON, atomically."""
    write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


@contextmanager
def explaining_failed_writes(what: str, where: Path) -> Generator[None]:
    """Turn the error of a disk that is full or closed into one that names ``what`` stopped, why, and the remedy.

    Raises:
        MachineError: a write inside the block, in this process or in one whose error arrived here, was refused.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (reason := write_refusal(error)) is None:
            raise
        raise MachineError(
            f"{what} stopped: {reason}; wanted: free space, and the right to write, under {where}; "
            "then run the same command again, which continues from here"
        ) from error


def require_directory_at(place: Path, key: str) -> None:
    """Refuse a place where no directory is and none can be made: a file, one below a file, ``/proc``; ``key`` names it.

    Nothing is left there.

    Raises:
        InputError: with the reason.
    """
    place, wanted = place.absolute(), "wanted a directory, or a place for a new one"
    try:
        if place.is_dir():
            return
        nearest = next(one for one in (place, *place.parents) if one.exists() or one.is_symlink())
        if not nearest.is_dir():
            what = "a link to nothing" if nearest.is_symlink() and not nearest.exists() else "a file"
            raise InputError(f"{key}: {nearest} is {what}; {wanted}")
        Path(tempfile.mkdtemp(prefix=".genrec-", dir=nearest)).rmdir()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{key}: no directory can be made at {place} ({reason}); {wanted}") from None


def write_refusal(error: BaseException) -> str | None:
    """Why the disk refused, as a line of the error's text; None for an error of another kind."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return str(error)
    texts = [os.strerror(number) for number in REFUSALS]
    lines = str(error).splitlines()
    return next((line.strip() for line in reversed(lines) if any(text in line for text in texts)), None)


def share(directory: Path) -> None:
    """Give the files in ``directory`` the mode that the umask gives to new files."""
    probe = directory / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(mode)
