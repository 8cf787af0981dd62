"""A request's body as the question that it is: ids of the catalogue, and what was left out or capped on the way."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.serve.messages import ConstraintBody, RecommendBody, UserBody
from cluster.serve.user_log import UserLog
from genrec.config import Serve
from genrec.errors import InputError
from genrec.inference.catalog_view import CatalogView
from genrec.inference.request import Diversity, RecommendRequest
from genrec.policy.decoding.request_constraints import Constraint


@dataclass(frozen=True)
class KnownHistory:
    """The items of a history that the catalogue has, oldest first, with their events and times; and the others."""

    ids: tuple[str, ...]
    events: tuple[str | None, ...]
    times: tuple[int, ...]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A request that can be searched for; ``unknown`` and ``notes`` go into its answer."""

    request: RecommendRequest
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def read_question(body: RecommendBody, view: CatalogView, log: UserLog) -> Question:
    """The question of a body, on the catalogue of ``view``.

    Raises:
        InputError: an unknown user without a history, or events or times that are not one for each item.
    """
    known, notes = read_history(body, view, log), list[str]()
    if known.unknown:
        notes.append(f"{len(known.unknown)} items of the history are not in the catalogue, and were left out")
    if not known.ids:
        notes.append("the history has no item of the catalogue: the most frequent items are answered")
    items = len(view.ids) - len(view.removed)
    if body.k > items:
        notes.append(f"k={body.k} is above the catalogue's {items} items")
    diversity = None if body.diversity is None else Diversity(body.diversity.kind, body.diversity.weight)
    constraint = read_constraint(body.constraint)
    request = RecommendRequest(
        known.ids, body.k, constraint, body.event, known.events, known.times, diversity, body.explain, body.prior
    )
    return Question(request, known.unknown, tuple(notes))


def read_history(body: UserBody, view: CatalogView, log: UserLog) -> KnownHistory:
    """The history of a body, or of its user in the log.

    Raises:
        InputError: as ``read_question``.
    """
    for name, given in (("history_events", body.history_events), ("history_times", body.history_times)):
        if given and len(given) != len(body.history):
            raise InputError(f"{name}: got {len(given)} entries; wanted one per item of the history, or none")
    if not body.history and body.user is not None:
        own = log.history(body.user)
        return KnownHistory(tuple(view.ids[row] for row in own.rows), tuple(own.events), tuple(own.times))
    if all(item in view.rows for item in body.history):
        return KnownHistory(tuple(body.history), tuple(body.history_events), tuple(body.history_times))
    kept = [place for place, item in enumerate(body.history) if item in view.rows]
    unknown = dict.fromkeys(item for item in body.history if item not in view.rows)
    return KnownHistory(
        tuple(body.history[place] for place in kept),
        tuple(body.history_events[place] for place in kept) if body.history_events else (),
        tuple(body.history_times[place] for place in kept) if body.history_times else (),
        tuple(unknown),
    )


def read_constraint(body: ConstraintBody | None) -> Constraint | None:
    """The constraint of a body; InputError for a price range that is reversed."""
    return None if body is None else Constraint(body.allow, body.deny, body.category, body.price, unseen=body.unseen)


def refuse_above_limits(body: UserBody, limits: Serve) -> None:
    """Refuse a body that asks for more than the service's limits.

    Raises:
        InputError: ``k`` or a history above ``serve.max_k`` or ``serve.max_history``.
    """
    if isinstance(body, RecommendBody) and body.k > limits.max_k:
        raise InputError(f"k: got {body.k}; wanted at most {limits.max_k} (serve.max_k)")
    if len(body.history) > limits.max_history:
        raise InputError(
            f"history: got {len(body.history)} items; wanted at most {limits.max_history} (serve.max_history), the "
            "newest ones"
        )
