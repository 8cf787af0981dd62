import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.data_worlds import random_log, run_prepare, write_world

from genrec.data.readers import read_items, read_queries
from genrec.data.tables import QUERIES, validate_items, validate_queries
from genrec.errors import InputError

ITEMS = {"item_id": ["x", "y"], "title": ["X", "Y"]}
GOOD = {"user_id": ["a", "a", "a", "a"], "item_id": ["x", "y", "x", "y"], "timestamp": [1, 2, 3, 4]}


def refused(tmp_path, log, match, *overrides, items=None):
    path = write_world(tmp_path / "in", log, items or ITEMS)
    with pytest.raises(InputError, match=match):
        run_prepare(tmp_path / "out", path, *overrides)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"user_id": None}, "no column for 'user_id'.*data.columns.user_id"),
        ({"timestamp": None}, "neither a timestamp .* nor a position"),
        ({"user_id": [1.5] * 4}, "column 'user_id' of type double, wanted a string or an integer for 'user_id'"),
        (
            {"timestamp": ["one"] * 4},
            "column 'timestamp' of type string with values that are not epoch seconds or ISO 8601 .*'one'",
        ),
        ({"timestamp": ["1", "2", "today", "4"]}, "ISO 8601 .3 numbers, such as '1', and 'today'.; correct the column"),
        ({"timestamp": ["1", "2", "2024-01-05", "4"]}, "3 numbers, such as '1', and '2024-01-05'"),
        ({"rating": ["good"] * 4}, "column 'rating' of type string with values that are not numbers .*'good'"),
        ({"user_id": ["a", None, "a", "a"]}, "column 'user_id' has 1 nulls or empty strings in 4 rows"),
        ({"item_id": ["x", "y", None, "y"]}, "column 'item_id' has 1 nulls"),
        ({"item_id": ["x", "y", "q", "q"]}, "2 of 4 interactions name an item that the catalogue lacks, e.g. 'q'"),
        ({"timestamp": [1, 2, -3, 4]}, "negative timestamps .*, e.g. -3"),
        ({"timestamp": [1.0, float("nan"), 3.0, 4.0]}, "1 NaN or infinite timestamps"),
        ({"timestamp": [1, 2, 3, 1_500_000_000_000]}, "from 1 .in s. to 1500000000000 .in ms., wanted one unit"),
        ({"timestamp": [1, 2, None, 4]}, "1 of 4 interactions have no timestamp"),
        ({"position": [0, 1, None, 3]}, "1 of 4 interactions have no position"),
        ({"position": [3, 2, 1, 0]}, "timestamps out of order: 3 events .* user 'a'"),
        ({"split": ["first", "train", "dev", "test"]}, r"unknown split names \['dev'\], wanted some of first, train"),
    ],
)
def test_a_bad_log_is_refused_with_the_column_and_what_was_wanted(tmp_path, change, match):
    log = {name: values for name, values in {**GOOD, **change}.items() if values is not None}
    refused(tmp_path, log, match)


def test_an_empty_table_is_refused(tmp_path):
    empty = {name: pa.array([], pa.string()) for name in ("user_id", "item_id")}
    refused(tmp_path, {**empty, "timestamp": pa.array([], pa.int64())}, "the table is empty")
    refused(tmp_path, GOOD, "the table is empty", items={"item_id": pa.array([], pa.string())})


