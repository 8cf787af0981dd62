"""Types, values and times of events survive ``prepare``, and all that is made of its tables."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.data_worlds import run_prepare, write_world

from genrec.data.columns import LOG as LOG_SCHEMA
from genrec.data.holdout import hold_out
from genrec.data.new_events import append_events
from genrec.data.readers import read_items, read_queries, read_sequences
from genrec.data.refit import write_refit_data
from genrec.data.tables import SEQUENCES, contexts, to_queries
from genrec.data.train_counts import read_train_counts
from genrec.types import NO_CONTEXT, HistoryContext

LOG = {
    "user_id": ["u"] * 6 + ["v"] * 4,
    "item_id": ["a", "b", "c", "b", "d", "a", "c", "d", "a", "b"],
    "timestamp": [10, 10, 10, 25, 25, 90, 5, 6, 6, 7],
    "event": ["view", "cart", "buy", "buy", None, "view", "view", "view", "cart", "buy"],
    "value": [1.0, 2.0, None, 2.5, 4.0, 1.0, 3.0, 4.0, 1.0, 2.0],
}
"""The six events of user u, three of them within a second, and the four of v."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return run_prepare(tmp_path / "data", write_world(tmp_path / "in", LOG), "data.shards=2", "data.max_history=3")


def by_user(directory: Path) -> dict[str, dict[str, list[object]]]:
    return {row["user_id"]: row for row in read_sequences(directory).to_pylist()}


def test_sequences_have_type_and_value_of_each_event_and_rows_break_ties_within_a_second(data: Path) -> None:
    ids, sequence = read_items(data)["id"].to_pylist(), by_user(data)["u"]
    assert [ids[item] for item in sequence["items"]] == LOG["item_id"][:6]
    assert sequence["events"] == LOG["event"][:6]
    assert sequence["values"] == LOG["value"][:6]
    assert sequence["times"] == LOG["timestamp"][:6]


def test_queries_have_those_of_their_history_and_of_their_target(data: Path) -> None:
    test = {row["user_id"]: row for row in read_queries(data, "test").to_pylist()}["u"]
    assert (test["events"], test["times"], test["values"]) == (["buy", "buy", None], [10, 25, 25], [None, 2.5, 4.0])
    assert (test["event"], test["value"]) == ("view", 1.0)
    queries = {query.id: query for query in to_queries(read_queries(data, "test"))}
    assert queries[test["id"]].context == HistoryContext(("buy", "buy", None), (10, 25, 25), "view")
    assert read_train_counts(data, 4).most_frequent_type == "buy"


def test_a_log_without_types_has_none_in_its_tables(tmp_path: Path) -> None:
    plain = {name: LOG[name] for name in ("user_id", "item_id", "timestamp")}
    out = run_prepare(tmp_path / "data", write_world(tmp_path / "in", plain), "data.max_history=3")
    queries = read_queries(out, "train")
    assert queries["events"].null_count == queries["values"].null_count == queries.num_rows
    assert read_train_counts(out, 4).most_frequent_type is None
    assert all(not one.events and one.times and one.wanted is None for one in contexts(queries))
    assert contexts(queries.select(["id", "history"])) == [NO_CONTEXT] * queries.num_rows


def test_held_out_items_leave_with_their_events(data: Path, tmp_path: Path) -> None:
    ids = read_items(data)["id"].to_pylist()
    hold_out(data, np.array([ids.index("b")]), tmp_path / "out")
    kept = by_user(tmp_path / "out" / "data")
    assert kept["u"]["events"] == ["view", "buy", None, "view"] and kept["v"]["values"] == [3.0, 4.0, 1.0]
    asked = {row["user_id"]: row for row in read_queries(tmp_path / "out" / "asked", "test").to_pylist()}
    assert (asked["u"]["events"], asked["u"]["times"]) == (["buy", None], [10, 25])
    assert all(len(row["events"]) == len(row["history"]) == len(row["values"]) for row in asked.values())


def test_the_tables_of_a_refit_keep_them(data: Path, tmp_path: Path) -> None:
    write_refit_data(data, tmp_path / "refit")
    for name in ("items", "events", "values", "times"):
        assert by_user(tmp_path / "refit")["u"][name] == by_user(data)["u"][name]
    before = [*to_queries(read_queries(data, "train")), *to_queries(read_queries(data, "valid"))]
    assert to_queries(read_queries(tmp_path / "refit", "train")) == before


def test_an_update_keeps_another_type_of_event_on_the_same_item_at_the_same_time():
    day = 86400
    row = {"user": 0, "user_id": "a", "items": [0, 1], "split": [0, 1], "times": [day, 2 * day]}
    sequences = pa.Table.from_pylist([{**row, "events": ["view", "view"], "values": None}], SEQUENCES)
    rows = [("x", "view"), ("y", "view"), ("y", "purchase"), ("x", "purchase")]
    log = pa.Table.from_pylist(
        [{"user_id": "a", "item_id": i, "timestamp": 3 * day, "event": e} for i, e in rows], LOG_SCHEMA
    )
    options = {"max_history": 5, "first_query": 10, "held_out": 0.2, "seed": 0}
    more = append_events(sequences, log, {"x": 0, "y": 1}, **options)
    assert more.counts["new"] == 4
    assert sorted(more.sequences.to_pylist()[0]["events"]) == ["purchase"] * 2 + ["view"] * 4
