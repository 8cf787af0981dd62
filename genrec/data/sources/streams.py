"""Bytes of a file or URL, decompressed by what they are and not by their name, with a bound on what comes out."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from genrec.data.sources.source import is_url
from genrec.errors import InputError

MAX_RATIO, FREE_BYTES = 200, 1 << 28
"""A compressed file may hold this many times its own bytes, and this much in any case: real logs stay below 50."""
MAX_LINE = 1 << 26
"""Bytes of the longest line."""
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
BUFFER = 1 << 20


@contextmanager
def reading(where: str, wanted: str) -> Generator[None]:
    """Turn the errors of libraries on bad input into one InputError that names the file and what was wanted."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, UnicodeError, OverflowError, RecursionError, MemoryError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise InputError(f"{where} cannot be read: {first}; wanted {wanted}") from None


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


@contextmanager
def open_for_arrow(path: str) -> Generator[BinaryIO]:
    """As ``open_stream``, for readers of Arrow; a plain local file is Arrow's own.

    Arrow reads ahead in a thread. Where that calls Python while Python ends, as after an error in the first rows, the
    process aborts with exit code 134.
    """
    if is_url(path) or _is_packed(Path(path)):
        with open_stream(path) as stream:
            yield stream
    else:
        yield cast("BinaryIO", pa.OSFile(path))  # Not closed here: the thread holds it, and may still read.


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return _codec_of(file.read(4)) is not None


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
    """``raw.read(size)``; InputError where a response ends before its length: urllib ends it like a whole one."""
    try:
        data = raw.read(size)
    except HTTPException as error:
        raise InputError(f"{path} was cut off ({error!r}); run the same command again, or download the file") from None
    if size and not data and (missing := getattr(raw, "length", None)):
        raise InputError(
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
            raise InputError(f"{path} is not a whole {codec} file: {error}; download it again") from None
        total += len(data)
        if total > FREE_BYTES + MAX_RATIO * packed.count:
            raise InputError(
                f"{path}: got {total >> 20} MiB out of {packed.count >> 10} KiB of {codec}, wanted at most "
                f"{MAX_RATIO} times its size: this looks like a decompression bomb; unpack and check it by hand"
            )
        return data

    return bounded
