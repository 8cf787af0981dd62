"""The readers of the data directory: streams and shared lists give what whole tables do, in less memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.data import readers
from genrec.data.files import write_parquet
from genrec.data.readers import (
    count_train_queries,
    read_queries,
    read_query_rows,
    read_sequences,
    read_train_queries,
    stream_sequences,
)
from genrec.data.shared_lists import SharedLists
from genrec.data.tables import QUERIES, QUERY_CONTEXT, SEQUENCES, to_queries
from genrec.errors import InputError

SCHEMA = pa.schema([*QUERIES, *QUERY_CONTEXT])


def query_table(users: int, length: int, history: int, first: int = 0, events: bool = True) -> pa.Table:
    """The train queries of users who meet items of 9, with event types or without."""
    rng = np.random.default_rng(first)
    rows = []
    for user in range(first, first + users):
        items, times = rng.integers(0, 9, length).tolist(), np.sort(rng.integers(0, 99, length)).tolist()
        types = [(None, "click", "buy")[one] for one in rng.integers(0, 3, length)]
        for at in range(1, length):
            before = slice(max(0, at - history), at)
            row = {"id": len(rows) + 100 * first, "user": user, "user_id": f"u{user}", "target": items[at]}
            row |= {"history": items[before], "times": times[before], "time": times[at]}
            rows.append(row | ({"events": types[before], "event": types[at]} if events else {}))
    return pa.Table.from_pylist(rows, SCHEMA)


def write_train(folder: Path, *tables: pa.Table) -> Path:
    for part, table in enumerate(tables):
        write_parquet(table, folder / "queries" / "train" / f"part-{part:05d}.parquet")
    return folder


WORLDS = {
    "with event types": [query_table(7, 12, 4), query_table(5, 9, 4, first=7)],
    "without": [query_table(7, 12, 4, events=False)],
    "with event types in one file alone": [query_table(4, 6, 4), query_table(5, 9, 4, first=7, events=False)],
    "in another order": [query_table(9, 12, 4).take(pa.array(np.random.default_rng(0).permutation(99)))],
    "with gaps": [query_table(9, 12, 4).filter(pa.array(np.random.default_rng(1).random(99) < 0.5))],
    "without rows": [query_table(3, 5, 4), query_table(3, 5, 4).slice(0, 0)],
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("with_context", [False, True])
@pytest.mark.parametrize("rows", [5, 1 << 15])
def test_train_queries_that_share_histories_are_those_of_the_whole_table(
    world: str, with_context: bool, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "STREAM_ROWS", rows)
    data = write_train(tmp_path, *WORLDS[world])
    shared, whole = read_train_queries(data, with_context=with_context), read_queries(data, "train")
    plain = whole if with_context else whole.drop_columns(["events", "times", "event"])
    assert to_queries(shared) == to_queries(plain)
    assert shared["user_id"].to_pylist() == whole["user_id"].to_pylist()
    assert count_train_queries(data) == whole.num_rows
    for kept in (np.arange(0, whole.num_rows, 7), np.arange(5), np.arange(0), np.array([3, whole.num_rows - 1])):
        part = read_train_queries(data, with_context=with_context, rows_R=kept)
        assert to_queries(part) == to_queries(plain.take(kept))
    for rows in (range(whole.num_rows), range(3, 8), range(whole.num_rows - 2, whole.num_rows + 9), range(0)):
        assert read_query_rows(data, "train", rows).equals(whole.slice(rows.start, len(rows)))
    some = pa.array(np.random.default_rng(2).permutation(whole.num_rows)[:6])
    assert to_queries(shared.take(some)) == to_queries(plain.take(some))
    assert to_queries(shared.slice(3, 9)) == to_queries(plain.slice(3, 9))


def test_a_query_that_goes_on_from_the_one_before_adds_one_event_to_what_is_stored(tmp_path: Path) -> None:
    table = query_table(20, 100, 50)
    shared = read_train_queries(write_train(tmp_path, table), with_context=True)
    assert len(shared["history"].chunk(0).values) == table.num_rows
    assert shared.nbytes < table.nbytes / 8


def test_lists_that_only_look_alike_are_stored_whole() -> None:
    lists = SharedLists(pa.schema([("history", pa.list_(pa.int32())), ("times", pa.list_(pa.int64()))]))
    table = pa.table({"history": [[1, 2], [2, 2], [2, 9], [], [9]], "times": [[1, 2], [2, 3], [8, 9], [], [4]]})
    lists.add(table.cast(pa.schema([("history", pa.list_(pa.int32())), ("times", pa.list_(pa.int64()))])))
    found = dict(lists.columns())
    assert {name: column.to_pylist() for name, column in found.items()} == table.to_pydict()
    assert found["times"].values.to_pylist() == [1, 2, 3, 8, 9, 4]


def test_a_stream_of_sequences_is_the_table_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"user": u, "user_id": f"u{u}", "items": [u, 1], "split": [0, 1], "times": [u, 9], "events": ["a", None]}
        for u in range(11)
    ]
    write_parquet(pa.Table.from_pylist(rows, SEQUENCES), tmp_path / "sequences" / "part-00000.parquet")
    monkeypatch.setattr(readers, "STREAM_ROWS", 4)
    names = ["user_id", "items", "events"]
    parts = list(stream_sequences(tmp_path, names))
    assert [part.num_rows for part in parts] == [4, 4, 3]
    whole = read_sequences(tmp_path, names).select(parts[0].column_names)
    assert [row for part in parts for row in part.to_pylist()] == whole.to_pylist()


def test_a_column_that_is_missing_or_of_another_type_is_named(tmp_path: Path) -> None:
    data = write_train(tmp_path, query_table(3, 5, 4).drop_columns(["target"]))
    with pytest.raises(InputError, match=r"queries/train: column 'target' \(int32\) is missing"):
        read_train_queries(data, with_context=False)
    file = tmp_path / "queries" / "train" / "part-00000.parquet"
    table = query_table(3, 5, 4)
    pq.write_table(table.set_column(0, "id", table["id"].cast(pa.string())), file)
    with pytest.raises(InputError, match=r"got column 'id' of type string, wanted int64"):
        read_train_queries(data, with_context=False)
