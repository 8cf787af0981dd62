"""What a recommender answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Basis = Literal["co-occurrence", "vectors"]


@dataclass(frozen=True)
class PathStep:
    """One code of a recommended item's semantic ID.

    ``name``: of the code, or its number as in ``<b_17>`` where codes have no names; ``probability``: of the code by the
    policy's semantic IDs, given those before it; ``items``: in the catalogue under the prefix that it ends.
    """

    name: str
    probability: float
    items: int


@dataclass(frozen=True)
class NearItem:
    """An item of the history that is like the recommended one; ``similarity`` is what ``Explanation.basis`` says."""

    id: str
    title: str
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """Why an item was recommended.

    ``steps``: which prefixes held its probability, coarse to fine; their product is its probability by the policy's
    semantic IDs, before item head and prior. ``nearest``: the most similar items of the history, most similar first.
    ``basis``: similarities are ItemKNN's (``co-occurrence``), or cosines of item vectors (``vectors``).
    """

    steps: tuple[PathStep, ...]
    nearest: tuple[NearItem, ...] = ()
    basis: Basis | None = None


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; ``score`` is its probability under the model, prior included where the run uses one.

    With a prior on the trie's nodes the score is a share of the total over the items that the search found. ``path``
    has the names of the item's codes, where they are readable (``sid.quantizer=taxonomy``, ``title_words``), such as
    ("Drinkware", "Mugs", "3"); else it is empty. ``why`` is there for requests with ``explain``.
    """

    id: str
    title: str
    score: float
    path: tuple[str, ...] = ()
    why: Explanation | None = None


@dataclass(frozen=True)
class CatalogItem:
    """An item of the catalogue: ``sid`` its semantic ID, ``path`` the names of its codes where they have some.

    ``removed`` items may stand in a history and are never recommended. ``price`` is None where it is not known.
    """

    id: str
    title: str
    categories: tuple[str, ...]
    price: float | None
    sid: tuple[int, ...]
    path: tuple[str, ...] = ()
    removed: bool = False


@dataclass(frozen=True)
class Reply:
    """A message of the assistant: ``text`` has each item as its SID and title, ``items`` are the ids of the items.

    ``ended`` is False where the message was cut at ``max_tokens``.
    """

    text: str
    items: list[str]
    ended: bool
