"""Checks that no answer leaks: into a history, into another split, or into counts of the train log.

Queries are compared with the sequences that they were made from. As ``prepare`` writes them, a query's id is the number
of its target event over all sequences in file order. Q queries, E events, N items.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.data.arrow import pc
from genrec.data.tables import SPLIT_CODES, Split

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def wrong_queries(sequences: pa.Table, queries: pa.Table, split: Split, first_event: int = 0) -> Bools:
    """Which queries (Q,) are not what their user's sequence says: target, split, and the items right before it.

    Args:
        sequences: schema ``SEQUENCES``; queries: schema ``QUERIES``; split: the one that the queries are used for.
        first_event: the number of the first event of ``sequences``.
    """
    item_E, split_E = _flat(sequences, "items"), _flat(sequences, "split")
    start_E = np.repeat(_starts(sequences), _lengths(sequences, "items"))
    event_Q, length_Q = _events(queries, first_event), _lengths(queries, "history")
    inside_Q = (event_Q >= 0) & (event_Q < len(item_E))
    at_Q = np.where(inside_Q, event_Q, 0)
    right_Q = inside_Q & (split_E[at_Q] == SPLIT_CODES[split]) & (item_E[at_Q] == queries["target"].to_numpy())
    right_Q &= (length_Q > 0) & (at_Q - length_Q >= start_E[at_Q])
    begin_Q = np.cumsum(length_Q) - length_Q
    place_H = np.arange(length_Q.sum()) - np.repeat(begin_Q + length_Q - at_Q, length_Q)
    same_H = item_E[np.clip(place_H, 0, len(item_E) - 1)] == _flat(queries, "history")
    right_Q[np.repeat(np.arange(len(length_Q)), length_Q)[~same_H]] = False
    return ~right_Q


def copied_targets(sequences: pa.Table, queries: pa.Table, first_event: int = 0) -> Bools:
    """Which queries (Q,) have a target whose event, of the same item and time, stands earlier in the sequence, too.

    This is what a log that was read twice looks like: the answer is the last item of the history.
    """
    user_E = np.repeat(np.arange(sequences.num_rows), _lengths(sequences, "items"))
    events = {"user": user_E, "item": _flat(sequences, "items"), "time": _flat(sequences, "times")}
    table = pa.table({**events, "event": np.arange(len(user_E))})
    first = table.group_by(list(events)).aggregate([("event", "min")])["event_min"]
    return ~np.isin(_events(queries, first_event), first.to_numpy())


def excess_counts(counts_N: Ints, sequences: pa.Table, *, with_first: bool) -> Ints:
    """By how much the counts (N,) of what a model learned from are above the train targets of each item, (N,).

    More than 0 is a leak. ``with_first``: a user's first event, before the train targets, is allowed, too.
    """
    user_E, split_E = np.repeat(np.arange(sequences.num_rows), _lengths(sequences, "items")), _flat(sequences, "split")
    allowed_E = split_E == SPLIT_CODES["train"]
    if with_first:
        allowed_E |= (split_E == SPLIT_CODES["first"]) & np.isin(user_E, user_E[allowed_E])
    allowed_N = np.bincount(_flat(sequences, "items")[allowed_E], minlength=len(counts_N))
    return np.maximum(counts_N - allowed_N, 0)


def _events(queries: pa.Table, first_event: int) -> Ints:
    return queries["id"].to_numpy() - first_event


def _flat(table: pa.Table, column: str) -> Ints:
    return pc.list_flatten(table[column]).to_numpy().astype(np.int64)


def _lengths(table: pa.Table, column: str) -> Ints:
    return pc.list_value_length(table[column]).to_numpy().astype(np.int64)


def _starts(sequences: pa.Table) -> Ints:
    lengths = _lengths(sequences, "items")
    return np.cumsum(lengths) - lengths
