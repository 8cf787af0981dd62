"""A request's constraint in the shop's terms: item ids, a category, a price range, stock, and seen items."""

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
    """Which items may be recommended; a field that is left out restricts nothing.

    ``Constraint(category="Shampoo", price=(2, 10), unseen=True)``: shampoos for 2 to 10 that are not in the history.
    """

    allow: Sequence[str] | None = None
    """Item ids: only these may be recommended."""
    deny: Sequence[str] = ()
    """Item ids that may not be recommended."""
    category: str | None = None
    """A category's name, of any level."""
    price: tuple[float, float] | None = None
    """Lowest and highest price, both included; items without a price are excluded."""
    in_stock: Bools | None = field(default=None, compare=False)
    """(N,) bool by item row (the order of the item table): True at items in stock."""
    unseen: bool = False
    """Exclude the items of the history."""


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
            mask_N &= np.asarray(constraint.in_stock, bool)
        if constraint.unseen:
            mask_N[list(history)] = False
        return torch.from_numpy(mask_N)

    def _rows_of(self, ids: Sequence[str], field: str) -> list[int]:
        unknown = [item_id for item_id in ids if item_id not in self._rows]
        if unknown:
            raise InputError(f"{field} names {len(unknown)} items that are not in the catalogue ({unknown[:3]})")
        return [self._rows[item_id] for item_id in ids]

    def _make_category_mask(self, name: str) -> Bools:
        mask_N = np.array([name in (own or ()) for own in self._categories], bool)
        if not mask_N.any():
            raise InputError(f"no item has the category {name!r}; wanted a category of the item table")
        return mask_N

    def _price_mask(self, low: float, high: float) -> Bools:
        if self._price_N is None:
            raise InputError("got a price range, but the item table has no column 'price'; add one, or leave price out")
        if low > high:
            raise InputError(f"got the price range {low:g} to {high:g}; wanted the lowest price first")
        return (self._price_N >= low) & (self._price_N <= high)


def read_item_attributes(items: pa.Table, added: Sequence[pa.Table], rows: dict[str, int]) -> ItemAttributes:
    """The attributes of the assigned ``items`` and of the tables ``added`` later, whose items have no price."""
    categories = [own for table in (items, *added) for own in table["categories"].to_pylist()]
    if "price" not in items.column_names:
        return ItemAttributes(rows, categories, None)
    price_N = np.full(len(categories), np.nan)
    price_N[: items.num_rows] = items["price"].cast(pa.float64()).to_numpy()
    return ItemAttributes(rows, categories, price_N)
