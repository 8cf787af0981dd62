"""A storage that is no directory: files under a URL of S3, Google Cloud Storage or HDFS, through ``pyarrow.fs``.

Whole files are written and read. A file is there completely or not at all, and what is read is checked against its size
and digest, so that a connection that was cut is noticed. Each call is repeated while its error may pass.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from pyarrow import fs

from genrec.data.files import temporary_beside, write_refusal
from genrec.errors import InputError, MachineError

LOG = logging.getLogger(__name__)

WAITS_S = (0.5, 2.0, 5.0, 15.0, 30.0)
"""Seconds before each further try of a call whose error may pass; pyarrow repeats single requests, too."""
REQUEST_TRIES = 5
"""Tries of a single request of S3, by pyarrow."""
THREADS = 8
CHUNK = 8 * 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    """A file of a store: its size in bytes, and the time of its last change in nanoseconds by the store's clock."""

    size: int
    changed_ns: int


@dataclass(frozen=True)
class FileDigest:
    """What a file holds: its size in bytes and the SHA-256 of its bytes."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileDigest:
        """The digest of a local file."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class ObjectStore:
    """The files under ``url``, named by their paths below it, such as ``"sft/0123/policy.safetensors"``.

    Every method raises MachineError, with the remedy, where the store cannot be reached, refuses, or is not there.
    """

    url: str

    @cached_property
    def filesystem(self) -> tuple[fs.FileSystem, str]:
        """The file system of pyarrow, and the path in it that ``url`` names."""
        try:
            return _s3(self.url) if self.url.startswith("s3://") else fs.FileSystem.from_uri(self.url)
        except (OSError, ValueError, ImportError) as error:
            raise explained(error, self.url) from error

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str]]:
        return ObjectStore, (self.url,)

    def require_usable(self, probe: str) -> None:
        """Write, read and remove the file ``probe``, so that what is refused is refused before any work."""
        self.write(probe, b"genrec")
        if self.read(probe) != b"genrec":
            raise MachineError(f"{self.url}: a file reads back otherwise than it was just written")
        self.remove([probe])

    def files(self, folder: str) -> dict[str, StoredFile]:
        """All files below ``folder``, by their paths below it; empty where there are none."""
        where, root = self.filesystem
        place = f"{root}/{folder}"

        def listed() -> list[Any]:
            return where.get_file_info(fs.FileSelector(place, recursive=True, allow_not_found=True))

        return {
            info.path[len(place) + 1 :]: StoredFile(info.size, info.mtime_ns)
            for info in self._tried(f"list {folder}", listed)
            if info.type == fs.FileType.File
        }

    def holds(self, name: str) -> bool:
        """Whether there is a file ``name``."""
        where, root = self.filesystem
        return self._tried(f"look for {name}", lambda: where.get_file_info(f"{root}/{name}")).type == fs.FileType.File

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is none."""
        where, root = self.filesystem

        def content() -> bytes | None:
            try:
                with where.open_input_stream(f"{root}/{name}") as file:
                    return file.read()
            except FileNotFoundError:
                return None

        return self._tried(f"read {name}", content)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; None where there is none."""
        content = self.read(name)
        try:
            return None if content is None else json.loads(content)
        except ValueError as error:
            raise MachineError(f"{self.url}/{name} is damaged ({error}); remove it, and what it belongs to") from None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, or replace it, in one step."""
        self._tried(f"write {name}", lambda: self._copied_in(name, lambda out: out.write(content)))

    def upload(self, files: Mapping[str, Path], *, may_vanish: bool = False) -> None:
        """Write local files, each under its name, several at a time.

        Args:
            may_vanish: a file that others remove meanwhile is no error.
        """

        def one(item: tuple[str, Path]) -> None:
            name, path = item
            try:
                source = path.open("rb")
            except FileNotFoundError:
                if may_vanish:
                    return
                raise
            with source:
                self._tried(f"write {name}", lambda: self._copied_in(name, lambda out: _rewound(source, out)))

        _at_once(one, files.items())

    def download(self, files: Mapping[str, tuple[Path, FileDigest | StoredFile]]) -> None:
        """Read files into local paths, atomically, several at a time; each must be of its size, and have its digest."""

        def one(item: tuple[str, tuple[Path, FileDigest | StoredFile]]) -> None:
            name, (path, wanted) = item
            self._tried(f"read {name}", lambda: self._copied_out(name, path, wanted))

        _at_once(one, files.items())

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are no error."""
        where, root = self.filesystem

        def one(name: str) -> None:
            def gone() -> None:
                with suppress(FileNotFoundError):
                    where.delete_file(f"{root}/{name}")

            self._tried(f"remove {name}", gone)

        _at_once(one, names)

    def remove_folder(self, name: str) -> None:
        """Remove all that lies below ``name``, folders without files too; nothing there is no error."""
        where, root = self.filesystem

        def gone() -> None:
            with suppress(FileNotFoundError):
                where.delete_dir(f"{root}/{name}")

        self._tried(f"remove {name}", gone)

    def _copied_in(self, name: str, write: Callable[[Any], object]) -> None:
        where, root = self.filesystem
        if where.type_name not in ("s3", "gcs"):  # In those, folders are no things, and files appear when closed.
            where.create_dir(f"{root}/{name}".rpartition("/")[0], recursive=True)
        with where.open_output_stream(f"{root}/{name}") as out:
            write(out)

    def _copied_out(self, name: str, path: Path, wanted: FileDigest | StoredFile) -> None:
        where, root = self.filesystem
        path.parent.mkdir(parents=True, exist_ok=True)
        arriving = temporary_beside(path)
        try:
            with where.open_input_stream(f"{root}/{name}") as source, arriving.open("wb") as out:
                shutil.copyfileobj(source, out, CHUNK)
            size = arriving.stat().st_size
            if size != wanted.size or (isinstance(wanted, FileDigest) and FileDigest.of(arriving) != wanted):
                raise DamagedFileError(f"{name}: got {size} bytes that differ from the {wanted.size} that were written")
            arriving.replace(path)
        finally:
            arriving.unlink(missing_ok=True)

    def _tried(self, what: str, call: Callable[[], T]) -> T:
        """The result of ``call``, which is repeated while its error may pass."""
        for wait_s in (*WAITS_S, None):
            try:
                return call()
            except (OSError, DamagedFileError) as error:
                if wait_s is None or not may_pass(error):
                    raise explained(error, self.url) from error
                LOG.debug("could not %s in %s; trying again in %g s: %s", what, self.url, wait_s, error)
                time.sleep(wait_s)
        raise AssertionError("unreachable")


