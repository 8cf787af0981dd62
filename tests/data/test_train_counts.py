"""The train counts that ``prepare`` stores are those that a direct count over the sequences finds."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.data_worlds import random_log, run_prepare, write_world
from support.sid_worlds import sequences

from cluster.serve.user_log import UserLog
from genrec.baselines.popularity import Popularity
from genrec.baselines.train_log import read_train_log
from genrec.config import RewardSettings
from genrec.data.files import write_parquet
from genrec.data.folds import write_fold_data
from genrec.data.holdout import hold_out
from genrec.data.readers import count_items, read_queries, read_sequences
from genrec.data.refit import write_refit_data
from genrec.data.tables import SEQUENCES
from genrec.data.train_counts import TRAIN_COUNTS, TrainCounts, count_train, read_train_counts, total
from genrec.errors import InputError
from genrec.learning.rewards.read_context import read_reward_context
from genrec.sid.train_events import TrainEvents


def typed_log(seed: int, *, types: bool = True) -> dict[str, Any]:
    """A random log with users of one event, events without a type, and splits that rise along each user's events.

    Some events have no split, and one user has no train target.
    """
    rows = sorted(random_log(seed, users=15, events=300), key=lambda row: (row[0], row[2]))
    rng = np.random.default_rng(seed)
    length, place = Counter(user for user, _, _ in rows), Counter[str]()
    split = list[str | None]()
    for user, _, _ in rows:
        place[user] += 1
        share = place[user] / length[user]
        known = "train" if share < 0.6 and user != "u1" else "valid" if share < 0.8 else "test"
        split.append(known if rng.random() < 0.8 else None)
    log: dict[str, Any] = {name: [row[i] for row in rows] for i, name in enumerate(("user_id", "item_id", "timestamp"))}
    log["split"] = split
    if types:
        log["event"] = [("buy", "view", None)[kind] for kind in rng.integers(0, 3, len(rows))]
    return log


def counted_by_hand(directory: Path, items: int) -> tuple[list[int], list[int], int, int, dict[str, int]]:
    """Events, first or train events, users, pairs and types, one user after the other."""
    events, first_or_train, types = [0] * items, [0] * items, Counter[str]()
    users, pairs = 0, 0
    for row in read_sequences(directory).to_pylist():
        places = [place for place, code in enumerate(row["split"]) if code == 1]
        for item, code in zip(row["items"], row["split"], strict=True):
            first_or_train[item] += code <= 1
        types.update(row["events"][place] for place in places if row["events"] and row["events"][place])
        until = max(places, default=-1) + 1
        part = [row["items"][place] for place in range(until) if row["split"][place] <= 1]
        for item in part:
            events[item] += 1
        users, pairs = users + bool(part), pairs + len(set(part))
    return events, first_or_train, users, pairs, dict(types)


def as_tuple(counts: TrainCounts) -> tuple[list[int], list[int], int, int, dict[str, int]]:
    return counts.events_N.tolist(), counts.first_or_train_N.tolist(), counts.users, counts.pairs, dict(counts.types)


@pytest.mark.parametrize(
    ("split", "shards"), [("leave_one_out", 1), ("leave_one_out", 25), ("chronological", 4), ("given", 1), ("given", 4)]
)
def test_they_are_those_of_a_count_by_hand_of_the_log_of_baselines_and_of_sids(
    tmp_path: Path, split: str, shards: int
) -> None:
    for seed in range(3):
        world = write_world(tmp_path / f"in{seed}", typed_log(seed, types=seed < 2))
        out = run_prepare(tmp_path / f"out{seed}", world, f"data.split={split}", f"data.shards={shards}")
        items = count_items(out)
        assert (out / TRAIN_COUNTS).is_file() and not (out / "scratch").exists()
        counts, log = read_train_counts(out, items), read_train_log(out, items)
        assert as_tuple(counts) == counted_by_hand(out, items)
        differ = counts.events_N.tolist() != counts.first_or_train_N.tolist()
        assert differ or split != "given"
        assert counts.events_N.dtype == log.counts_N.dtype == np.int64
        assert counts.events_N.tolist() == log.counts_N.tolist()
        assert (counts.repeat_share, counts.mask_seen) == (log.repeat_share, log.mask_seen)
        assert (
            TrainEvents.read(out).counts(items).tolist() == TrainEvents.of(read_sequences(out)).counts(items).tolist()
        )
        targets = Counter(read_queries(out, "train")["event"].drop_null().to_pylist())
        assert dict(counts.types) == targets
        assert counts.most_frequent_type == (min(targets, key=lambda name: (-targets[name], name)) if targets else None)


def test_a_log_that_never_repeats_masks_seen_items(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{(user + step) % 9}", step) for user in range(9) for step in range(5)]
    out = run_prepare(tmp_path / "out", write_world(tmp_path / "in", rows), "data.shards=4")
    assert read_train_counts(out, 9).mask_seen and read_train_log(out, 9).mask_seen


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    rows = [[(int(i), int(i % 3 > 0)) for i in np.random.default_rng(seed).integers(0, 9, 6)] for seed in range(20)]
    whole = sequences(*rows)
    parts = [whole.slice(0, 7), whole.slice(7, 0), whole.slice(7)]
    assert as_tuple(total((count_train(part, 9) for part in parts), 9)) == as_tuple(count_train(whole, 9))


def test_types_of_some_users_alone_are_counted() -> None:
    rows = sequences([(0, 0), (1, 1), (2, 1)], [(0, 0), (1, 1)]).to_pylist()
    rows[1]["events"] = ["view", "buy"]
    table = pa.Table.from_pylist(rows, schema=SEQUENCES)
    assert count_train(table, 3).types == {"buy": 1}
    assert count_train(table.slice(1), 3).types == {"buy": 1} and count_train(table.slice(0, 1), 3).types == {}


def test_who_asks_for_counts_alone_reads_no_sequences(tmp_path: Path) -> None:
    out = run_prepare(tmp_path / "out", write_world(tmp_path / "in", typed_log(0)), "data.shards=3")
    items, users = count_items(out), UserLog(out, count_items(out))
    expected = read_train_log(out, items)
    popular = Popularity(expected).scores_N
    of_sids = TrainEvents.of(read_sequences(out)).counts(items)
    shutil.rmtree(out / "sequences")
    assert users.popularity().tolist() == popular.tolist()
    assert TrainEvents.read(out).counts(items).tolist() == of_sids.tolist()
    context = read_reward_context(out, torch.zeros(items, 1, dtype=torch.long), ["tail"], RewardSettings())
    assert context.counts_N is not None and context.counts_N.tolist() == expected.counts_N.tolist()


def test_a_directory_of_before_is_counted_when_it_is_asked(tmp_path: Path) -> None:
    out = run_prepare(tmp_path / "out", write_world(tmp_path / "in", typed_log(1)), "data.shards=3")
    stored = read_train_counts(out, count_items(out))
    (out / TRAIN_COUNTS).unlink()
    assert as_tuple(read_train_counts(out, count_items(out))) == as_tuple(stored)


def test_tables_of_some_users_events_or_items_have_their_own_counts(tmp_path: Path) -> None:
    out = run_prepare(tmp_path / "out", write_world(tmp_path / "in", typed_log(2)), "data.eval_queries=3")
    write_refit_data(out, tmp_path / "refit")
    write_fold_data(out, tmp_path / "fold", 0, 3, seed=0)
    hold_out(out, np.array([0, 3]), tmp_path / "held")
    before = as_tuple(read_train_counts(out, count_items(out)))
    for directory in (tmp_path / "refit", tmp_path / "fold", tmp_path / "held" / "data"):
        items = count_items(directory)
        assert as_tuple(TrainCounts.read(directory / TRAIN_COUNTS)) == counted_by_hand(directory, items) != before
    assert not (tmp_path / "held" / "asked" / TRAIN_COUNTS).exists()


def test_inserted_items_have_no_event_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    counts = count_train(sequences([(0, 0), (2, 1), (1, 3)]), 4)
    assert counts.of_catalogue(6).events_N.tolist() == [1, 0, 1, 0, 0, 0]
    assert counts.of_catalogue(3).events_N.tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="item 2; the catalogue has rows 0 to 1"):
        counts.of_catalogue(2)
    with pytest.raises(InputError, match="no train position"):
        count_train(sequences([(0, 0), (1, 2)]), 4).of_catalogue(4)
    write_parquet(SEQUENCES.empty_table(), tmp_path / "sequences" / "part-00000.parquet")
    with pytest.raises(InputError, match="no train position"):
        read_train_counts(tmp_path, 4)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    count_train(sequences([(0, 0), (2, 1)]), 4).write(tmp_path / TRAIN_COUNTS)
    table = pq.read_table(tmp_path / TRAIN_COUNTS)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / TRAIN_COUNTS)
    with pytest.raises(InputError, match="metadata lacks 'totals'"):
        read_train_counts(tmp_path, 4)
    pq.write_table(table.drop_columns(["events"]), tmp_path / TRAIN_COUNTS)
    with pytest.raises(InputError, match="column 'events'"):
        read_train_counts(tmp_path, 4)
