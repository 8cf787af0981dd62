"""ItemKNN of a catalogue that grew: a new item stands for the mean of the known items that are most like it."""

import numpy as np

from genrec.baselines.itemknn import ItemKNN, KnnSettings, Pairs, fit_itemknn
from genrec.baselines.train_log import TrainLog

KNOWN, NEAR_MX = 8, np.array([[0, 1], [5, 6]])


def knn() -> ItemKNN:
    rng = np.random.default_rng(0)
    users_E = np.repeat(np.arange(12), 5)
    return fit_itemknn(Pairs(TrainLog(rng.integers(0, KNOWN, 60), users_E, np.arange(60), KNOWN)), KnnSettings())


def test_a_new_item_is_scored_as_its_neighbours_and_changes_no_known_one() -> None:
    plain, grown = knn(), knn().grown(KNOWN + 2, NEAR_MX)
    recent_QH = np.array([[3, 2, -1], [7, 0, 1]])
    before_QN, after_QN = plain.scores(recent_QH).toarray(), grown.scores(recent_QH).toarray()
    np.testing.assert_allclose(after_QN[:, :KNOWN], before_QN)
    np.testing.assert_allclose(after_QN[:, KNOWN:], before_QN[:, NEAR_MX].mean(-1))
    assert after_QN[:, KNOWN:].any()
    np.testing.assert_allclose(grown.dense(recent_QH)[:, KNOWN:], plain.dense(recent_QH)[:, NEAR_MX].mean(-1))


def test_a_new_item_in_a_history_counts_as_its_neighbours() -> None:
    grown = knn().grown(KNOWN + 2, NEAR_MX)
    new_1N = grown.scores(np.array([[KNOWN + 1]])).toarray()
    each_2N = grown.scores(np.array([[5], [6]])).toarray()
    np.testing.assert_allclose(new_1N[0], each_2N.mean(0))


def test_without_neighbours_new_items_neither_get_nor_give_scores() -> None:
    plain, grown = knn(), knn().grown(KNOWN + 2, None)
    scores_QN = grown.scores(np.array([[3, KNOWN], [KNOWN + 1, -1]])).toarray()
    np.testing.assert_allclose(scores_QN[0, :KNOWN], plain.scores(np.array([[3, -1]])).toarray()[0])
    assert not scores_QN[:, KNOWN:].any() and not scores_QN[1].any()
    assert plain.grown(KNOWN, None) is plain
