"""A data directory without some of its items, and the queries for them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.data_worlds import run_prepare
from support.synthetic import chain_shop

from genrec.data.holdout import hold_out, pick_items
from genrec.data.readers import read_items, read_queries, read_sequences
from genrec.data.tables import validate_queries
from genrec.errors import InputError

HISTORY = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = chain_shop(tmp_path_factory.mktemp("shop"))
    return run_prepare(tmp_path_factory.mktemp("data"), shop, f"data.max_history={HISTORY}", "data.shards=2")


def test_held_out_items_leave_no_trace_in_the_data_and_are_targets_of_queries(data: Path, tmp_path: Path) -> None:
    held = np.array([3, 7])
    hold_out(data, held, tmp_path)
    old, new = read_items(data)["id"].to_pylist(), read_items(tmp_path / "data")["id"].to_pylist()
    order = [*new, *pq.read_table(tmp_path / "held.parquet")["id"].to_pylist()]
    assert new == [name for row, name in enumerate(old) if row not in held] and order[22:] == ["i3", "i7"]
    for split in ("train", "valid", "test"):
        validate_queries(read_queries(tmp_path / "data", split), 22, HISTORY)
    before, after = (
        {row["id"]: row for row in read_queries(directory, "test").to_pylist()}
        for directory in (data, tmp_path / "asked")
    )
    assert {order[row["target"]] for row in after.values()} > {"i3", "i7"}
    for name, row in after.items():
        assert order[row["target"]] == old[before[name]["target"]]
        left = [old[item] for item in before[name]["history"] if item not in held]
        assert [order[item] for item in row["history"]] == left
    events = read_sequences(tmp_path / "data").to_pylist()
    for reduced, whole in zip(events, read_sequences(data).to_pylist(), strict=True):
        kept = [place for place, item in enumerate(whole["items"]) if item not in held]
        assert [order[item] for item in reduced["items"]] == [old[whole["items"][place]] for place in kept]
        for column in ("split", "times"):
            assert reduced[column] == [whole[column][place] for place in kept]


def test_targets_of_queries_are_held_out_first(data: Path) -> None:
    queries = read_queries(data, "test")
    targets = set(queries["target"].to_pylist())
    few, many = (set(pick_items(queries, 24, count, 0).tolist()) for count in (4, 12))
    assert few <= targets and len(few) == 4 and len(many) == 12
    assert set(pick_items(queries.slice(0, 1), 24, 3, 0).tolist()) > set(queries["target"].to_pylist()[:1])
    with pytest.raises(InputError, match="half at most"):
        pick_items(queries, 24, 13, 0)
