"""A request's constraint in the shop's terms: lists of ids, a category, prices, stock, and what the user has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from genrec.errors import InputError

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Constraint:
    """What an answer may hold; everything that is left out is free.

    ``Constraint(category="Shampoo", price=(2, 10), unseen=True)``: shampoos for 2 to 10 that are not in the history.
    """

    allow: Sequence[str] | None = None
    """Item ids; no other item comes."""
    deny: Sequence[str] = ()
    """Item ids that do not come."""
    category: str | None = None
    """A category's name, of any level."""
    price: tuple[float, float] | None = None
    """Lowest and highest price, both included; items without a price do not come."""
    in_stock: Bools | None = field(default=None, compare=False)
    """(N,) bool by item row (the order of the item table)."""
    unseen: bool = False
    """Without the items of the history."""


class ItemAttributes:
    """What constraints ask of the catalogue's items.

    Args:
        rows: item id to row; categories: of each row, coarse to fine; price_N: of each row, NaN where unknown, or None
            where the item table has no column ``price``.
    """

    def __init__(
        self, rows: dict[str, int], categories: list[list[str] | None], price_N: npt.NDArray[np.float64] | None
    ):
        self._rows, self._categories, self._price_N = rows, categories, price_N
        self.of_category = lru_cache(maxsize=256)(self._of_category)

    def __len__(self) -> int:
        return len(self._categories)

    def mask(self, constraint: Constraint, history: Sequence[int]) -> Tensor:
        """The items that may come, (N,) bool.

        Raises:
            InputError: an id or category that the catalogue lacks, a price range without prices or upside down, or a
                stock bitmap of another length.
        """
        mask_N = np.ones(len(self), bool)
        if constraint.allow is not None:
            mask_N[:] = False
            mask_N[self._at(constraint.allow, "allow")] = True
        mask_N[self._at(constraint.deny, "deny")] = False
        if constraint.category is not None:
            mask_N &= self.of_category(constraint.category)
        if constraint.price is not None:
            mask_N &= self._of_price(*constraint.price)
        if constraint.in_stock is not None:
            if len(constraint.in_stock) != len(self):
                raise InputError(f"in_stock has {len(constraint.in_stock)} items, the catalogue has {len(self)}")
            mask_N &= np.asarray(constraint.in_stock, bool)
        if constraint.unseen:
            mask_N[list(history)] = False
        return torch.from_numpy(mask_N)

    def _at(self, ids: Sequence[str], what: str) -> list[int]:
        unknown = [item_id for item_id in ids if item_id not in self._rows]
        if unknown:
            raise InputError(f"{what} names {len(unknown)} items that are not in the catalogue ({unknown[:3]})")
        return [self._rows[item_id] for item_id in ids]

    def _of_category(self, name: str) -> Bools:
        mask_N = np.array([name in (own or ()) for own in self._categories], bool)
        if not mask_N.any():
            raise InputError(f"no item has the category {name!r}")
        return mask_N

    def _of_price(self, low: float, high: float) -> Bools:
        if self._price_N is None:
            raise InputError("a price range was asked for, but the item table has no column 'price'")
        if low > high:
            raise InputError(f"the price range {low:g} to {high:g} is upside down")
        return (self._price_N >= low) & (self._price_N <= high)


def read_item_attributes(items: pa.Table, added: Sequence[pa.Table], rows: dict[str, int]) -> ItemAttributes:
    """The facts of the assigned items and of those that were inserted since, which have no price."""
    categories = [own for table in (items, *added) for own in table["categories"].to_pylist()]
    if "price" not in items.column_names:
        return ItemAttributes(rows, categories, None)
    price_N = np.full(len(categories), np.nan)
    price_N[: items.num_rows] = items["price"].cast(pa.float64()).to_numpy()
    return ItemAttributes(rows, categories, price_N)
