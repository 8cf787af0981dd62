"""The objects of a JSON-lines file (local or http(s), with or without gzip) as a stream."""

from __future__ import annotations

import ast
import gzip
import json
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

from genrec.data.sources.source import is_url
from genrec.errors import InputError


def read_objects(path: str) -> Iterator[dict[str, Any]]:
    """Each line as a mapping: JSON, or the Python literals of Amazon's 2014 metadata.

    Raises:
        InputError: the file cannot be read, is cut off, or has a line that is neither.
    """
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(_open(path))
            if path.split("?")[0].endswith(".gz"):
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _parse(line, path, number)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}; download it again") from None
    except (urllib.error.URLError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _open(path: str) -> BinaryIO:
    return cast("BinaryIO", urllib.request.urlopen(path, timeout=60)) if is_url(path) else Path(path).open("rb")


def _parse(line: bytes, path: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        try:
            value = ast.literal_eval(line.decode("utf-8"))
        except (ValueError, SyntaxError):
            raise InputError(f"{path}, line {number}: got {line[:80]!r}, wanted JSON or a Python literal") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number}: got {type(value).__name__}, wanted an object")
    return cast("dict[str, Any]", value)
