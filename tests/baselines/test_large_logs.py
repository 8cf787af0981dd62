"""What is counted in runs, or for some items at a time, is what is counted at once."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from genrec.baselines import itemknn, train_log
from genrec.baselines.itemknn import KnnSettings, Pairs, fit_itemknn
from genrec.baselines.sparse import csr, keep_largest, stacked_on_disk
from genrec.baselines.train_log import TrainLog

SETTINGS = (
    KnnSettings(),
    KnnSettings(neighbours=5),
    KnnSettings(backward=0.0, window=3, distance_decay=0.5),
    KnnSettings(self_weight=0.0, source_power=0.75, shrink=0.0, window=10, neighbours=20),
)


def skewed_log(items: int = 60, users: int = 50) -> TrainLog:
    rng = np.random.default_rng(0)
    users_E = np.repeat(np.arange(users), rng.integers(1, 30, users))
    items_E = (items * rng.random(len(users_E)) ** 3).astype(np.int32)
    return TrainLog(items_E, users_E, np.arange(len(users_E)), items)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("pairs", [1, 300, 2000])
def test_itemknn_in_blocks_of_rows_has_the_same_bits(
    settings: KnnSettings, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = skewed_log()
    whole = Pairs(log)
    assert list(whole.blocks()) == [range(60)]
    wanted = fit_itemknn(whole, settings).similarity_NN
    monkeypatch.setattr(itemknn, "KEPT_PAIRS", pairs)
    parts = Pairs(log)
    blocks = list(parts.blocks())
    assert len(blocks) > 1 and [row for block in blocks for row in block] == list(range(60))
    knn = fit_itemknn(parts, settings)
    found = knn.similarity_NN
    assert not found.data.flags.owndata and not found.data.flags.writeable, "it lies in a file"
    assert (found != wanted).nnz == 0 and found.nnz == wanted.nnz
    recent_QH = np.array([[3, 7, 1], [0, -1, -1]])
    same = [one.dense(recent_QH) for one in (fit_itemknn(whole, settings), knn, pickle.loads(pickle.dumps(knn)))]
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])


def test_blocks_without_entries_are_stacked_too() -> None:
    empty, one = (
        csr(np.zeros(0), np.zeros(0, int), np.zeros(0, int), (2, 3)),
        csr(np.ones(1), np.zeros(1, int), np.full(1, 2), (1, 3)),
    )
    assert stacked_on_disk([empty, one], 3).toarray().tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert stacked_on_disk([empty], 3).toarray().tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_largest_entries_of_a_row_are_kept_ties_to_the_lower_column() -> None:
    rows, columns, values = np.array([0, 0, 0, 0, 1, 2, 2, 2]), np.array([4, 1, 3, 0, 2, 0, 1, 2]), np.ones(8)
    values[[0, 6]] = 2.0
    kept = keep_largest(csr(values, rows, columns, (3, 5)), 2).toarray()
    assert kept.tolist() == [[1, 0, 0, 0, 2], [0, 0, 1, 0, 0], [1, 2, 0, 0, 0]]


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_repeats_are_counted_in_runs_of_whole_users(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_log, "COUNTED_AT_ONCE", at_once)
    log = skewed_log()
    pairs = list(zip(log.users_E.tolist(), log.items_E.tolist(), strict=True))
    assert log.repeat_share == (len(pairs) - len(set(pairs))) / (len(pairs) - 50)
    distinct = replace(log, items_E=np.arange(len(pairs)) % 60, users_E=np.arange(len(pairs)) // 60)
    assert distinct.mask_seen is True  # it is written as JSON