def _rewound(source: Any, out: Any) -> None:
    source.seek(0)
    shutil.copyfileobj(source, out, CHUNK)


class DamagedFileError(Exception):
    """What was read differs from what was written."""


def _at_once(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Call ``work`` on each of ``items``, several at a time; the first error ends it."""
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, item) for item in items]:
            try:
                done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _s3(url: str) -> tuple[fs.FileSystem, str]:
    parts = urlsplit(url)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    endpoint = options.get("endpoint_override", "")
    if "://" in endpoint:
        options["scheme"], _, options["endpoint_override"] = endpoint.partition("://")
    tries = fs.AwsStandardS3RetryStrategy(max_attempts=REQUEST_TRIES)
    # A small file is one request, where it is not opened before it is written.
    chosen: dict[str, Any] = {"retry_strategy": tries, "allow_delayed_open": True, **options}
    return fs.S3FileSystem(**chosen), f"{parts.netloc}{parts.path}".rstrip("/")


CAUSES: Mapping[tuple[str, ...], str] = {
    ("NO_SUCH_BUCKET", "bucket does not exist"): "there is no such bucket, or no longer; create it, or mend the name",
    ("ACCESS_DENIED", "HTTP status 403", "InvalidAccessKeyId", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"): (
        "access is denied; wanted: credentials in this process's environment (AWS_ACCESS_KEY_ID and its kin, or a role "
        "of the machine) that may list, read, write and delete under it"
    ),
    ("PermanentRedirect", "HTTP status 301", "AuthorizationHeaderMalformed"): (
        "the bucket lies in another region; name it in AWS_REGION, or in the URL as ?region=eu-central-1"
    ),
    ("libjvm", "libhdfs"): "HDFS needs a Java runtime (JAVA_HOME) and Hadoop's libraries on every node",
    ("Couldn't resolve host", "Could not resolve host", "resolve host name"): "its host has no address; mend the URL",
}
"""Marks in the text of an error that will not pass, and what to do about it."""


def cause_of(text: str) -> str | None:
    """What to do about an error of a store with this text; None for one that is not known."""
    return next((remedy for marks, remedy in CAUSES.items() if any(mark in text for mark in marks)), None)


def store_error(text: str) -> str | None:
    """The last line of an error's text that tells of a store; None where it tells of something else."""
    marks = ("AWS Error", "google::cloud::Status", *(mark for marks in CAUSES for mark in marks))
    return next((line.strip() for line in reversed(text.splitlines()) if any(mark in line for mark in marks)), None)


def may_pass(error: BaseException) -> bool:
    """Whether another try may help: a store that is busy, slow or gone for a moment, a connection that was cut."""
    if isinstance(error, DamagedFileError):
        return True
    lasting = isinstance(error, FileNotFoundError | PermissionError) or write_refusal(error) is not None
    return not lasting and cause_of(str(error)) is None


def explained(error: BaseException, url: str) -> Exception:
    """The error of a store as one message with its remedy; the local disk's own errors stay as they are."""
    if isinstance(error, InputError) or (isinstance(error, OSError) and write_refusal(error) is not None):
        return error
    reason = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        remedy = "a file that was there is gone; run the same command again, which makes it again"
    else:
        remedy = cause_of(reason) or "it cannot be reached, or fails again and again; then run the same command again"
    return MachineError(f"storage {url}: {remedy} ({reason[:300]})")
