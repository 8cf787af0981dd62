"""The objects of a JSON-lines file (local or http(s), also compressed) as a stream."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

import pyarrow as pa

from genrec.data.sources.streams import read_lines
from genrec.errors import InputError

KEY_ROWS = 1000
"""Objects whose keys are the columns of a file."""


def read_objects(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as its place (file and line, for messages) and a mapping: JSON, or Amazon's Python literals of 2014.

    Raises:
        InputError: the file cannot be read, is cut off, or has a line that is neither, is too long, or has half a
            character (a lone surrogate).
    """
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse(line, where)


def read_keys(path: str) -> list[str]:
    """The names in the first ``KEY_ROWS`` objects, in order of appearance; InputError if there is no object."""
    names = {str(name): None for _, row in islice(read_objects(path), KEY_ROWS) for name in row}
    if not names:
        raise InputError(f"{path} holds no object; wanted one JSON object a line")
    return list(names)


def read_json_table(path: str, columns: Sequence[str], batch_rows: int) -> Iterator[pa.Table]:
    """Some keys of the objects as tables of strings, as of a CSV file; lists and objects are JSON, empty texts null."""
    objects = (row for _, row in read_objects(path))
    schema = pa.schema([(name, pa.string()) for name in columns])
    while rows := list(islice(objects, batch_rows)):
        yield pa.table({name: [_text(row.get(name)) for row in rows] for name in columns}, schema=schema)


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
    row = cast("dict[str, Any]", value)
    if b"\\u" in line or b"\\U" in line:
        for name, own in row.items():
            _refuse_half_characters(name, own, where)
    return row


def _refuse_half_characters(name: str, value: object, where: str) -> None:
    try:
        json.dumps([name, value], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half, field = error.object[error.start], name.encode("ascii", "backslashreplace").decode()
        raise InputError(f"{where}: got {half!r}, half of a character, in {field}; wanted Unicode text") from None
    except (TypeError, ValueError):  # A Python literal that is no JSON; its texts are checked as columns.
        return
