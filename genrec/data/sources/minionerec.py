"""MiniOneRec's published files (Kong et al. 2025): CSV rows by split, ``*.item.json`` and ``*.index.json``.

A row is a sample: a target and the history before it. The log is restored from the targets in file order (train, valid,
test, each sorted by time), and from the only item of each user's shortest history, which is the user's first event and
never a target. The published semantic IDs become the column ``sid_official``.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from genrec.config import Data
from genrec.data.canonical import canonical_log
from genrec.data.columns import LOG
from genrec.data.sources.amazon import clean
from genrec.data.sources.locate import is_data_file
from genrec.data.sources.source import Part, need_path, resolve
from genrec.data.sources.streams import reading
from genrec.data.tables import SPLITS, refuse_duplicate_ids
from genrec.errors import InputError

BATCH_ROWS = 1 << 15
NEEDED = ("user_id", "history_item_id", "item_id")


@dataclass(frozen=True)
class MiniOneRec:
    """``data.items`` is the ``*.item.json`` if a folder has several; the other files are found by its stem."""

    data: Data
    ignores_unknown_items: bool = False
    whole_histories: bool = True

    def check(self) -> None:
        """Raise InputError for missing files or columns, and for a split other than given or leave_one_out."""
        if self.data.split == "chronological":
            raise InputError(
                "data.split=chronological: these files do not have times for all rows, and are split by time already; "
                "set data.split=given"
            )
        for file in self._splits().values():
            with _rows(file) as rows:
                header = rows.fieldnames or []
            missing = [name for name in NEEDED if name not in header]
            if missing:
                raise InputError(f"{file}: columns {missing} are missing; got {header}")

    def files(self) -> list[str]:
        """Items, semantic IDs if there are any, then train, valid and test."""
        index = self._index()
        return [str(self._items()), *([str(index)] if index else []), *self._splits().values()]

    def items(self) -> pa.Table:
        """Items sorted by number, with ``sid_official`` (null without an index file)."""
        entries = _json(self._items(), dict)
        index = self._index()
        codes = _json(index, list) if index else {}
        names = sorted(entries, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
        texts = {key: [_text(entries[name].get(key)) for name in names] for key in ("title", "description", "brand")}
        paths = [_path(entries[name].get("categories")) for name in names]
        with reading(str(index or self._items()), "texts, and lists of texts as semantic IDs"):
            sids = pa.array([codes.get(name) for name in names], pa.list_(pa.string()))
            table = pa.table(
                {"id": pa.array(names, pa.string()), **texts, "categories": pa.array(paths, pa.list_(pa.string()))}
            )
        refuse_duplicate_ids(table["id"], str(self._items()), "id")
        return table.append_column("sid_official", sids)

    def parts(self) -> list[Part]:
        """The three splits; rows are numbered over all files, which gives the order of a user's events."""
        parts: list[Part] = []
        first = 0
        for split, file in self._splits().items():
            parts.append(Part(file, split=split, first_row=first))
            with Path(file).open("rb") as stream:
                first += sum(1 for _ in stream)
        return parts

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Each row's target; if the row's history is one item, that item before it, as the user's first event."""
        names = ("user_id", "item_id", "position", "split")
        present = {name: name for name in names}
        schema = pa.schema([LOG.field(name) for name in names])
        events: list[dict[str, Any]] = []
        with _rows(part.path) as rows:
            for row, sample in enumerate(rows, start=part.first_row):
                events += _events(sample, 2 * row, part)
                if len(events) >= BATCH_ROWS:
                    yield canonical_log(pa.Table.from_pylist(events, schema), present, part.path)
                    events = []
        yield canonical_log(pa.Table.from_pylist(events, schema), present, part.path)

    def _items(self) -> Path:
        path = Path(need_path(self.data.path, "minionerec"))
        if self.data.items:
            file = Path(resolve(self.data.path, self.data.items))
            if not file.is_file():
                raise InputError(f"data.items: file not found: {file}")
            return file
        files = (file for file in path.rglob("*.item.json") if is_data_file(str(file.relative_to(path)), (".json",)))
        found = sorted(files)
        if len(found) != 1:
            raise InputError(
                f"{path}: got item files {[file.name for file in found]}, wanted one *.item.json; "
                "name it with data.items=…"
            )
        return found[0]

    def _index(self) -> Path | None:
        file = self._items().with_name(f"{self._stem()}.index.json")
        return file if file.is_file() else None

    def _stem(self) -> str:
        return self._items().name.removesuffix(".item.json")

    def _splits(self) -> dict[str, str]:
        folder, stem = Path(need_path(self.data.path, "minionerec")), self._stem()
        files: dict[str, str] = {}
        for split in SPLITS:
            patterns = (f"{split}/{stem}*.csv", f"{stem}*{split}*.csv", f"{split}.csv")
            matches = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
            found = [file for file in matches if is_data_file(str(file.relative_to(folder)), (".csv",))]
            if len(found) != 1:
                raise InputError(f"{folder}: got {[f.name for f in found]}, wanted one {' or '.join(patterns)}")
            files[split] = str(found[0])
        return files


@contextmanager
def _rows(file: str) -> Generator[csv.DictReader[str]]:
    """The rows of a CSV file; InputError for what is not UTF-8 or not CSV."""
    with reading(file, "CSV in UTF-8"), Path(file).open(newline="", encoding="utf-8-sig") as stream:
        try:
            yield csv.DictReader(stream)
        except csv.Error as error:
            raise InputError(f"{file} is not CSV: {error}; download it again") from None


def _events(sample: Mapping[str, str | None], position: int, part: Part) -> Iterator[dict[str, Any]]:
    history = _literal(sample["history_item_id"])
    if not isinstance(history, list):
        raise InputError(
            f"{part.path}: got history_item_id {sample['history_item_id']!r:.80}, wanted a list like [117, 118]"
        )
    user, target = sample["user_id"], sample["item_id"]
    if len(history) == 1:
        yield {"user_id": user, "item_id": str(history[0]), "position": position, "split": "first"}
    yield {"user_id": user, "item_id": target, "position": position + 1, "split": part.split}


def _json(file: Path, inner: type) -> dict[str, Any]:
    """A mapping from item numbers to values of the type ``inner``."""
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: got {type(value).__name__}, wanted a mapping from item numbers")
    entries = cast("dict[str, Any]", value)
    wrong = [name for name, entry in entries.items() if not isinstance(entry, inner)]
    if wrong:
        raise InputError(f"{file}: got {entries[wrong[0]]!r:.80} for item {wrong[0]!r}, wanted a {inner.__name__}")
    return entries


def _literal(text: str | None) -> object:
    """The Python literal of a text, or None."""
    try:
        return ast.literal_eval(text or "")
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _text(value: object) -> str:
    """Text without markup; descriptions are published as the repr of a Python list."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = _literal(value) or value
    return clean(value)


def _path(value: object) -> list[str]:
    names = value if isinstance(value, list) else str(value or "").split(",")
    return [name for name in (clean(part) for part in names) if name]
