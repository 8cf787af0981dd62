"""What a shop may want of its lists beside hits: purchases, value, categories, new items; per query.

Of the first ten items of each query's ranking:

    value@10 = value(event type of the target) · worth(target) if the target is among them, else 0
    categories@10 = number of distinct categories
    category_entropy@10 = -Σ_c p_c log2 p_c of their shares p
    new_items@10 = share of items with at most ``rare`` train events
    ndcg@10/<type> = NDCG@10 where the target's event has this type, NaN elsewhere
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa

from genrec.baselines.buckets import BUCKETS, popularity_bucket
from genrec.config import RewardSettings
from genrec.data.item_values import item_values
from genrec.evaluation.intervals import paired
from genrec.evaluation.slices import category_numbers
from genrec.evaluation.spread import category_entropy
from genrec.metrics import FloatArray, IntArray, per_query, target_ranks

FIRST = 10
"""Items of a ranking that count."""
UNKNOWN = "unknown"
"""The type of an event for which the log has none."""


class Goals:
    """The metrics of this module for one catalogue.

    Args:
        items: the item table; its categories, and the column that ``settings`` name, are read.
        train_counts_N: train events of each item.
        settings: values of event types, what is new.

    Raises:
        InputError: the column of values is missing, or has values that are negative or unknown.
    """

    def __init__(self, items: pa.Table, train_counts_N: IntArray, settings: RewardSettings) -> None:
        self._settings, self._category_N = settings, category_numbers(items)
        self._is_new_N = train_counts_N <= settings.rare
        self._is_tail_N = popularity_bucket(train_counts_N) >= BUCKETS.index("tail")
        self._value_N = item_values(items, settings.value_column)

    def names(self, events: Sequence[str | None]) -> list[str]:
        """The metrics of queries with these event types of their targets."""
        categories = ["categories@10", "category_entropy@10"] if (self._category_N >= 0).any() else []
        return ["value@10", *categories, "new_items@10", *(f"ndcg@10/{name}" for name in _types(events))]

    def values(
        self, ranked_QK: IntArray, targets_Q: IntArray, events: Sequence[str | None] = ()
    ) -> dict[str, FloatArray]:
        """Every metric per query, (Q,), for rankings (Q, K), padded with -1.

        Args:
            events: the event type of each target, or none at all.
        """
        top_QK, ndcg_Q = ranked_QK[:, :FIRST], self._ndcg(ranked_QK, targets_Q)
        types = [name or UNKNOWN for name in events] or [UNKNOWN] * len(targets_Q)
        values = self._settings.events
        value_Q = np.array([values.get(name, self._settings.other_events) for name in types]) * self._value_N[targets_Q]
        found: dict[str, FloatArray] = {"value@10": value_Q * (ndcg_Q > 0)}
        if (self._category_N >= 0).any():
            entropy_Q, count_Q = category_entropy(top_QK, self._category_N)
            found |= {"category_entropy@10": entropy_Q, "categories@10": count_Q.astype(float)}
        real_QK = top_QK >= 0
        new_QK = self._is_new_N[np.maximum(top_QK, 0)] & real_QK
        found["new_items@10"] = new_QK.sum(1) / np.maximum(real_QK.sum(1), 1)
        of_type = {name: np.array([one == name for one in types]) for name in _types(events)}
        return found | {f"ndcg@10/{name}": np.where(of_Q, ndcg_Q, np.nan) for name, of_Q in of_type.items()}

    def all_values(
        self, ranked_QK: IntArray, targets_Q: IntArray, events: Sequence[str | None] = ()
    ) -> dict[str, FloatArray]:
        """``values`` after the accuracy: NDCG@10, HR@10, HR@50, and HR@50 of tail and unseen targets.

        In place of HR@50, rankings of fewer items have HR@K of all their K, unless the catalogue has no more.
        """
        found, items = ranked_QK.shape[1], len(self._is_new_N)
        most = 50 if found >= min(50, items) else found
        deep = f"hr@{most}"
        hits = per_query(target_ranks(ranked_QK, targets_Q), (FIRST, most))
        accuracy = {name: hits[name] for name in ("ndcg@10", "hr@10", deep)}
        if self._is_tail_N[targets_Q].any():
            accuracy[f"tail_{deep}"] = np.where(self._is_tail_N[targets_Q], hits[deep], np.nan)
        return accuracy | self.values(ranked_QK, targets_Q, events)

    def _ndcg(self, ranked_QK: IntArray, targets_Q: IntArray) -> FloatArray:
        return per_query(target_ranks(ranked_QK, targets_Q), (FIRST,))[f"ndcg@{FIRST}"]


def _types(events: Sequence[str | None]) -> list[str]:
    """The event types that occur, by name; none where all are unknown."""
    known = {name for name in events if name}
    return sorted(known | ({UNKNOWN} if None in events else set())) if known else []


def covered_means(values: Mapping[str, FloatArray]) -> dict[str, float]:
    """The mean of each metric (Q,) over the queries that it covers; metrics that cover none are left out."""
    return {name: float(np.nanmean(one_Q)) for name, one_Q in values.items() if np.isfinite(one_Q).any()}


class Trade(TypedDict):
    """A metric before and after: their means, the change, its 95% interval (None without one), and relative change.

    ``relative``: 0 where the metric was 0 before, and there is nothing to divide by.
    """

    sft: float
    rl: float
    difference: float
    low: float | None
    high: float | None
    relative: float


def compare_goals(
    rl: Mapping[str, FloatArray], sft: Mapping[str, FloatArray], resamples: int, seed: int
) -> dict[str, Trade]:
    """What each metric (Q,) was and became, with a paired bootstrap over the queries that it covers."""
    found: dict[str, Trade] = {}
    for name, after_Q in rl.items():
        covered_Q = np.isfinite(after_Q) & np.isfinite(sft[name])
        if not covered_Q.any():
            continue
        own, base = {name: after_Q[covered_Q]}, {name: sft[name][covered_Q]}
        after, before = float(own[name].mean()), float(base[name].mean())
        span = paired(own, base, resamples, seed).get(name)
        low, high = (span["low"], span["high"]) if span else (None, None)
        relative = after / before - 1 if before else 0.0
        found[name] = Trade(sft=before, rl=after, difference=after - before, low=low, high=high, relative=relative)
    return found
