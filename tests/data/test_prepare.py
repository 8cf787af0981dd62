import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.data_worlds import config_for, histories, random_log, run_prepare, samples, write_world
from support.pipeline import made

from cluster.stages import prepare
from genrec.data import partition
from genrec.data.readers import read_items, read_queries, read_sequences, read_stats
from genrec.data.sources import open_source, table_file
from genrec.data.tables import SPLITS, to_queries, validate_queries
from genrec.errors import InputError


def wanted_samples(log, max_history, label):
    """By hand: one user after the other; ``label(user, place, length)`` names the split of an event."""
    found = []
    for user, events in histories(log).items():
        items = [item for item, _ in events]
        for place in range(1, len(items)):
            split = label(user, place, len(items))
            found.append((split, user, tuple(items[max(0, place - max_history) : place]), items[place]))
    return sorted(found)


def leave_one_out(user, place, length):
    if length < 3:
        return "train"
    return {length - 1: "test", length - 2: "valid"}.get(place, "train")


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_leave_one_out_gives_the_same_samples_with_any_number_of_shards(tmp_path, shards):
    log = random_log()
    out = run_prepare(
        tmp_path / "out", write_world(tmp_path / "in", log), f"data.shards={shards}", "data.max_history=4"
    )
    assert samples(out) == wanted_samples(log, 4, leave_one_out)


@pytest.mark.parametrize("shards", [1, 4])
def test_the_chronological_split_is_that_of_a_stable_sort_over_all_users(tmp_path, shards):
    log = random_log(seed=3, times=60)
    places = [
        (time, rank, place, user)
        for rank, (user, events) in enumerate(histories(log).items())
        for place, (_, time) in enumerate(events)
        if place
    ]
    places.sort(key=lambda sample: sample[:3])
    total = len(places)
    names = {
        (user, place): "train" if n < int(total * 0.8) else "valid" if n < int(total * 0.9) else "test"
        for n, (_, _, place, user) in enumerate(places)
    }
    path = write_world(tmp_path / "in", log)
    out = run_prepare(tmp_path / "out", path, f"data.shards={shards}", "data.split=chronological")
    assert samples(out) == wanted_samples(log, 10, lambda user, place, length: names[user, place])


def test_a_given_split_is_kept_row_by_row(tmp_path):
    log = {
        "user": [7, 7, 7, 7, 8, 8],
        "item": [3, 1, 3, 2, 1, 2],
        "position": [0, 1, 2, 3, 0, 1],
        "split": ["first", "train", "valid", "test", "first", "train"],
    }
    path = write_world(tmp_path / "in", log, {"item": [1, 2, 3], "title": ["a", "b", "c"]})
    out = run_prepare(tmp_path / "out", path, "data.split=given")
    assert samples(out) == [
        ("test", "7", ("3", "1", "3"), "2"),
        ("train", "7", ("3",), "1"),
        ("train", "8", ("1",), "2"),
        ("valid", "7", ("3", "1"), "3"),
    ]
    first = read_sequences(out).sort_by("user_id").to_pylist()[0]
    assert (first["items"], first["split"], first["times"]) == ([2, 0, 2, 1], [0, 1, 2, 3], [0, 1, 2, 3])