def test_ids_that_occur_twice_are_refused(tmp_path):
    refused(tmp_path, GOOD, "1 values of 'id' occur more than once, e.g. 'x'", items={"id": ["x", "y", "x"]})
    refused(tmp_path, GOOD, "column 'id' has 1 nulls", items={"id": ["x", "y", None]})


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.path not found"):
        run_prepare(tmp_path / "out", tmp_path / "nowhere")
    path = write_world(tmp_path / "in", GOOD, ITEMS)
    with pytest.raises(InputError, match=r"not found: .*other.parquet.*set data.items"):
        run_prepare(tmp_path / "out", path, "data.items=other.parquet")
    with pytest.raises(InputError, match=r"data\.path=.*items\.parquet is a file; wanted its directory"):
        run_prepare(tmp_path / "out", path / "items.parquet")
    (path / "items.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        run_prepare(tmp_path / "out", path)


def test_renames_are_checked(tmp_path):
    refused(tmp_path, GOOD, "no column 'when'", "data.columns.timestamp=when")
    refused(tmp_path, GOOD, "data.columns.cost: no such canonical column", "data.columns.cost=price")
    for name, file in (("item_id", "interactions"), ("id", "items")):
        refused(tmp_path, GOOD, rf"{file}\.parquet: no column 'nope' .data.columns.{name}", f"data.columns.{name}=nope")


def test_a_key_that_the_source_does_not_read_is_refused(tmp_path):
    match = r"data.columns: data.source=movielens does not read it \(parquet, recbole would\); leave it out"
    refused(tmp_path, GOOD, match, "data.source=movielens", "data.columns.item_id=movieId")
    refused(tmp_path, GOOD, "data.time_unit: data.source=amazon", "data.source=amazon", "data.time_unit=ms")
    refused(tmp_path, GOOD, "data.departments: data.source=parquet", "data.departments=[GROCERY]")


def test_filters_of_time_need_the_time_of_every_interaction(tmp_path):
    places = {"user_id": ["a"] * 4, "item_id": ["x", "y"] * 2, "position": [0, 1, 2, 3]}
    refused(tmp_path, places, r"4 of 4 .* no timestamp; data.filters.start", "data.filters.start=2020-01-01")


def test_a_split_that_the_log_cannot_give_is_refused(tmp_path):
    refused(tmp_path, GOOD, "needs a 'split' column", "data.split=given")
    backwards = {**GOOD, "split": ["first", "test", "valid", "train"]}
    refused(tmp_path, backwards, "2 events out of order", "data.split=given")
    places = {"user_id": ["a"] * 4, "item_id": ["x"] * 4, "position": [0, 1, 2, 3]}
    refused(tmp_path, places, "chronological needs all of them", "data.split=chronological")
    refused(tmp_path, GOOD, "leaves no train queries", "data.filters.last_per_user=3")


def test_filters_that_leave_nothing_say_what_each_one_left(tmp_path):
    path = write_world(tmp_path / "in", random_log())
    with pytest.raises(InputError, match=r"600 in the log → .* 0 after item_users .* loosen data.filters"):
        run_prepare(tmp_path / "out", path, "data.filters.item_users=1000")
    with pytest.raises(InputError, match=r"600 after item_users → .* 0 after user_core=500"):
        run_prepare(tmp_path / "out", path, "data.filters.user_core=500")
    with pytest.raises(InputError, match="0 inside start … end"):
        run_prepare(tmp_path / "out", path, "data.filters.start=2030-01-01")


def test_a_reordered_item_file_is_refused_by_its_readers(tmp_path):
    out = run_prepare(tmp_path / "out", write_world(tmp_path / "in", random_log()))
    items = read_items(out)
    with pytest.raises(InputError, match="must count 0, 1, 2"):
        validate_items(items.slice(1))
    with pytest.raises(InputError, match=r"column 'brand' .* is missing"):
        validate_items(items.drop_columns(["brand"]))
    pq.write_table(items.set_column(1, "id", pa.array(range(items.num_rows))), out / "items.parquet")
    with pytest.raises(InputError, match="column 'id' of type int64, wanted string"):
        read_items(out)
    with pytest.raises(InputError, match=r"run workflows.prepare first"):
        read_queries(tmp_path, "test")


def test_queries_that_do_not_fit_the_catalogue_are_refused():
    row = {"id": 0, "user": 0, "user_id": "a", "history": [1, 2], "target": 3, "time": None, "event": None}
    table = pa.Table.from_pylist([row], QUERIES)
    validate_queries(table, 4, 2)
    with pytest.raises(InputError, match="column 'target'"):
        validate_queries(table, 3, 2)
    with pytest.raises(InputError, match="wanted 1 to 1 items"):
        validate_queries(table, 4, 1)
    with pytest.raises(InputError, match="ids occur twice"):
        validate_queries(pa.Table.from_pylist([row, row], QUERIES), 4, 2)
