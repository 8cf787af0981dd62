"""Text tables without quotes, whose columns and delimiter are known, such as RecBole's and MovieLens' files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import csv as arrow_csv

from genrec.data.sources.streams import open_stream, reading

BLOCK_BYTES = 1 << 23
"""Bytes that are parsed at once, to the end of a line."""
SEPARATOR = "\x1f"
"""Arrow's parser wants one character between fields; this one is in no text."""


def read_delimited(
    path: str, names: Sequence[str], delimiter: str, *, skip: int = 0, encoding: str = "utf-8", other: str = ""
) -> Iterator[pa.Table]:
    """The rows as tables of strings with the columns ``names``; an empty field is null.

    Args:
        delimiter: one or more characters; skip: lines at the beginning that are no rows.

    Raises:
        InputError: rows with another number of fields, text in another encoding, or a file that is cut off.
    """
    convert = arrow_csv.ConvertOptions(
        column_types={name: pa.string() for name in names}, null_values=[""], strings_can_be_null=True
    )
    read = arrow_csv.ReadOptions(column_names=list(names))
    parse = arrow_csv.ParseOptions(delimiter=SEPARATOR, quote_char=False)
    wanted = f"{encoding} text with {len(names)} fields a row ({', '.join(names)}), divided by {delimiter!r}"
    with reading(path, wanted), open_stream(path) as stream:
        for _ in range(skip):
            stream.readline()
        while lines := stream.readlines(BLOCK_BYTES):
            text = _decoded(b"".join(lines), encoding, other).replace(delimiter, SEPARATOR)
            if text.strip():
                yield arrow_csv.read_csv(pa.BufferReader(text.encode()), read, parse, convert)


def _decoded(data: bytes, encoding: str, other: str) -> str:
    """Text in ``encoding``, or where it is none, in ``other``."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        if not other:
            raise
        return data.decode(other)
