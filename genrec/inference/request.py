"""What a recommender is asked for, and the same in rows of the catalogue, checked."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from torch import Tensor

from genrec.errors import InputError
from genrec.inference.catalog_view import CatalogView
from genrec.inference.request_context import request_context, whole_number
from genrec.inference.run_record import RunRecord
from genrec.policy.decoding.request_constraints import Constraint
from genrec.policy.decoding.request_ids import item_ids
from genrec.types import HistoryContext

DiversityKind = Literal["vectors", "categories", "calibrated", "beams"]


@dataclass(frozen=True)
class Diversity:
    """How much a list gives up in probability for items that differ from each other; see ``inference.diversity``.

    ``Diversity("categories", 0.3)``: a little less probable, of more categories.

    Raises:
        InputError: an unknown kind, or a weight outside [0, 1].
    """

    kind: DiversityKind
    """``vectors``, ``categories``: maximal marginal relevance, with the cosine of the items' vectors or the overlap of
    their categories as similarity; ``calibrated``: the history's shares of categories; ``beams``: diverse beam search.
    """
    weight: float = 0.5
    """0 leaves the list as it is; 1 looks at diversity alone."""

    def __post_init__(self) -> None:
        if not isinstance(cast("object", self.kind), str) or self.kind not in get_args(DiversityKind):
            kinds = " | ".join(get_args(DiversityKind))
            raise InputError(f"diversity: got the kind {reprlib.repr(self.kind)}; wanted {kinds}")
        weight = cast("object", self.weight)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise InputError(f"diversity: got the weight {reprlib.repr(weight)}; wanted a number in 0..1")


@dataclass(frozen=True)
class RecommendRequest:
    """One question to a recommender; the fields are those of ``Recommender.recommend``.

    Raises:
        InputError: a field of another type, or ``k`` below 1.
    """

    history: Iterable[str]
    """Item ids, oldest first; kept as a tuple."""
    k: int = 10
    constraint: Constraint | None = None
    event: str | None = None
    history_events: Sequence[str | None] = ()
    history_times: Sequence[int] = ()
    diversity: Diversity | None = None
    explain: bool = False
    """Whether each answer says which prefixes held its probability and which items of the history are like it."""
    prior: bool = True
    """False: without the run's ItemKNN, the policy alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "history", item_ids(self.history, "history"))
        object.__setattr__(self, "k", whole_number(self.k, "k"))
        for name, wanted in (("constraint", Constraint), ("diversity", Diversity)):
            if not isinstance(value := getattr(self, name), wanted | None):
                raise InputError(f"{name}: got {type(value).__name__}; wanted genrec.{wanted.__name__} or None")

    @property
    def ids(self) -> tuple[str, ...]:
        """The history as the tuple that it is kept as."""
        return cast("tuple[str, ...]", self.history)


@dataclass(frozen=True)
class RowRequest:
    """A checked request in rows of one catalogue.

    ``rows``: the items of the history that count, oldest first; ``allowed_N``: the items that the constraint allows,
    None where there is none; ``width``: beams of its search, those of seen items included.
    """

    rows: list[int]
    context: HistoryContext
    k: int
    width: int
    allowed_N: Tensor | None
    diversity: Diversity | None
    explain: bool
    prior: bool

    @property
    def spread(self) -> float:
        """How far the beams of its search are driven apart, 0 for not at all."""
        return self.diversity.weight if self.diversity is not None and self.diversity.kind == "beams" else 0.0


POOL = 4
"""A diverse list of k items is chosen from the 4·k most probable ones."""

BEAM_GROUPS = 4
"""Groups of a diverse beam search."""


def in_rows(request: RecommendRequest, view: CatalogView, run: RunRecord) -> RowRequest:
    """The request in rows of ``view``.

    Raises:
        InputError: an empty history, an item that is not in the catalogue, k below 1, a constraint on an id, category
            or price that the catalogue does not have, or events or times that are not one for each item.
    """
    seen = known_rows(request.ids, view, request.k)
    constraint, diversity = request.constraint, request.diversity
    allowed_N = None if constraint is None else view.attributes.mask(constraint, seen)
    rows = seen[-run.config.data.max_history :]
    context = request_context(len(seen), run.event, request.event, request.history_events, request.history_times)
    if diversity is not None:
        view.require(diversity.kind)
    most, masked = min(request.k, len(view.ids)), len(rows) if run.mask_seen else 0
    width = _width(most, diversity, len(view.ids), masked, run.config.decode.width)
    return RowRequest(
        rows, context.last(len(rows)), most, width, allowed_N, diversity, bool(request.explain), bool(request.prior)
    )


def _width(k: int, diversity: Diversity | None, items: int, masked: int, usual: int) -> int:
    """The beams of a search for ``k`` items: more to choose from for a diverse list, no more for diverse beams."""
    if diversity is None:
        return max(k + masked, usual)
    if diversity.kind == "beams" and diversity.weight:
        return -(-(k + masked) // BEAM_GROUPS) * BEAM_GROUPS
    return max(min(POOL * k, items) + masked, usual)


def known_rows(ids: Sequence[str], view: CatalogView, k: int = 1) -> list[int]:
    """The rows of a history of ``ids``; InputError for an empty one, unknown ids, or ``k`` below 1."""
    unknown = [item for item in ids if item not in view.rows]
    if unknown or not ids or k < 1:
        raise InputError(
            f"got k={k} and a history of {len(ids)} items, {len(unknown)} of them unknown "
            f"({reprlib.repr(unknown[:3])}); wanted k >= 1 and at least one item, all from the catalogue"
        )
    return [view.rows[item] for item in ids]
