"""Soft targets from ItemKNN: those of the module's formula, and nothing of a user's own events in them."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from genrec.baselines.itemknn import ItemKNN, KnnSettings, Pairs
from genrec.baselines.train_log import train_log
from genrec.learning.sft.batches import Dense, DenseExamples, RowExamples, Rows
from genrec.learning.sft.knn_teacher import FOLDS, KnnTeacher, user_folds

ITEMS, HISTORY = 12, 4


def sequences_of(users: list[str], repeats: bool = True) -> pa.Table:
    rng = np.random.default_rng(0)
    length = 6
    items = [rng.choice(ITEMS, length, replace=repeats).tolist() for _ in users]
    split = [[0, 1, 1, 1, 1, 2]] * len(users)
    times = [list(range(length))] * len(users)
    return pa.table({"user_id": users, "items": items, "times": times, "split": split})


USERS = [f"u{i}" for i in range(40)]


def dense_of(teacher: KnnTeacher, batch: Dense | Rows, targets: int) -> torch.Tensor:
    soft = teacher(batch)
    return torch.zeros(targets, ITEMS).index_put((soft.row_E, soft.item_E), soft.share_E, accumulate=True)


@pytest.mark.parametrize("repeats", [True, False])
def test_a_target_gets_the_neighbours_that_other_folds_know(repeats: bool) -> None:
    table = sequences_of(USERS, repeats)
    examples = DenseExamples(table, HISTORY)
    batch = examples.take(np.arange(len(USERS)))
    found_MN = dense_of(KnnTeacher(table, ITEMS, HISTORY, 0.5), batch, batch.targets)
    fold_U, mask_seen = user_folds(USERS), train_log(table, ITEMS).mask_seen
    assert mask_seen is not repeats and set(fold_U) == set(range(FOLDS))
    row = 0
    for user, fold in enumerate(fold_U):
        others = table.filter(pa.array(fold_U != fold))
        knn = ItemKNN(Pairs(train_log(others, ITEMS)), KnnSettings())
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
    before, after = (dense_of(KnnTeacher(one, ITEMS, HISTORY, 0.5), batch, 4) for one in (table, changed))
    assert mine[3] != other[3]
    torch.testing.assert_close(before, after)
    neighbour = next(user for user in range(40) if user_folds(USERS)[user] != user_folds(USERS)[3])
    other[neighbour] = mine[3]
    moved = dense_of(KnnTeacher(table.set_column(1, "items", pa.array(other)), ITEMS, HISTORY, 0.5), batch, 4)
    assert not torch.allclose(before, moved)


def test_rows_have_the_soft_targets_of_their_sequences_and_unknown_users_none() -> None:
    table = sequences_of(USERS)
    teacher = KnnTeacher(table, ITEMS, HISTORY, 0.5)
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
    assert not dense_of(KnnTeacher(table, ITEMS, HISTORY, 0.5), batch, batch.targets).any()
