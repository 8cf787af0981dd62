"""Each kind of leak is planted, and the check must find it; the data that prepare writes must have none."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.data_worlds import random_log, run_prepare, write_world

from genrec.baselines.itemknn import KnnSettings, Pairs, fit_itemknn
from genrec.baselines.train_log import TrainLog, train_log
from genrec.data.leaks import copied_targets, excess_counts, wrong_queries
from genrec.data.readers import read_items, read_queries, read_sequences, read_stats
from genrec.data.tables import SPLITS
from genrec.learning.sft.batches import DenseExamples, RowExamples


@pytest.fixture(scope="module", params=["leave_one_out", "chronological"])
def data(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    log = list(dict.fromkeys(random_log(events=300)))
    return run_prepare(folder / "out", write_world(folder / "in", log), f"data.split={request.param}", "data.shards=3")


def changed(queries: pa.Table, name: str, values: list) -> pa.Table:
    place = queries.schema.get_field_index(name)
    return queries.set_column(place, queries.schema.field(name), pa.array(values, queries.schema.field(name).type))


def test_what_prepare_writes_has_no_leak(data):
    sequences = read_sequences(data)
    for split in SPLITS:
        queries = read_queries(data, split)
        assert not wrong_queries(sequences, queries, split).any()
        assert not copied_targets(sequences, queries).any()


@pytest.mark.parametrize("split", SPLITS)
def test_a_future_event_in_a_history_is_found(data, split):
    sequences, queries = read_sequences(data), read_queries(data, split)
    histories, targets = queries["history"].to_pylist(), queries["target"].to_pylist()
    row = next(row for row, target in enumerate(targets) if histories[row][-1] != target)
    histories[row] = [*histories[row][1:], targets[row]]
    found = wrong_queries(sequences, changed(queries, "history", histories), split)
    assert found.nonzero()[0].tolist() == [row]


def test_another_users_events_in_a_history_are_found(data):
    sequences, queries = read_sequences(data), read_queries(data, "train")
    items, splits = (sequences[name].to_pylist() for name in ("items", "split"))
    user = next(user for user in range(1, len(items)) if len(items[user]) > 1 and splits[user][1] == 1)
    event = sum(map(len, items[:user])) + 1
    row = queries["id"].to_pylist().index(event)
    histories = queries["history"].to_pylist()
    histories[row] = [items[user - 1][-1], *histories[row]]
    assert wrong_queries(sequences, changed(queries, "history", histories), "train").nonzero()[0].tolist() == [row]


def test_a_validation_row_among_the_sft_examples_is_found(data):
    sequences, train, valid = read_sequences(data), read_queries(data, "train"), read_queries(data, "valid")
    planted = pa.concat_tables([train, valid.slice(0, 1)])
    assert wrong_queries(sequences, planted, "train").nonzero()[0].tolist() == [train.num_rows]
    items = read_items(data).num_rows
    rows = RowExamples(planted).take(np.arange(planted.num_rows))
    assert excess_counts(np.bincount(rows.target_B, minlength=items), sequences, with_first=False).sum() == 1


def scored(sequences, items):
    examples = DenseExamples(sequences, max_history=4)
    batch = examples.take(np.arange(len(examples.lengths())))
    return np.bincount(batch.items_BI[batch.target_BI], minlength=items)


def test_sft_scores_each_train_target_and_no_other(data):
    sequences, items = read_sequences(data), read_items(data).num_rows
    counts = scored(sequences, items)
    assert not excess_counts(counts, sequences, with_first=False).any()
    assert counts.sum() == read_queries(data, "train").num_rows
    codes = [[1 if code == 2 else code for code in row] for row in sequences["split"].to_pylist()]
    leaking = scored(changed(sequences, "split", codes), items)
    assert excess_counts(leaking, sequences, with_first=False).sum() == read_queries(data, "valid").num_rows


def test_a_test_target_in_the_counts_of_itemknn_is_found(data):
    sequences, items = read_sequences(data), read_items(data).num_rows
    log = train_log(sequences, items)
    assert not excess_counts(Pairs(log).counts_N.astype(np.int64), sequences, with_first=True).any()
    target = read_queries(data, "test")["target"].to_numpy()[:1]
    planted = TrainLog(
        np.append(log.items_E, target), np.append(log.users_E, 0), np.append(log.times_E, 10**9), log.n_items
    )
    leaked = excess_counts(Pairs(planted).counts_N.astype(np.int64), sequences, with_first=True)
    assert leaked.nonzero()[0].tolist() == target.tolist()


def test_itemknn_does_not_change_with_the_answers(data):
    """All valid and test targets are replaced by other items: no similarity moves."""
    sequences, items = read_sequences(data), read_items(data).num_rows
    rows = zip(sequences["items"].to_pylist(), sequences["split"].to_pylist(), strict=True)
    other = [[(item + 1) % items if code > 1 else item for item, code in zip(*row, strict=True)] for row in rows]
    models = [
        fit_itemknn(Pairs(train_log(table, items)), KnnSettings())
        for table in (sequences, changed(sequences, "items", other))
    ]
    assert (models[0].similarity_NN != models[1].similarity_NN).nnz == 0
    np.testing.assert_array_equal(models[0].backoff_N, models[1].backoff_N)


@pytest.mark.parametrize("hidden", ["_temporary", ".ipynb_checkpoints", "_spark_metadata", "._copies"])
def test_a_hidden_copy_of_the_log_is_not_read_and_a_visible_one_is_found(tmp_path, hidden):
    log = list(dict.fromkeys(random_log(events=200)))
    path = write_world(tmp_path / "in", log)
    table = pq.read_table(path / "interactions.parquet")
    (path / "interactions.parquet").unlink()
    for folder in ("", hidden):
        (path / "interactions" / folder).mkdir(exist_ok=True)
        pq.write_table(table, path / "interactions" / folder / "p0.parquet")
    out = run_prepare(tmp_path / "out", path)
    assert read_stats(out)["interactions"] == len(log)
    pq.write_table(table, path / "interactions" / "copy.parquet")
    leaking = run_prepare(tmp_path / "leaking", path)
    assert copied_targets(read_sequences(leaking), read_queries(leaking, "test")).all()
    assert read_stats(leaking)["log"]["duplicates"] == len(log)
    clean = run_prepare(tmp_path / "clean", path, "data.filters.drop_duplicates=true")
    assert [read_queries(clean, split).to_pylist() for split in SPLITS] == [
        read_queries(out, split).to_pylist() for split in SPLITS
    ]