def test_query_ids_and_users_are_unique_and_agree_with_the_sequences(tmp_path):
    out = run_prepare(tmp_path / "out", write_world(tmp_path / "in", random_log()), "data.shards=5")
    tables = [read_queries(out, split) for split in SPLITS]
    for table in tables:
        validate_queries(table, read_items(out).num_rows, 10)
    ids = pa.concat_tables(tables)["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    sequences = {row["user"]: row for row in read_sequences(out).to_pylist()}
    assert sorted(sequences) == list(range(len(sequences)))
    for code, table in enumerate(tables, start=1):
        for query in to_queries(table):
            places = [p for p, split in enumerate(sequences[query.user]["split"]) if split == code]
            items = sequences[query.user]["items"]
            assert any((tuple(items[max(0, p - 10) : p]), items[p]) == (query.history, query.target) for p in places)


def test_events_carry_their_kind_value_and_time(tmp_path):
    log = {
        "user_id": ["a"] * 4,
        "item_id": ["x", "y", "x", "y"],
        "timestamp": pa.array([30, 10, 20, 15], pa.timestamp("s")),
        "event_type": ["buy", "view", "view", "view"],
        "rating": [5.0, None, 1.0, 2.0],
    }
    out = run_prepare(tmp_path / "out", write_world(tmp_path / "in", log), "data.shards=1")
    row = read_sequences(out).to_pylist()[0]
    assert row["times"] == [10, 15, 20, 30]
    assert row["events"] == ["view", "view", "view", "buy"]
    assert row["values"] == [None, 2.0, 1.0, 5.0]
    test = read_queries(out, "test").to_pylist()[0]
    assert (test["time"], test["event"]) == (30, "buy")
    assert read_items(out)["first_seen"].to_pylist() == [20, 10]


def test_filters_apply_in_their_documented_order(tmp_path):
    log = random_log(seed=5, users=30, items=40, events=900)
    path = write_world(tmp_path / "in", log)
    rules = ["item_users=6", "first_only=true", "last_per_user=9", "user_core=4", "item_core=3"]
    out = run_prepare(tmp_path / "out", path, *(f"data.filters.{rule}" for rule in rules))
    popular = {item for _, item, _ in log if len({u for u, i, _ in log if i == item}) >= 6}
    kept = {}
    for user, events in histories([row for row in log if row[1] in popular]).items():
        firsts = list(dict.fromkeys(item for item, _ in events))
        kept[user] = firsts[-9:]
    while True:
        counts = {i: sum(items.count(i) for items in kept.values()) for items in kept.values() for i in items}
        smaller = {u: [i for i in items if counts[i] >= 3] for u, items in kept.items() if len(items) >= 4}
        if smaller == kept:
            break
        kept = smaller
    ids = read_items(out)["id"].to_pylist()
    found = {row["user_id"]: [ids[i] for i in row["items"]] for row in read_sequences(out).to_pylist()}
    assert found == kept
    assert len(ids) < 40
    assert sorted(ids) == ids == sorted({i for items in kept.values() for i in items})


def test_a_window_and_titles_drop_interactions(tmp_path):
    log = [("a", item, day * 86400) for day, item in enumerate("wxyzxw")]
    items = {"id": ["w", "x", "y", "z"], "title": ["one two three", "x", "y", "z"], "colour": ["r", "g", "b", "k"]}
    path = write_world(tmp_path / "in", log, items)
    rules = ("data.filters.title_words=2", "data.filters.start=1970-01-02", "data.filters.end=1970-01-06")
    out = run_prepare(tmp_path / "out", path, *rules)
    assert ("test", "a", ("x", "y", "z"), "x") in samples(out)
    assert read_items(out)["colour"].to_pylist() == ["g", "b", "k"]
    assert read_stats(out)["log"]["outside_window"] == 2
    assert read_stats(out)["repeat_share"] == pytest.approx(1 / 3, abs=1e-4)


def test_eval_queries_caps_valid_and_test_and_leaves_train_alone(tmp_path):
    path = write_world(tmp_path / "in", random_log())
    full = run_prepare(tmp_path / "full", path)
    capped = run_prepare(tmp_path / "capped", path, "data.eval_queries=5")
    assert [read_queries(capped, split).num_rows for split in ("valid", "test")] == [5, 5]
    assert read_queries(capped, "train").equals(read_queries(full, "train"))
    assert set(read_queries(capped, "test")["id"].to_pylist()) < set(read_queries(full, "test")["id"].to_pylist())
    assert read_sequences(capped).equals(read_sequences(full))


def files_of(directory):
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("lost", ["partitioned", "kept", "written"])
def test_a_run_that_was_killed_continues_and_gives_the_same_bytes(tmp_path, monkeypatch, lost):
    path = write_world(tmp_path / "in", random_log())
    rules = ("data.filters.item_users=3", "data.filters.user_core=3", "data.filters.item_core=3")
    whole = run_prepare(tmp_path / "whole", path, *rules)
    phase = {"partitioned": "read the log", "kept": "sort and filter", "written": "write"}[lost]

    def dying(config, make, shards, *, label):
        if phase not in label:
            return real(config, make, shards, label=label)
        real(config, make, shards[:2], label=label)
        raise KeyboardInterrupt

    real = prepare.parallel_map
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(prepare, "parallel_map", dying)
        run_prepare(tmp_path / "killed", path, *rules)
    assert not (tmp_path / "killed" / "stats.json").exists()
    again = run_prepare(tmp_path / "killed", path, *rules)
    assert files_of(again) == files_of(whole)
    assert not (again / "scratch").exists()


def test_the_workflow_skips_when_nothing_changed_and_not_when_the_log_did(tmp_path):
    path = write_world(tmp_path / "in", random_log())
    config = config_for(path, f"storage={tmp_path / 'storage'}")
    first, second = made(config, "prepare"), made(config, "prepare")
    assert (first.skipped, second.skipped) == (False, True)
    assert first.metrics["interactions"] == 600
    write_world(path, random_log(seed=1))
    assert made(config, "prepare").key != first.key


def test_bad_data_leaves_nothing_behind(tmp_path):
    path = write_world(tmp_path / "in", random_log(), {"id": ["i00"], "title": ["Thing"]})
    with pytest.raises(InputError, match="the catalogue lacks"):
        made(config_for(path, f"storage={tmp_path / 'storage'}"), "prepare")
    assert [file.name for file in (tmp_path / "storage").rglob("*") if file.is_file()] == ["content.json"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_ray_actors_write_the_same_files_as_this_process(tmp_path):
    path = write_world(tmp_path / "in", random_log())
    here = run_prepare(tmp_path / "here", path)
    config = config_for(path, "compute.data_actors=1", "compute.data_cpus=0.5")
    out = tmp_path / "ray"
    out.mkdir()
    prepare.prepare(open_source(config.data), config, out)
    assert files_of(out) == files_of(here)


def test_a_log_of_many_parts_and_batches_gives_the_same_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(partition, "FLUSH_ROWS", 64)
    monkeypatch.setattr(table_file, "PART_ROWS", 100)
    monkeypatch.setattr(table_file, "BATCH_ROWS", 32)
    log = random_log()
    path = write_world(tmp_path / "in", log)
    folder = path / "interactions"
    folder.mkdir()
    table = pq.read_table(path / "interactions.parquet")
    (path / "interactions.parquet").unlink()
    for part in range(3):
        pq.write_table(table.slice(part * 200, 200), folder / f"{part}.parquet", row_group_size=50)
    out = run_prepare(tmp_path / "out", path)
    assert samples(out) == wanted_samples(log, 10, leave_one_out)


MEASURE = """
import resource, sys
from pathlib import Path
from genrec.data import partition
from genrec.data.sources import table_file
from support.data_worlds import run_prepare

partition.FLUSH_ROWS, table_file.PART_ROWS, table_file.BATCH_ROWS = 1 << 15, 1 << 16, 1 << 14
small, large, shards = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
run_prepare(small / "out", small, "data.shards=2")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run_prepare(large / "out", large, f"data.shards={shards}")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_log_of_many_parts_passes_with_little_memory(tmp_path):
    """Peak memory (RSS) of a process, over that of a small log, grows by less than half of the log's size."""
    rng = np.random.default_rng(0)
    names = {"user_id": np.char.add("user-", np.arange(20_000).astype(str)), "item_id": np.array(list("abcdefghij"))}
    write_world(tmp_path / "small", random_log())
    write_world(tmp_path / "large", [("u", item, 0) for item in names["item_id"]])
    writer, size = None, 0
    for _ in range(20):
        columns = {name: ids[rng.integers(0, len(ids), 50_000)] for name, ids in names.items()}
        table = pa.table({**columns, "timestamp": rng.integers(0, 10**9, 50_000)})
        writer = writer or pq.ParquetWriter(tmp_path / "large" / "interactions.parquet", table.schema)
        writer.write_table(table)
        size += table.nbytes
    writer.close()
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large"), "32"]
    environment = {**os.environ, "PYTHONPATH": ".:tests", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    grown = int(done.stdout.split()[-1])
    assert read_stats(tmp_path / "large" / "out")["interactions"] == 10**6
    assert grown < size / 2, f"{grown / 2**20:.0f} MiB for a log of {size / 2**20:.0f} MiB"


def test_stats_are_whole_numbers_and_shares(tmp_path):
    out = run_prepare(tmp_path / "out", write_world(tmp_path / "in", random_log()))
    stats = json.loads((out / "stats.json").read_text())
    assert stats["interactions"] == 600
    assert stats["train"] + stats["valid"] + stats["test"] == 600 - stats["users"]
    assert 0 < stats["repeat_share"] < 1
    assert np.isclose(stats["events_per_user"], 600 / stats["users"], atol=0.01)
