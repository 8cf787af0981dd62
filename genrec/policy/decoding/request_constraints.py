"""A request's constraint in the shop's terms: item ids, a category, a price range, stock, and seen items."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.policy.decoding.request_ids import item_ids

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Constraint:
    """Which items may be recommended; a field that is left out restricts nothing.

    ``Constraint(category="Shampoo", price=(2, 10), unseen=True)``: shampoos for 2 to 10 that are not in the history.

    Raises:
        InputError: a field of another type.
    """

    allow: Iterable[str] | None = None
    """Item ids: only these may be recommended."""
    deny: Iterable[str] = ()
    """Item ids that may not be recommended."""
    category: str | None = None
    """A category's name, of any level."""
    price: tuple[float, float] | None = None
    """Lowest and highest price, both included; items without a price are excluded."""
    in_stock: Bools | Sequence[bool] | None = field(default=None, compare=False)
    """(N,) bool by item row (the order of the item table): True at items in stock."""
    unseen: bool = False
    """Exclude the items of the history."""

    def __post_init__(self) -> None:
        if self.allow is not None:
            object.__setattr__(self, "allow", item_ids(self.allow, "allow"))
        object.__setattr__(self, "deny", item_ids(self.deny, "deny"))
        object.__setattr__(self, "in_stock", None if self.in_stock is None else _bools(self.in_stock))
        if self.price is not None:
            object.__setattr__(self, "price", _price_range(self.price))
        wrong = [
            f"{name}={reprlib.repr(value)}; wanted {wanted}"
            for name, value, is_right, wanted in (
                ("category", self.category, isinstance(cast("object", self.category), str | None), "a category's name"),
                ("unseen", self.unseen, isinstance(cast("object", self.unseen), bool | np.bool_), "True or False"),
            )
            if not is_right
        ]
        if wrong:
            raise InputError(f"got {wrong[0]}")


class ItemAttributes:
    """The attributes of N items that constraints refer to.

    Args:
        rows: item id to row.
        categories: of each row, coarse to fine.
        price_N: of each row, NaN where unknown; None where the item table has no column ``price``.
    """

    def __init__(
        self, rows: dict[str, int], categories: list[list[str] | None], price_N: npt.NDArray[np.float64] | None
    ) -> None:
        self._rows, self._categories, self._price_N = rows, categories, price_N
        self._category_mask = lru_cache(maxsize=256)(self._make_category_mask)

    def __len__(self) -> int:
        return len(self._categories)

    @cached_property
    def category_names(self) -> list[str]:
        """The categories of all items, sorted."""
        return sorted({name for own in self._categories for name in own or ()})

    def of(self, row: int) -> tuple[tuple[str, ...], float | None]:
        """The categories of an item, coarse to fine, and its price; None where it is unknown."""
        price = math.nan if self._price_N is None else float(self._price_N[row])
        return tuple(self._categories[row] or ()), None if math.isnan(price) else price

    def frequent_categories(self, most: int) -> list[str]:
        """The names of the ``most`` categories with the most items, in the order of the alphabet."""
        counts = Counter(name for own in self._categories for name in own or ())
        return sorted(name for name, _ in counts.most_common(most))

    def mask(self, constraint: Constraint, history: Sequence[int]) -> Tensor:
        """The items that the constraint allows, (N,) bool.

        Args:
            history: rows of the user's items, which ``unseen`` excludes.

        Raises:
            InputError: an id or category that is not in the catalogue, a price range that is reversed or without
                prices to apply to, or ``in_stock`` of another length than N.
        """
        mask_N = np.ones(len(self), bool)
        if constraint.allow is not None:
            mask_N[:] = False
            mask_N[self._rows_of(constraint.allow, "allow")] = True
        mask_N[self._rows_of(constraint.deny, "deny")] = False
        if constraint.category is not None:
            mask_N &= self._category_mask(constraint.category)
        if constraint.price is not None:
            mask_N &= self._price_mask(*constraint.price)
        if constraint.in_stock is not None:
            if len(constraint.in_stock) != len(self):
                raise InputError(
                    f"in_stock has {len(constraint.in_stock)} items; wanted {len(self)}, one per item of the catalogue"
                )
            mask_N &= constraint.in_stock
        if constraint.unseen:
            mask_N[list(history)] = False
        return torch.from_numpy(mask_N)

    def _rows_of(self, ids: Iterable[str], field: str) -> list[int]:
        known = item_ids(ids, field)
        if unknown := [item_id for item_id in known if item_id not in self._rows]:
            shown = reprlib.repr(unknown[:3])
            raise InputError(f"{field} names {len(unknown)} items that are not in the catalogue ({shown})")
        return [self._rows[item_id] for item_id in known]

    def _make_category_mask(self, name: str) -> Bools:
        mask_N = np.array([name in (own or ()) for own in self._categories], bool)
        if not mask_N.any():
            raise InputError(f"no item has the category {reprlib.repr(name)}; wanted a category of the item table")
        return mask_N

    def _price_mask(self, low: float, high: float) -> Bools:
        if self._price_N is None:
            raise InputError("got a price range, but the item table has no column 'price'; add one, or leave price out")
        return (self._price_N >= low) & (self._price_N <= high)


def _bools(values: object) -> Bools:
    """``in_stock`` as an array (N,); a copy, which nobody else changes."""
    try:
        found = np.array(values)
    except (ValueError, TypeError):
        found = np.array(None)
    if found.dtype != np.bool_ or found.ndim != 1:
        raise InputError(
            f"in_stock: got {reprlib.repr(values)}; wanted True or False for each item of the catalogue, in a list"
        )
    return found


def _price_range(values: object) -> tuple[float, float]:
    """``price`` as two numbers, the lower one first."""
    try:
        low, high = (float(value) for value in cast("Iterable[float]", values))
    except (TypeError, ValueError, OverflowError):
        low, high = float("nan"), float("nan")
    if isinstance(values, str) or not low <= high:
        raise InputError(
            f"price: got {reprlib.repr(values)}; wanted two numbers, the lowest price first, such as (2, 10)"
        )
    return low, high


def read_item_attributes(items: pa.Table, added: Sequence[pa.Table], rows: dict[str, int]) -> ItemAttributes:
    """The attributes of the assigned ``items`` and of the tables ``added`` later."""
    categories = [own for table in (items, *added) for own in table["categories"].to_pylist()]
    tables = (items, *added)
    if not any("price" in table.column_names for table in tables):
        return ItemAttributes(rows, categories, None)
    return ItemAttributes(rows, categories, np.concatenate([_prices(table) for table in tables]))


def _prices(items: pa.Table) -> npt.NDArray[np.float64]:
    """The price of each item (N,), NaN where it has none."""
    if "price" not in items.column_names:
        return np.full(items.num_rows, np.nan)
    return items["price"].cast(pa.float64()).to_numpy()
