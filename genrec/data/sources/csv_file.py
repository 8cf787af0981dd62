"""A text table (CSV, TSV, also compressed) as a stream of tables of strings."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import csv as arrow_csv

from genrec.data.sources.streams import open_for_arrow, open_stream, reading
from genrec.errors import InputError

WANTED = "UTF-8 text with a header and the same number of fields in each row"
DELIMITERS = ",\t;|"
BLOCK_BYTES = 1 << 23
"""Bytes that are parsed at once; no row may be longer."""
MAX_HEADER = 1 << 20


def read_header(path: str) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter: the one of ``DELIMITERS`` that the header holds most often.

    Raises:
        InputError: the file is empty, or not UTF-8.
    """
    with reading(path, WANTED), open_stream(path) as stream:
        line = stream.readline(MAX_HEADER).decode("utf-8-sig").strip("\r\n")
    if not line.strip():
        raise InputError(f"{path} has no header; wanted {WANTED}")
    delimiter = max(DELIMITERS, key=line.count)
    names = next(csv.reader([line], delimiter=delimiter))
    return [name.strip() or f"column_{place}" for place, name in enumerate(names)], delimiter


def read_csv(path: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows as tables of strings (so leading zeros stay); an empty field is null.

    Raises:
        InputError: rows of another length than the header, text that is not UTF-8, or a file that is cut off.
    """
    names, delimiter = read_header(path)
    options = arrow_csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        include_columns=list(columns or names),
        null_values=[""],
        strings_can_be_null=True,
    )
    read = arrow_csv.ReadOptions(column_names=names, skip_rows=1, block_size=BLOCK_BYTES)
    parse = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with reading(path, WANTED), open_for_arrow(path) as file:
        try:
            batches = arrow_csv.open_csv(file.stream, read, parse, options)
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                return
            raise
        came = 0
        for batch in batches:
            # In the file a field has one byte beside its own, in the batch an offset of four.
            came += batch.nbytes - 3 * batch.num_rows * batch.num_columns
            file.refuse_bomb(came)
            yield pa.Table.from_batches([batch])
