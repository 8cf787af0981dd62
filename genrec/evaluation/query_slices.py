"""Kinds of test queries, apart from the popularity and the event type of the target: a label for each query."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.data.arrow import pc
from genrec.metrics import FloatArray, IntArray

Labels = NDArray[np.str_]
DAY_S, SESSION_S = 86_400, 1800
"""Seconds; a session ends with half an hour without an event."""

LENGTHS = (1, 2, 5, 10, 20)
"""Where the bins of the history's length begin."""

MOST_CATEGORIES = 8
METRICS = ("hr@10", "ndcg@10")


def query_labels(queries: pa.Table, items: pa.Table) -> dict[str, Labels]:
    """By slice the label (Q,) of each query; slices of one label alone are left out.

    ``history length``: of the last ``data.max_history`` events. ``category`` of the target: at the first level with
    several, the most frequent ones. ``day``: whether the target came on the day (UTC) of the last event. ``repeat``:
    whether the target is in the history. ``session``: whether half an hour or more went by before the target. The last
    three need times, and sessions more than dates.
    """
    targets_Q = queries["target"].to_numpy()
    found = {
        "history length": _lengths(pc.list_value_length(queries["history"]).to_numpy()),
        "category": _categories(items["categories"].to_pylist(), targets_Q),
        "repeat": _repeats(queries["history"], targets_Q),
        **_times(queries),
    }
    return {name: label_Q for name, label_Q in found.items() if len(np.unique(label_Q)) > 1}


def by_label(values: Mapping[str, FloatArray], label_Q: Labels) -> dict[str, dict[str, float]]:
    """Means of the per-query ``values`` (Q,) over the queries of each label, with their number, in order of labels."""
    table: dict[str, dict[str, float]] = {}
    for name in sorted(np.unique(label_Q).tolist(), key=_order):
        inside_Q = label_Q == name
        table[name] = {"queries": int(inside_Q.sum())}
        table[name] |= {metric: float(values[metric][inside_Q].mean()) for metric in METRICS if metric in values}
    return table


def _order(label: str) -> tuple[bool, int, str]:
    """Numbers by size; ``other`` and ``none`` last."""
    digits = label.split(" ")[0].rstrip("+").split("–")[0]
    return label in ("other", "none"), int(digits) if digits.isdecimal() else 0, label


def _lengths(length_Q: IntArray) -> Labels:
    bins_Q = np.searchsorted(LENGTHS, length_Q, side="right") - 1
    ends = [*(after - 1 for after in LENGTHS[1:]), None]
    names = [
        f"{first}+" if last is None else str(first) if first == last else f"{first}–{last}"
        for first, last in zip(LENGTHS, ends, strict=True)
    ]
    return np.array(names)[np.maximum(bins_Q, 0)]


def _categories(paths: list[list[str] | None], targets_Q: IntArray) -> Labels:
    own = [paths[target] or [] for target in targets_Q.tolist()]
    for level in range(max(map(len, own), default=0)):
        label_Q = np.array([path[level] if level < len(path) else "none" for path in own])
        names, counts = np.unique(label_Q, return_counts=True)
        if len(names) > 1:
            kept = names[np.argsort(-counts, kind="stable")[:MOST_CATEGORIES]]
            return np.where(np.isin(label_Q, kept), label_Q, "other")
    return np.full(len(own), "none")


def _repeats(history: pa.ChunkedArray, targets_Q: IntArray) -> Labels:
    parents_E = pc.list_parent_indices(history.combine_chunks()).to_numpy()
    same_E = pc.list_flatten(history).to_numpy() == targets_Q[parents_E]
    return np.where(np.bincount(parents_E[same_E], minlength=len(targets_Q)) > 0, "repeat", "new")


def _times(queries: pa.Table) -> dict[str, Labels]:
    """The slices of time; none where a time is not known."""
    times, time = queries["times"], queries["time"]
    if not len(queries) or times.null_count or time.null_count:
        return {}
    ends_Q = np.cumsum(pc.list_value_length(times).to_numpy())
    last_Q = pc.list_flatten(times).to_numpy()[ends_Q - 1]
    time_Q = time.to_numpy()
    found = {"day": np.where(time_Q // DAY_S == last_Q // DAY_S, "same day", "later")}
    if ((time_Q - last_Q) % DAY_S).any():
        found["session"] = np.where(time_Q - last_Q >= SESSION_S, "first of a session", "within a session")
    return found
