"""A file of a table, Parquet or text, with the columns that the names of its folders give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.sources.csv_file import read_csv, read_header
from genrec.data.sources.json_lines import read_json_table, read_keys
from genrec.data.sources.locate import JSON, TEXT, partition_values, remote
from genrec.data.sources.source import Part, is_url
from genrec.data.sources.streams import FREE_BYTES, MAX_RATIO, reading
from genrec.errors import InputError

BATCH_ROWS = 1 << 18
PART_ROWS = 1 << 21
WANTED = "a whole Parquet file, or text under a name that ends in .csv, .tsv or .jsonl"


@dataclass(frozen=True)
class TableFile:
    """One file below ``folder``; ``event=click`` between the two is a column, unless the file has it itself."""

    path: str
    folder: str

    @property
    def is_text(self) -> bool:
        """Whether the name says CSV, TSV or JSON lines; any other file is Parquet."""
        return self.path.lower().endswith(TEXT)

    def schema(self) -> pa.Schema:
        """All columns; InputError if a name occurs twice."""
        own = self._own_schema()
        twice = [name for name, count in Counter(own.names).items() if count > 1]
        if twice:
            raise InputError(f"{self.path}: columns {twice} occur more than once; rename or drop all but one of each")
        return pa.schema([*own, *(pa.field(name, pa.string()) for name in self._folders(own))])

    def is_empty(self) -> bool:
        """Whether there is no row."""
        if self.is_text:
            return all(table.num_rows == 0 for table in self._read_text(self._own_schema().names))
        return open_parquet(self.path).metadata.num_rows == 0

    def parts(self) -> list[Part]:
        """Runs of row groups of about ``PART_ROWS`` rows; a text file is one part."""
        return [Part(self.path)] if self.is_text else row_group_parts(self.path)

    def read(self, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None) -> Iterator[pa.Table]:
        """The rows of some row groups (default: all) as tables of at most ``BATCH_ROWS`` rows, in file order."""
        own = self._own_schema()
        names = own.names if columns is None else [name for name in columns if name in own.names]
        folders = {name: value for name, value in self._folders(own).items() if columns is None or name in columns}
        for table in self._read_text(names) if self.is_text else _read_parquet(self.path, names, groups):
            for name, value in folders.items():
                table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
            yield table

    def _own_schema(self) -> pa.Schema:
        if self.is_text:
            names = read_keys(self.path) if self.is_json else read_header(self.path)[0]
            return pa.schema([(name, pa.string()) for name in names])
        return open_parquet(self.path).schema_arrow

    @property
    def is_json(self) -> bool:
        """Whether the name says JSON lines."""
        return self.path.lower().endswith(JSON)

    def _read_text(self, names: Sequence[str]) -> Iterator[pa.Table]:
        return read_json_table(self.path, names, BATCH_ROWS) if self.is_json else read_csv(self.path, names)

    def _folders(self, own: pa.Schema) -> dict[str, str | None]:
        values = partition_values(self.folder, self.path)
        return {name: value for name, value in values.items() if name not in own.names}


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a Parquet file and read its footer; InputError if it is not Parquet, or says it is a decompression bomb."""
    try:
        stream = _open_remote(path) if is_url(path) else pa.OSFile(path)
        file = pq.ParquetFile(stream)
        _ = file.schema_arrow  # read here, so that a schema that Arrow does not know is refused
        size, metadata = stream.size(), file.metadata
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}; wanted {WANTED}") from None
    _refuse_bomb(path, metadata, size)
    return file


def row_group_parts(path: str) -> list[Part]:
    """The file's row groups as parts of about ``PART_ROWS`` rows."""
    parts: list[Part] = []
    run: list[int] = []
    rows = 0
    metadata = open_parquet(path).metadata
    for group in range(metadata.num_row_groups):
        run.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= PART_ROWS or group == metadata.num_row_groups - 1:
            parts.append(Part(path, tuple(run)))
            run, rows = [], 0
    return parts


def _open_remote(path: str) -> pa.NativeFile:
    system, inner = remote(path)
    return system.open_input_file(inner)


def _read_parquet(path: str, columns: Sequence[str], groups: Sequence[int] | None) -> Iterator[pa.Table]:
    file = open_parquet(path)
    chosen = range(file.num_row_groups) if groups is None else groups
    with reading(path, WANTED):
        for batch in file.iter_batches(BATCH_ROWS, row_groups=list(chosen), columns=list(columns)):
            yield pa.Table.from_batches([batch])


def _refuse_bomb(path: str, metadata: pq.FileMetaData, size: int) -> None:
    """Compare what the row groups say of their plain bytes with the file's ``size``.

    The columns' own numbers are not asked for: a damaged footer makes Arrow end the process there.
    """
    plain = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if plain > FREE_BYTES + MAX_RATIO * size:
        raise InputError(
            f"{path} says that it holds {plain >> 20} MiB in {size >> 10} KiB, wanted at most {MAX_RATIO} times its "
            "size: this looks like a decompression bomb; check the file, or write it again"
        )
