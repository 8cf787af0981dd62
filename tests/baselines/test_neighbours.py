"""STAR, text neighbours, repeat-last and factorizations by hand or on small worlds."""

import numpy as np
import pytest

from genrec.baselines.factors import AlsFactors, AlsSettings, BprFactors, BprSettings, interactions
from genrec.baselines.ranking import rank
from genrec.baselines.repeat_last import RepeatLast
from genrec.baselines.star import Similarities, Star, StarSettings, text_neighbours, user_cosines
from genrec.baselines.train_log import TrainLog
from genrec.errors import InputError


def log_of(*walks, items):
    users = np.repeat(np.arange(len(walks)), [len(walk) for walk in walks])
    flat = np.concatenate([np.asarray(walk) for walk in walks])
    return TrainLog(flat, users, np.arange(len(flat)), items)


LOG = log_of([0, 1, 2], [0, 1], [2, 2, 3], items=5)


def test_repeat_last_says_the_history_again_and_then_what_is_popular():
    histories = np.array([[3, 1, 3, -1], [-1, -1, -1, -1]])
    ranked = rank(RepeatLast(LOG), histories, 5, mask_seen=False)
    assert ranked[0].tolist() == [3, 1, 2, 0, 4] and ranked[1].tolist() == [2, 0, 1, 3, 4]


def test_user_cosines_count_each_user_once():
    cosines = user_cosines(LOG).toarray()
    assert cosines[0, 1] == pytest.approx(2 / np.sqrt(2 * 2)) and cosines[2, 3] == pytest.approx(1 / np.sqrt(2))
    assert not cosines.diagonal().any() and cosines[0, 3] == 0


def test_star_is_the_papers_sum():
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    text = np.maximum(unit @ unit.T, 0) * (1 - np.eye(5))
    both = 0.25 * text + 0.75 * user_cosines(LOG).toarray()
    similarities = Similarities.of(LOG, vectors)
    scores = Star(similarities, StarSettings(text=0.25, decay=0.5)).dense(np.array([[3, 0, -1]]))
    assert np.allclose(scores[0], both[3] + 0.5 * both[0], atol=1e-5)


def test_text_neighbours_know_items_that_nobody_had_and_keep_the_nearest():
    vectors = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0, 0], [0.5, 0.5]])
    near = text_neighbours(vectors, neighbours=2).toarray()
    assert np.flatnonzero(near[0]).tolist() == [1, 4] and not near[3].any()
    scores = Star(Similarities.of(LOG, vectors), StarSettings(text=1.0)).dense(np.array([[2]]))
    assert scores[0].argmax() == 4  # No user had it.


def test_star_refuses_weights_that_are_none():
    with pytest.raises(InputError, match="text in"):
        StarSettings(text=1.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda log: AlsFactors(log, AlsSettings(factors=2), 0),
        lambda log: BprFactors(log, BprSettings(factors=8, iterations=200), 0),
    ],
)
def test_factors_find_the_block_that_a_history_belongs_to(make):
    pytest.importorskip("implicit")
    rng = np.random.default_rng(0)
    walks = [rng.choice(6, 4, replace=False) + 6 * (user % 2) for user in range(60)]
    log = log_of(*walks, items=12)
    ranked = rank(make(log), np.array([[0, 3], [8, 7]]), 4, mask_seen=True)
    assert set(ranked[0].tolist()) == {1, 2, 4, 5} and set(ranked[1].tolist()) == {6, 9, 10, 11}
    assert np.array_equal(make(log).dense(np.array([[0, 3]])), make(log).dense(np.array([[0, 3]])))


def test_pairs_of_many_users_and_items_are_counted_in_64_bits():
    walks = np.tile([0, 1], 60_000)
    log = TrainLog(walks.astype(np.int32), np.repeat(np.arange(60_000, dtype=np.int32), 2), np.arange(120_000), 50_000)
    assert user_cosines(log)[0, 1] == pytest.approx(1)
    assert interactions(log).shape == (60_000, 50_000)
