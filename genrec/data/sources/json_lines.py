"""The objects of a JSON-lines file (local or http(s), also compressed) as a stream."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any, cast

from genrec.data.sources.streams import read_lines
from genrec.errors import InputError


def read_objects(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as its place (file and line, for messages) and a mapping: JSON, or Amazon's Python literals of 2014.

    Raises:
        InputError: the file cannot be read, is cut off, or has a line that is neither, or is too long.
    """
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse(line, where)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(line.decode("utf-8").strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise InputError(f"{where}: got {line[:80]!r}, wanted JSON or a Python literal") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: got {type(value).__name__}, wanted an object")
    return cast("dict[str, Any]", value)
