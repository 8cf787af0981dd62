"""Parquet in (nearly) the canonical schema: ``items.parquet`` and ``interactions.parquet``, files or directories.

Local paths, and URIs that Arrow can open (``s3://``, ``gs://``, ``hdfs://``). Integer ids become strings; common column
names are recognised, and other names are given in ``data.columns``.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from genrec.config import Data
from genrec.data.canonical import canonical_items, canonical_log
from genrec.data.columns import check_renames, find_catalog_columns, find_log_columns
from genrec.data.sources.source import Part, is_url, need_path, resolve
from genrec.data.tables import refuse_duplicate_ids
from genrec.errors import InputError

BATCH_ROWS = 1 << 18
PART_ROWS = 1 << 21


@dataclass(frozen=True)
class Parquet:
    """Items and interactions in Parquet; interactions with an unknown item are an InputError."""

    data: Data
    ignores_unknown_items: bool = False
    whole_histories: bool = False

    def check(self) -> None:
        """Raise InputError for missing files or columns, wrong types and empty tables."""
        check_renames(self.data.columns)
        for file in self._items():
            find_catalog_columns(open_parquet(file).schema_arrow, self.data.columns, file)
        for file in self._interactions():
            found = find_log_columns(open_parquet(file).schema_arrow, self.data.columns, file)
            if self.data.split == "given" and "split" not in found:
                raise InputError(f"{file}: data.split=given needs a 'split' column; name it with data.columns.split=…")
        for files in (self._items(), self._interactions()):
            if sum(open_parquet(file).metadata.num_rows for file in files) == 0:
                raise InputError(f"{files[0]}: the table is empty; wanted at least one row")

    def files(self) -> list[str]:
        """The item files, then the log files."""
        return self._items() + self._interactions()

    def items(self) -> pa.Table:
        """The rows of all item files; InputError for ids that occur twice."""
        tables: list[pa.Table] = []
        for file in self._items():
            table = open_parquet(file).read()
            tables.append(canonical_items(table, find_catalog_columns(table.schema, self.data.columns, file), file))
        items = pa.concat_tables(tables, promote_options="default")
        refuse_duplicate_ids(items["id"], self._items()[0], "id")
        return items

    def parts(self) -> list[Part]:
        """Runs of row groups of about two million rows."""
        return [part for file in self._interactions() for part in row_group_parts(file)]

    def read(self, part: Part) -> Iterator[pa.Table]:
        """The part's rows in canonical columns."""
        file = open_parquet(part.path)
        found = find_log_columns(file.schema_arrow, self.data.columns, part.path)
        columns = list(dict.fromkeys(found.values()))
        for batch in file.iter_batches(BATCH_ROWS, row_groups=list(part.groups), columns=columns):
            yield canonical_log(pa.Table.from_batches([batch]), found, part.path)

    def _items(self) -> list[str]:
        return self._located(self.data.items, "items.parquet", "items")

    def _interactions(self) -> list[str]:
        return self._located(self.data.interactions, "interactions.parquet", "interactions")

    def _located(self, given: str | None, default: str, key: str) -> list[str]:
        if given is None:
            path = need_path(self.data.path, "parquet")
            given = default
            if not is_url(path) and not (Path(path) / default).exists() and (Path(path) / key).is_dir():
                given = key
        name = resolve(self.data.path, given)
        files = list_parquet(name)
        if not files:
            raise InputError(
                f"{key} not found: {name}; wanted a Parquet file, a directory of them or a pattern (set data.{key}=…)"
            )
        return files


def list_parquet(name: str) -> list[str]:
    """The Parquet files of ``name``: the file itself, those in the directory, or those that match the pattern."""
    if is_url(name):
        system, inner = _remote(name)
        if system.get_file_info(inner).type != fs.FileType.Directory:
            return [name]
        prefix = name[: len(name) - len(inner)] if name.endswith(inner) else f"{name.split('://')[0]}://"
        found = system.get_file_info(fs.FileSelector(inner, recursive=True))
        return sorted(prefix + info.path for info in found if info.path.endswith(".parquet"))
    path = Path(name)
    if path.is_dir():
        return sorted(str(file) for file in path.rglob("*.parquet"))
    if path.is_file():
        return [name]
    return sorted(glob.glob(name))  # noqa: PTH207 - the pattern may be absolute


def open_parquet(file: str) -> pq.ParquetFile:
    """Open a Parquet file and read its footer; InputError if it is not Parquet."""
    try:
        if is_url(file):
            system, inner = _remote(file)
            return pq.ParquetFile(system.open_input_file(inner))
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} cannot be read as Parquet: {error}") from None


def _remote(name: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(name)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name} cannot be opened: {error}; wanted a local path, s3://, gs:// or hdfs://") from None


def row_group_parts(file: str) -> list[Part]:
    """The file's row groups as parts of about ``PART_ROWS`` rows."""
    parts: list[Part] = []
    run: list[int] = []
    rows = 0
    metadata = open_parquet(file).metadata
    for group in range(metadata.num_row_groups):
        run.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= PART_ROWS or group == metadata.num_row_groups - 1:
            parts.append(Part(file, tuple(run)))
            run, rows = [], 0
    return parts
