"""Reads a ``RewardContext`` from the outputs of ``prepare`` and ``embed``.

Apart from ``context``, which every term imports, because ItemKNN and the readers are heavy imports.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from genrec.baselines.buckets import BUCKETS, popularity_bucket
from genrec.baselines.itemknn import ItemKNN, cross_fitted
from genrec.baselines.train_log import read_train_log
from genrec.config import RewardSettings
from genrec.data.item_values import item_values
from genrec.data.readers import read_items, read_queries, read_sequences
from genrec.data.train_counts import read_train_counts
from genrec.errors import InputError
from genrec.learning.rewards import FutureItems, RewardContext
from genrec.sid.vectors import VectorFiles, unit_rows

LOG = logging.getLogger(__name__)

CATEGORIES = {"diversity", "category_count", "categories"}
"""Terms that pay for the categories of items."""

FUTURE = {"future", "event", "unwanted_repeat", "dcg"}
"""Terms that look up what the user did next."""

HITS = {"hit", "rank_log", "rank_linear", "ndcg_rank"}
"""Terms that do so where the ground truth is more than the target."""

FUTURE_COLUMNS = ("id", "user", "target", "event")
"""Columns of the train queries that ``FutureItems`` reads."""

FOLDS = 5
"""Folds of users: the ItemKNN of a fold is fitted on the other four."""


def read_reward_context(
    data: Path, codes_NL: Tensor, terms: Collection[str], settings: RewardSettings, vectors: Path | None = None
) -> RewardContext:
    """The context that ``terms`` need, from train rows and the catalogue alone; warns of a term that it leaves idle.

    Args:
        data: the output of ``prepare``.
        codes_NL: SIDs of the items.
        terms: names of the active terms, of lists too.
        vectors: the output of ``embed``, for ``semantic`` and ``distance``.

    Raises:
        InputError: ``event`` or ``dcg`` where no event type of the train log has a value, ``semantic`` or ``distance``
            without vectors, vectors of another catalogue, or a ``value_column`` that does not fit (``item_values``).
    """
    items = read_items(data)
    counts_N = read_train_counts(data, items.num_rows).events_N
    needs_future = bool(FUTURE & set(terms)) or (settings.ground_truth == "future" and bool(HITS & set(terms)))
    bucket_N = torch.from_numpy(popularity_bucket(counts_N))
    categories = [path[-1] if path else "" for path in items["categories"].to_pylist()]
    if (idle := sorted(CATEGORIES & set(terms))) and not any(categories):
        LOG.warning("no item has a category, so nothing is paid by the rewards: %s", ", ".join(idle))
    return RewardContext(
        codes_NL,
        categories,
        settings,
        counts_N=torch.from_numpy(counts_N),
        future_items=_future_items(read_queries(data, "train", FUTURE_COLUMNS), terms, settings)
        if needs_future
        else None,
        vectors_ND=_vectors(vectors, items.num_rows) if {"semantic", "distance"} & set(terms) else None,
        neighbours=_neighbours(data, items.num_rows) if "collaborative" in terms else None,
        buckets={name: bucket_N == number for number, name in enumerate(BUCKETS)},
        value_N=torch.from_numpy(item_values(items, settings.value_column)).float() if settings.value_column else None,
    )


class Neighbours:
    """Collaborative scores of candidates: ItemKNN's similarity sum s_i / max_j s_j.

    A user's candidates are scored by what *other* users did (cross-fitting): an ItemKNN that had counted the step from
    the query's own history to its target would reveal the target, as ``hit`` does.

    Args:
        folds: number f was fitted without the users whose number is f modulo the number of folds.
    """

    def __init__(self, folds: Sequence[ItemKNN]) -> None:
        self._folds = folds

    def __call__(self, user: int, history: Sequence[int], items_G: Tensor) -> Tensor:
        """Scores (G,) in [0, 1]; 0 for items that are no neighbour of the history's."""
        recent_1H = np.array(history, dtype=np.int64)[None, ::-1]
        scores_N = self._folds[user % len(self._folds)].scores(recent_1H).toarray()[0]
        best = float(scores_N.max())
        return torch.from_numpy(scores_N[items_G.clamp(min=0).numpy()] / (best if best > 0 else 1.0)).float()


def _neighbours(data: Path, items: int) -> Neighbours:
    fold_U = read_sequences(data, ["user"])["user"].to_numpy() % FOLDS
    return Neighbours(cross_fitted(read_train_log(data, items), fold_U, FOLDS))


def _future_items(queries: pa.Table, terms: Collection[str], settings: RewardSettings) -> FutureItems:
    future_items = FutureItems(queries)
    types = future_items.event_types
    if {"event", "dcg"} & set(terms) and not any(settings.events.get(type_, settings.other_events) for type_ in types):
        raise InputError(
            f"rewards.event and rewards.lists.dcg: the train log's event types are {sorted(types)}, which all have the "
            "value 0 in rewards.settings.events and other_events; give a value to a type that occurs"
        )
    if "unwanted_repeat" in terms and not types & set(settings.purchases):
        LOG.warning(
            "the train log's event types are %s, and none of them is among rewards.settings.purchases %s, so for "
            "rewards.unwanted_repeat every repeat is unwanted, a target too",
            sorted(types),
            list(settings.purchases),
        )
    return future_items


def _vectors(vectors: Path | None, items: int) -> Tensor:
    if vectors is None:
        raise InputError(
            "rewards.semantic and rewards.lists.distance want item vectors, got none; run `python -m workflows.embed`"
        )
    found = VectorFiles(vectors)
    found.require(items)
    return torch.from_numpy(unit_rows(found.read()).copy())
