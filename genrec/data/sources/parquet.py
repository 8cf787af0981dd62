"""Tables in (nearly) the canonical columns: items and interactions, each a file or a folder of files.

Parquet, or CSV, TSV and JSON lines (also compressed), whose columns are text until one is needed as a number or a
time. Local paths, and URIs that Arrow can open (``s3://``, ``gs://``, ``hdfs://``; Parquet only). Integer ids become
strings; common column names are recognised, and other names are given in ``data.columns``. Folders named
``event=click`` are a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from genrec.config import Data
from genrec.data.canonical import canonical_items, canonical_log
from genrec.data.columns import check_renames, find_catalog_columns, find_log_columns
from genrec.data.sources.locate import PARQUET, TEXT, find_files, folder_of, refuse_copies
from genrec.data.sources.source import Part, is_url, need_path, resolve
from genrec.data.sources.streams import reading
from genrec.data.sources.table_file import TableFile
from genrec.data.tables import refuse_duplicate_ids
from genrec.errors import InputError


@dataclass(frozen=True)
class Parquet:
    """Items and interactions in Parquet or text; interactions with an unknown item are an InputError."""

    data: Data
    ignores_unknown_items: bool = False
    whole_histories: bool = False

    def check(self) -> None:
        """Raise InputError for missing files or columns, wrong types and empty tables."""
        check_renames(self.data.columns)
        items, log = self._items(), self._interactions()
        for file in items:
            find_catalog_columns(file.schema(), self.data.columns, file.path)
        for file in log:
            found = find_log_columns(file.schema(), self.data.columns, file.path)
            if self.data.split == "given" and "split" not in found:
                raise InputError(
                    f"{file.path}: data.split=given needs a 'split' column; name it with data.columns.split=…"
                )
        for files in (items, log):
            if all(file.is_empty() for file in files):
                raise InputError(f"{files[0].path}: the table is empty; wanted at least one row")

    def files(self) -> list[str]:
        """The item files, then the log files."""
        return [file.path for file in self._items() + self._interactions()]

    def items(self) -> pa.Table:
        """The rows of all item files; InputError for ids that occur twice."""
        return read_catalog(self._items(), self.data.columns)

    def parts(self) -> list[Part]:
        """Runs of row groups of about two million rows; each text file is one part."""
        return [part for file in self._interactions() for part in file.parts()]

    def read(self, part: Part) -> Iterator[pa.Table]:
        """The part's rows in canonical columns."""
        file = TableFile(part.path, folder_of(self._located(self.data.interactions, "interactions")))
        found = find_log_columns(file.schema(), self.data.columns, part.path)
        for table in file.read(list(dict.fromkeys(found.values())), part.groups or None):
            yield canonical_log(table, found, part.path, self.data.time_unit)

    def _items(self) -> list[TableFile]:
        return find_tables(self._located(self.data.items, "items"), "set data.items=…")

    def _interactions(self) -> list[TableFile]:
        return find_tables(self._located(self.data.interactions, "interactions"), "set data.interactions=…")

    def _located(self, given: str | None, key: str) -> str:
        """The file, folder or pattern that is read: the given one, or the first default that exists."""
        if given is not None:
            return resolve(self.data.path, given)
        path = need_path(self.data.path, "parquet")
        if Path(path).is_file():
            raise InputError(f"data.path={path} is a file; wanted its directory, or data.items and data.interactions")
        names = [f"{key}.parquet", key, *(f"{key}{ending}" for ending in (*PARQUET, *TEXT))]
        exists = (name for name in names if not is_url(path) and (Path(path) / name).exists())
        return resolve(path, next(exists, names[0]))


def find_tables(name: str, remedy: str) -> list[TableFile]:
    """The files of a table; InputError, which ends in ``remedy``, if there are none, or files of several kinds."""
    files = find_files(name, (*PARQUET, *TEXT))
    if not files:
        raise InputError(
            f"not found: {name}; wanted a file of Parquet, CSV or JSON lines, a folder of them or a pattern; {remedy}"
        )
    tables = [TableFile(file, folder_of(name)) for file in files]
    if len({(table.is_text, table.is_json) for table in tables}) > 1:
        raise InputError(
            f"{name}: got files of several kinds together, e.g. {files[0]} and {files[-1]}, which may be copies; "
            f"name one kind with a pattern such as '{name}/*.parquet'; {remedy}"
        )
    refuse_copies(files, remedy)
    return tables


def read_catalog(files: Sequence[TableFile], columns: Mapping[str, str]) -> pa.Table:
    """The items of some files (schema ``columns.CATALOG``, then extra columns).

    Raises:
        InputError: values that cannot be used, ids that occur twice, or an extra column whose types do not go together.
    """
    tables: list[pa.Table] = []
    for file in files:
        found = find_catalog_columns(file.schema(), columns, file.path)
        tables += [canonical_items(table, found, file.path) for table in file.read()]
    if not any(table.num_rows for table in tables):
        raise InputError(f"{files[0].path}: got no items, wanted at least one")
    with reading(files[0].path, "the same type for a column in all item files"):
        items = pa.concat_tables(tables, promote_options="permissive")
    refuse_duplicate_ids(items["id"], files[0].path, "id")
    return items
