"""Bytes of a file or URL, decompressed by what they are and not by their name, with a bound on what comes out."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, cast
from urllib.error import HTTPError

import pyarrow as pa

from genrec.data.sources.source import is_url
from genrec.errors import InputError, MachineError

MAX_RATIO, FREE_BYTES = 200, 1 << 28
"""A compressed file may hold this many times its own bytes, and this much in any case: real logs stay below 50."""
MAX_LINE = 1 << 26
"""Bytes of the longest line."""
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
BUFFER = 1 << 20


@contextmanager
def reading(where: str, wanted: str) -> Generator[None]:
    """Turn the errors of libraries on bad input into one InputError that names the file and what was wanted.

    Raises:
        MachineError: the server of a URL failed, or the way to it.
    """
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, UnicodeError, OverflowError, RecursionError, MemoryError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0][:300]
        kind = MachineError if is_url(where) and _is_of_network(error) else InputError
        raise kind(f"{where} cannot be read: {first}; wanted {wanted}") from None


def _is_of_network(error: BaseException) -> bool:
    """Whether a URL failed for its server or the way to it, and not because it names nothing that may be read."""
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    return isinstance(error, OSError)


@contextmanager
def open_stream(path: str) -> Generator[BinaryIO]:
    """A buffered stream of the plain bytes of a local file or http(s) URL; gzip, zstd and bz2 are recognised.

    Raises:
        InputError: the file cannot be read or is cut off, or far more comes out of it than its size allows.
    """
    with _open(path) as raw:
        packed = _Counted(partial(_read_whole, raw, path))
        source = io.BufferedReader(packed, BUFFER)
        codec = _codec_of(source.peek(4))
        if codec is None:
            yield cast("BinaryIO", source)
            return
        inner = pa.CompressedInputStream(cast("Any", source), codec)
        yield cast("BinaryIO", io.BufferedReader(_Counted(_bounded(inner.read, packed, path, codec)), BUFFER))


@dataclass(frozen=True)
class ArrowFile:
    """The plain bytes of a file as a stream of Arrow's own; ``packed`` is the file where it is unpacked on the way."""

    stream: pa.NativeFile
    path: str
    codec: str = ""
    packed: pa.NativeFile | None = None

    def refuse_bomb(self, came: int) -> None:
        """Raise InputError where ``came`` bytes are far more than the file's size allows; Arrow unpacks in blocks."""
        if self.packed is not None:
            _refuse_bomb(came, self.packed.tell(), self.path, self.codec)


@contextmanager
def open_for_arrow(path: str) -> Generator[ArrowFile]:
    """As ``open_stream``, for readers of Arrow; of a URL, the whole file is fetched to this machine first.

    Arrow reads ahead in a thread. Where that calls Python while Python ends, as after an error in the first rows, the
    process aborts with exit code 134, or never ends: so nothing that is read here is Python's.

    Raises:
        InputError: as ``open_stream``, but for a decompression bomb (``ArrowFile.refuse_bomb``).
    """
    with _fetched(path) if is_url(path) else nullcontext(path) as place:
        with Path(place).open("rb") as file:
            codec = _codec_of(file.read(4))
        source = pa.OSFile(place)  # It is not closed: Arrow's thread holds it, and may still read.
        if codec is None:
            yield ArrowFile(source, path)
            return
        try:
            yield ArrowFile(pa.CompressedInputStream(source, codec), path, codec, source)
        except OSError as error:
            raise _not_whole(path, codec, error) from None


@contextmanager
def _fetched(url: str) -> Generator[str]:
    """A temporary file with what is at ``url``."""
    with NamedTemporaryFile(prefix="genrec-") as file:
        with _open(url) as raw:
            while data := _read_whole(raw, url, BUFFER):
                file.write(data)
        file.flush()
        yield file.name


def _codec_of(first: bytes) -> str | None:
    """By which codec a stream with these first bytes is packed."""
    return next((codec for magic, codec in MAGIC.items() if first.startswith(magic)), None)


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file or URL, numbered from 1, without a byte order mark; InputError for one over ``MAX_LINE``."""
    with reading(path, "a whole file; download or copy it again"), open_stream(path) as stream:
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise InputError(f"{path}, line {number} is longer than {MAX_LINE >> 20} MiB; wanted one object a line")
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _open(path: str) -> BinaryIO:
    return cast("BinaryIO", urllib.request.urlopen(path, timeout=60)) if is_url(path) else Path(path).open("rb")


def _read_whole(raw: BinaryIO, path: str, size: int) -> bytes:
    """``raw.read(size)``; MachineError where a response ends before its length: urllib ends it like a whole one."""
    try:
        data = raw.read(size)
    except HTTPException as error:
        raise MachineError(
            f"{path} was cut off ({error!r}); run the same command again, or download the file"
        ) from None
    if size and not data and (missing := getattr(raw, "length", None)):
        raise MachineError(
            f"{path} was cut off, {missing:,} bytes are missing; run the same command again, or download the file"
        )
    return data


class _Counted(io.RawIOBase):
    """A raw stream over a ``read(size)`` function that counts the bytes it gave."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self.count = read, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


def _bounded(read: Callable[[int], bytes], packed: _Counted, path: str, codec: str) -> Callable[[int], bytes]:
    total = 0

    def bounded(size: int) -> bytes:
        nonlocal total
        try:
            data = read(size)
        except OSError as error:
            raise _not_whole(path, codec, error) from None
        total += len(data)
        _refuse_bomb(total, packed.count, path, codec)
        return data

    return bounded


def _not_whole(path: str, codec: str, error: OSError) -> InputError:
    return InputError(f"{path} is not a whole {codec} file: {error}; download it again")


def _refuse_bomb(total: int, packed: int, path: str, codec: str) -> None:
    """Raise InputError where ``total`` bytes came out of so many packed ones."""
    if total > FREE_BYTES + MAX_RATIO * packed:
        raise InputError(
            f"{path}: got {total >> 20} MiB out of {packed >> 10} KiB of {codec}, wanted at most "
            f"{MAX_RATIO} times its size: this looks like a decompression bomb; unpack and check it by hand"
        )
