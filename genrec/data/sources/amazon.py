"""Amazon reviews as McAuley's lab published them in 2014, 2018 and 2023: reviews and metadata, one object per line.

    2014  reviews_X.json.gz (JSON), meta_X.json.gz (Python literals); reviewerID, asin, overall, unixReviewTime
    2018  X.json.gz, meta_X.json.gz; the same names, the category path in ``category``
    2023  X.jsonl.gz, meta_X.jsonl.gz; user_id, parent_asin, rating, timestamp in milliseconds; ``store`` as brand
    2023  X.csv.gz (0-core, 5-core), or X.train.csv.gz, X.valid.csv.gz and X.test.csv.gz; the same columns

Local paths or http(s) URLs. Interactions whose item has no metadata are dropped and counted, as is usual; of
repeated metadata the first is kept. Sources: He & McAuley (2016); Ni et al. (2019); Hou et al. (2024).
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from genrec.config import Data
from genrec.data.canonical import canonical_log
from genrec.data.columns import LOG
from genrec.data.sources.csv_file import read_csv, read_header
from genrec.data.sources.json_lines import read_objects
from genrec.data.sources.locate import is_data_file, refuse_copies
from genrec.data.sources.source import Part, is_url, need_path, resolve
from genrec.errors import InputError

BATCH_ROWS = 1 << 16
LARGEST = 1e18
"""Prices, ratings and times above are errors in the data."""
PACKED = ("", ".gz", ".zst", ".bz2")
CSV_ENDINGS = tuple(f".csv{packed}" for packed in PACKED)
ENDINGS = (*(kind + packed for kind in (".json", ".jsonl") for packed in PACKED), *CSV_ENDINGS)
CSV_COLUMNS = ("user_id", "parent_asin", "rating", "timestamp")
NOT_REVIEWS = ("dataset_info.json", "dataset_infos.json", "state.json", "package.json")
"""Files that tools put beside data."""
CATALOG = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("brand", pa.string()),
        ("categories", pa.list_(pa.string())),
        ("price", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Amazon:
    """One metadata file and one or more review files; the year is recognised by the fields of the lines."""

    data: Data
    ignores_unknown_items: bool = True
    whole_histories: bool = False

    def check(self) -> None:
        """Raise InputError if the first line of a file lacks a needed field."""
        if self.data.split == "given":
            raise InputError(
                "data.split=given: Amazon's raw files have no splits; set data.split=leave_one_out or chronological"
            )
        tables = [log for log in self._logs() if _is_csv(log)]
        for table in tables:
            if missing := [name for name in CSV_COLUMNS if name not in read_header(table)[0]]:
                raise InputError(f"{table}: columns {missing} are missing; got {read_header(table)[0]}")
        lines = [log for log in self._logs() if log not in tables]
        if tables and lines:
            raise InputError(
                f"{self.data.path}: got reviews twice, e.g. {tables[0]} and {lines[0]}; "
                "name one with data.interactions=…"
            )
        for file, needed in [(self._items(), _item), *((log, _interaction) for log in lines)]:
            first = next(read_objects(file), None)
            if first is None:
                raise InputError(f"{file} is empty; wanted one object per line")
            needed(first[1], first[0])

    def files(self) -> list[str]:
        """Metadata, then reviews."""
        return [self._items(), *self._logs()]

    def items(self) -> pa.Table:
        """Items in the order of the metadata file; text without markup, ``price`` where it is a number."""
        seen: set[str] = set()
        tables = [CATALOG.empty_table()]
        rows = (_item(entry, where) for where, entry in read_objects(self._items()))
        while batch := list(islice(rows, BATCH_ROWS)):
            new = [row for row in batch if not (row["id"] in seen or seen.add(row["id"]))]
            tables.append(pa.Table.from_pylist(new, CATALOG))
        return pa.concat_tables(tables)

    def parts(self) -> list[Part]:
        """One part per review file, because gzip cannot be read from the middle."""
        return [Part(file) for file in self._logs()]

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Reviews as events of type 'review' whose value is the rating."""
        if _is_csv(part.path):
            yield from _read_csv(part.path)
            return
        rows = (_interaction(entry, where) for where, entry in read_objects(part.path))
        present = {name: name for name in ("user_id", "item_id", "timestamp", "event", "value")}
        schema = pa.schema([LOG.field(name) for name in present])
        while batch := list(islice(rows, BATCH_ROWS)):
            yield canonical_log(pa.Table.from_pylist(batch, schema), present, part.path)

    def _items(self) -> str:
        if self.data.items:
            return _existing(resolve(self.data.path, self.data.items), "items")
        found = [file for file in self._listed() if Path(file).name.startswith("meta")]
        if len(found) != 1:
            raise InputError(
                f"{self.data.path}: got metadata files {[Path(file).name for file in found]}, "
                "wanted one meta*.json(l)(.gz); set data.items=…"
            )
        return found[0]

    def _logs(self) -> list[str]:
        if self.data.interactions:
            return [_existing(resolve(self.data.path, self.data.interactions), "interactions")]
        found = [file for file in self._listed() if not Path(file).name.startswith("meta")]
        if not found:
            raise InputError(f"{self.data.path}: no review file *.json(l)(.gz) or *.csv(.gz); set data.interactions=…")
        refuse_copies(found, "name one with data.interactions=…")
        return found

    def _listed(self) -> list[str]:
        path = need_path(self.data.path, "amazon")
        if is_url(path):
            raise InputError(f"{path} cannot be listed; set data.items=… and data.interactions=… to its files")
        found = (file for file in Path(path).iterdir() if file.is_file() and is_data_file(file.name, ENDINGS))
        return sorted(str(file) for file in found if file.name not in NOT_REVIEWS)


