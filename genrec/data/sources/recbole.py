"""RecBole's atomic files: ``NAME.inter`` and ``NAME.item``, tables with tabs whose header gives each column's type.

    user_id:token   item_id:token   rating:float   timestamp:float
    item_id:token   movie_title:token_seq   class:token_seq

Without ``NAME.item`` the catalogue is what the log names, and an item's title is its id. Source: Zhao et al. (2021),
recbole.io/docs/user_guide/data/atomic_files.html.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from genrec.config import Data
from genrec.data.arrow import pc
from genrec.data.canonical import canonical_items, canonical_log
from genrec.data.columns import check_renames, find_catalog_columns, find_log_columns
from genrec.data.sources.delimited import read_delimited
from genrec.data.sources.source import Part, is_url, need_path, resolve
from genrec.data.sources.streams import open_stream, reading
from genrec.data.tables import refuse_duplicate_ids
from genrec.errors import InputError

LOG = logging.getLogger(__name__)

TYPES = ("token", "token_seq", "float", "float_seq")
ALIASES = {"title": ("movie_title", "item_name", "product_name"), "categories": ("class", "genre", "genres")}
"""Names in published atomic files, beside those that every source knows."""


@dataclass(frozen=True)
class RecBole:
    """``data.path`` is a data set's folder, unless ``data.interactions`` and ``data.items`` name its files."""

    data: Data
    ignores_unknown_items: bool = True
    whole_histories: bool = False

    def check(self) -> None:
        """Raise InputError for missing files or columns, or a header without types."""
        check_renames(self.data.columns)
        log = self._log()
        found = find_log_columns(_schema(log), self.data.columns, log)
        if self.data.split == "given" and "split" not in found:
            raise InputError(f"{log}: data.split=given needs a 'split' column; set data.split=leave_one_out")
        if (items := self._items()) is not None:
            find_catalog_columns(_schema(items), self._renames(items), items)

    def files(self) -> list[str]:
        """The item file if there is one, then the log."""
        items = self._items()
        return [*([] if items is None else [items]), self._log()]

    def items(self) -> pa.Table:
        """The item file, or the items of the log, in the order of their first appearance."""
        file = self._items()
        if file is None:
            return self._items_of_log()
        found = find_catalog_columns(_schema(file), self._renames(file), file)
        tables = [_with_paths(table, found, _header(file)) for table in _rows(file)]
        if not tables:
            raise InputError(f"{file}: got no items, wanted at least one")
        items = pa.concat_tables(canonical_items(table, found, file) for table in tables)
        refuse_duplicate_ids(items["id"], file, found["id"])
        return items

    def parts(self) -> list[Part]:
        """The log, as one part."""
        return [Part(self._log())]

    def read(self, part: Part) -> Iterator[pa.Table]:
        """The rows in canonical columns."""
        found = find_log_columns(_schema(part.path), self.data.columns, part.path)
        for table in _rows(part.path):
            yield canonical_log(table, found, part.path, self.data.time_unit)

    def _items_of_log(self) -> pa.Table:
        file = self._log()
        column = find_log_columns(_schema(file), self.data.columns, file)["item_id"]
        LOG.warning("%s: no .item file beside it, so items have no text: their titles are their ids", file)
        ids = pc.unique(
            pa.chunked_array([chunk for table in _rows(file) for chunk in table[column].chunks], pa.string())
        )
        table = pa.table({"id": ids.drop_null(), "title": ids.drop_null()})
        return canonical_items(table, {"id": "id", "title": "title"}, file)

    def _renames(self, file: str) -> dict[str, str]:
        """``data.columns`` for the item file, and the names that RecBole's own files use."""
        names = _schema(file).names
        known = {key: name for key, others in ALIASES.items() for name in others if key not in names and name in names}
        return known | self.data.columns

    def _log(self) -> str:
        return self._one(self.data.interactions, "interactions", ".inter")

    def _items(self) -> str | None:
        if self.data.items is None:
            beside = Path(self._log()).with_suffix(".item")
            return str(beside) if beside.is_file() else None
        return self._one(self.data.items, "items", ".item")

    def _one(self, given: str | None, key: str, ending: str) -> str:
        folder = need_path(self.data.path, "recbole") if given is None else self.data.path
        if folder and is_url(folder):
            raise InputError(f"data.path={folder}: atomic files are read from a local folder; download them")
        found = [Path(resolve(folder, given))] if given else sorted(Path(str(folder)).glob(f"*{ending}"))
        if len(found) != 1 or not found[0].is_file():
            names = [file.name for file in found]
            raise InputError(f"{folder}: got the {ending} files {names}, wanted one; name it with data.{key}=…")
        return str(found[0])


def _header(file: str) -> dict[str, str]:
    """Column → type; InputError for a header that is not RecBole's."""
    with reading(file, "RecBole's atomic files"), open_stream(file) as stream:
        fields = stream.readline(1 << 20).decode("utf-8-sig").strip("\r\n").split("\t")
    named = [field.rpartition(":") for field in fields]
    header = {name: kind for name, _, kind in named}
    if wrong := [field for field in fields if ":" not in field or field.rpartition(":")[2] not in TYPES]:
        raise InputError(
            f"{file}: got the columns {wrong} without a type, wanted names such as user_id:token, divided by tabs, "
            f"with the types {', '.join(TYPES)}; other tables are read with data.source=parquet"
        )
    if len(header) < len(fields):
        raise InputError(f"{file}: columns occur more than once; got {fields}")
    return header


def _schema(file: str) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in _header(file)])


def _rows(file: str) -> Iterator[pa.Table]:
    return read_delimited(file, list(_header(file)), "\t", skip=1)


def _with_paths(table: pa.Table, found: dict[str, str], types: dict[str, str]) -> pa.Table:
    """Sequences of tokens in the column of categories as lists: words, or quoted names as in Amazon's files."""
    column = found.get("categories")
    if column is None or types[column] != "token_seq":
        return table
    texts = table[column].fill_null("")
    quoted = pc.match_substring_regex(texts, r"^\s*['\"]")
    listed = pc.binary_join_element_wise("[", texts, "]", "")
    paths = pc.if_else(quoted, listed, pc.replace_substring(pc.utf8_trim_whitespace(texts), " ", "|"))
    return table.set_column(table.column_names.index(column), column, paths)
