"""The most frequent items within a request's constraint: the answer where the policy has none, or none in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.inference.answers import Recommendation
from genrec.inference.catalog_view import CatalogView
from genrec.metrics import FloatArray
from genrec.policy.decoding.request_constraints import Constraint


def popular_items(
    view: CatalogView,
    scores_N: FloatArray,
    history: Sequence[int],
    k: int,
    constraint: Constraint | None,
    hidden: Sequence[int] = (),
) -> list[Recommendation]:
    """The ``k`` best items by ``scores_N`` (N,), whose score is their share of the total; inserted items come last.

    Args:
        history: rows of the user's items, for ``Constraint.unseen``.
        hidden: rows that the run does not answer, whatever the constraint: its ``mask_seen``.

    Raises:
        InputError: a constraint on what the catalogue does not have.
    """
    allowed_N = np.ones(len(view.ids), bool)
    if constraint is not None:
        allowed_N = view.attributes.mask(constraint, history).numpy().copy()
    allowed_N[[*view.catalog.removed, *hidden]] = False
    grown_N = np.zeros(len(view.ids))
    grown_N[: len(scores_N)] = scores_N / scores_N.sum()
    rows = np.flatnonzero(allowed_N)
    best = rows[np.argsort(-grown_N[rows], kind="stable")[:k]]
    return [Recommendation(view.ids[row], view.titles[row], float(grown_N[row]), view.path_of(row)) for row in best]