def _is_csv(file: str) -> bool:
    return file.lower().endswith(CSV_ENDINGS)


def _read_csv(file: str) -> Iterator[pa.Table]:
    """The reviews of a CSV file of 2023."""
    found = dict(zip(("user_id", "item_id", "value", "timestamp"), CSV_COLUMNS, strict=True)) | {"event": "event"}
    for table in read_csv(file, CSV_COLUMNS):
        events = pa.repeat(pa.scalar("review"), table.num_rows)
        yield canonical_log(table.append_column("event", events), found, file, "ms")


def clean(text: object) -> str:
    """Text without markup, HTML entities and repeated spaces; lists are joined."""
    if isinstance(text, list):
        return " ".join(filter(None, (clean(part) for part in text)))
    plain = html.unescape(html.unescape(str(text or ""))).encode("utf-8", "replace").decode()
    plain = re.sub(r"<(script|style)\b.*?(</\1>|$)", " ", plain, flags=re.DOTALL | re.IGNORECASE)
    return re.sub(r"\s+", " ", re.sub(r"</?[a-zA-Z][^<>]*>", " ", plain)).strip()


def _item(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    name = _id(entry, ("parent_asin", "asin"), where)
    if name is None:
        raise InputError(f"{where}: got metadata with the fields {_names(entry)}, wanted 'asin' or 'parent_asin'")
    title = str(entry.get("title") or "")
    return {
        "id": name,
        "title": "" if "<span id" in title else clean(title),
        "description": clean(entry.get("description")) or clean(entry.get("features")),
        "brand": clean(entry.get("brand") or entry.get("store")).removeprefix("by ").strip(),
        "categories": _path(entry),
        "price": _price(entry.get("price")),
    }


def _path(entry: Mapping[str, Any]) -> list[str]:
    """The category path: the first of several (2014); the main category if there is none (2023)."""
    names = entry.get("categories") or entry.get("category") or [entry.get("main_category") or ""]
    names = names if isinstance(names, list) else [names]
    if names and isinstance(names[0], list):
        names = names[0]
    return [name for name in (clean(part) for part in names if len(str(part)) <= 100) if name]


def _price(value: object) -> float | None:
    found = re.fullmatch(r"\$?\s*(\d[\d,]*\.?\d*)", str(value).strip())
    price = float(found.group(1).replace(",", "")) if found else None
    return price if price is not None and price <= LARGEST else None


def _interaction(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    user = _id(entry, ("user_id", "reviewerID"), where)
    item = _id(entry, ("parent_asin", "asin"), where)
    seconds = _number(entry, "unixReviewTime", where)
    milliseconds = _number(entry, "timestamp", where)
    if seconds is None and milliseconds is not None:
        seconds = milliseconds // 1000
    if user is None or item is None or seconds is None:
        raise InputError(
            f"{where}: a review needs reviewerID, asin and unixReviewTime (2014, 2018) or user_id, parent_asin and "
            f"timestamp (2023); got the fields {_names(entry)}"
        )
    rating = _number(entry, "overall" if "overall" in entry else "rating", where)
    return {"user_id": user, "item_id": item, "timestamp": int(seconds), "event": "review", "value": rating}


def _id(entry: Mapping[str, Any], names: tuple[str, ...], where: str) -> str | None:
    value = next((entry[name] for name in names if entry.get(name) not in (None, "")), None)
    if not (value is None or (isinstance(value, str) and value.isprintable()) or type(value) is int):
        raise InputError(f"{where}: got {value!r:.80} for {' or '.join(names)}, wanted text")
    return None if value is None else str(value)


def _number(entry: Mapping[str, Any], name: str, where: str) -> float | int | None:
    """A number, also as text; None if it is missing, empty or NaN. InputError for anything else."""
    value = entry.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = value if type(value) is int else float("x" if isinstance(value, bool) else value)
    except (ValueError, TypeError):
        raise InputError(f"{where}: got {value!r:.80} for {name}, wanted a number; correct or remove it") from None
    if math.isnan(number):
        return None
    if abs(number) > LARGEST:
        raise InputError(f"{where}: got {value!r:.80} for {name}, which is too large; correct or remove it")
    return number


def _names(entry: Mapping[str, Any]) -> list[str]:
    return sorted(map(str, entry))[:20]


def _existing(file: str, key: str) -> str:
    if not is_url(file) and not Path(file).is_file():
        raise InputError(f"data.{key}: file not found: {file}")
    return file
