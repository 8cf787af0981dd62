"""Soft targets from ItemKNN: those of the module's formula, and nothing of a user's own events in them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genrec.baselines.itemknn import KnnSettings, Pairs, fit_itemknn, map_itemknn
from genrec.baselines.train_log import train_events, train_log
from genrec.data.tables import SEQUENCES
from genrec.learning.sft.batches import Dense, DenseExamples, RowExamples, Rows
from genrec.learning.sft.knn_teacher import FOLDS, KnnTeacher, fit_by_fold, fit_fold, user_folds

ITEMS, HISTORY = 12, 4


def sequences_of(users: list[str], repeats: bool = True) -> pa.Table:
    rng = np.random.default_rng(0)
    length = 6
    items = [rng.choice(ITEMS, length, replace=repeats).tolist() for _ in users]
    split = [[0, 1, 1, 1, 1, 2]] * len(users)
    times = [list(range(length))] * len(users)
    return pa.table({"user_id": users, "items": items, "times": times, "split": split})


USERS = [f"u{i}" for i in range(40)]


def teacher_of(sequences: pa.Table) -> KnnTeacher:
    masks = train_log(sequences, ITEMS).mask_seen
    return KnnTeacher(fit_by_fold(sequences, ITEMS), HISTORY, 0.5, mask_seen=masks)


def dense_of(teacher: KnnTeacher, batch: Dense | Rows, targets: int) -> torch.Tensor:
    soft = teacher(batch)
    return torch.zeros(targets, ITEMS).index_put((soft.row_E, soft.item_E), soft.share_E, accumulate=True)


@pytest.mark.parametrize("repeats", [True, False])
def test_a_target_gets_the_neighbours_that_other_folds_know(repeats: bool) -> None:
    table = sequences_of(USERS, repeats)
    examples = DenseExamples(table, HISTORY)
    batch = examples.take(np.arange(len(USERS)))
    found_MN = dense_of(teacher_of(table), batch, batch.targets)
    fold_U, mask_seen = user_folds(USERS), train_log(table, ITEMS).mask_seen
    assert mask_seen is not repeats and set(fold_U) == set(range(FOLDS))
    row = 0
    for user, fold in enumerate(fold_U):
        others = table.filter(pa.array(fold_U != fold))
        knn = fit_itemknn(Pairs(train_log(others, ITEMS)), KnnSettings())
        for place in range(1, 5):
            history = table["items"][user].as_py()[:place]
            recent_1H = np.array([(history[::-1] + [-1] * HISTORY)[:HISTORY]])
            expected_N = knn.scores(recent_1H).toarray()[0]
            if mask_seen:
                expected_N[recent_1H[recent_1H >= 0]] = 0
            expected_N /= expected_N.sum() or 1.0
            np.testing.assert_allclose(found_MN[row].numpy(), expected_N, rtol=1e-5, atol=1e-7)
            row += 1
    assert row == batch.targets


def test_a_users_own_events_change_none_of_its_soft_targets() -> None:
    table = sequences_of(USERS)
    mine, other = table["items"].to_pylist(), sequences_of(USERS)["items"].to_pylist()
    other[3] = [0, 0, 1, 1, 0, 0]
    changed = table.set_column(1, "items", pa.array(other))
    batch = DenseExamples(table, HISTORY).take(np.array([3]))
    before, after = (dense_of(teacher_of(one), batch, 4) for one in (table, changed))
    assert mine[3] != other[3]
    torch.testing.assert_close(before, after)
    neighbour = next(user for user in range(40) if user_folds(USERS)[user] != user_folds(USERS)[3])
    other[neighbour] = mine[3]
    moved = dense_of(teacher_of(table.set_column(1, "items", pa.array(other))), batch, 4)
    assert not torch.allclose(before, moved)


def test_rows_have_the_soft_targets_of_their_sequences_and_unknown_users_none() -> None:
    table = sequences_of(USERS)
    teacher = teacher_of(table)
    batch = DenseExamples(table, HISTORY).take(np.arange(5))
    cut = [(user, place) for user in range(5) for place in range(1, 5)]
    queries = pa.table(
        {
            "user_id": [USERS[user] for user, _ in cut],
            "history": [table["items"][user].as_py()[:place] for user, place in cut],
            "target": [table["items"][user].as_py()[place] for user, place in cut],
        }
    )
    rows = RowExamples(queries).take(np.arange(len(cut)))
    torch.testing.assert_close(dense_of(teacher, rows, len(cut)), dense_of(teacher, batch, batch.targets))
    assert not len(teacher(Rows(rows.histories, rows.target_B)).row_E)


def test_a_log_too_small_for_folds_gives_no_soft_targets() -> None:
    table = sequences_of(USERS[:1])
    batch = DenseExamples(table, HISTORY).take(np.array([0]))
    assert not dense_of(teacher_of(table), batch, batch.targets).any()


def test_folds_fitted_from_files_and_kept_on_the_disk_are_those_fitted_in_memory(tmp_path: Path) -> None:
    table = sequences_of(USERS)
    (tmp_path / "sequences").mkdir()
    for shard, first in enumerate(range(0, len(USERS), 15)):
        users = pa.array(range(first, min(first + 15, len(USERS))), pa.int64())
        nulls = {name: pa.nulls(len(users), SEQUENCES.field(name).type) for name in ("events", "values")}
        part = table.take(users)
        columns = {"user": users, **nulls, **{name: part[name] for name in part.column_names}}
        whole = pa.table({name: columns[name] for name in SEQUENCES.names}).cast(SEQUENCES)
        pq.write_table(whole, tmp_path / "sequences" / f"part-{shard:05d}.parquet")
    for fold, wanted in enumerate(fit_by_fold(table, ITEMS)):
        fit_fold(tmp_path, ITEMS, fold).write(tmp_path / "kept" / str(fold))
        found = map_itemknn(tmp_path / "kept" / str(fold))
        assert found.settings == wanted.settings
        assert (found.similarity_NN != wanted.similarity_NN).nnz == 0 and wanted.similarity_NN.nnz
        np.testing.assert_array_equal(found.backoff_N, wanted.backoff_N)


def test_an_itemknn_of_no_events_knows_nothing() -> None:
    alone, empty = (
        fit_by_fold(sequences_of(USERS[:1]), ITEMS),
        fit_itemknn(Pairs(train_events([], ITEMS)), KnnSettings()),
    )
    assert not alone[int(user_folds(USERS[:1])[0])].similarity_NN.nnz
    assert not empty.similarity_NN.nnz and not empty.backoff_N.any()
