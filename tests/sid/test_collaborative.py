"""What is chosen together gives factors: exact in memory, nearly so in blocks on disk, and means for cold items."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from support.sid_worlds import sequences

from genrec.errors import InputError
from genrec.sid import collaborative, cooccurrence, singular_vectors
from genrec.sid.collaborative import factorise, fill_cold
from genrec.sid.cooccurrence import Block, Cooccurrence
from genrec.sid.singular_vectors import exact_svd, gram, orthonormaliser, randomised_svd
from genrec.sid.train_events import TrainEvents
from genrec.sid.vector_subset import InMemory


def walks(items: int, users: int, seed: int = 0) -> TrainEvents:
    """Users who walk along a circle of items, in two tables."""
    rng = np.random.default_rng(seed)
    start = rng.integers(items, size=users)
    users = [[(int(item) % items, 1) for item in np.cumsum([at, *rng.integers(1, 4, 12)])] for at in start]
    half = len(users) // 2
    return TrainEvents(lambda: [sequences(*users[:half]), sequences(*users[half:])])


def test_train_positions_alone_are_seen():
    events = TrainEvents.of(sequences([(0, 0), (1, 1), (9, 2), (2, 1), (8, 3)], [(3, 0), (3, 1), (4, 1)]))
    left, right = events.adjacent_pairs(100)
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 1), (1, 2), (3, 4)]
    assert events.counts(10).tolist() == [1, 1, 1, 2, 1, 0, 0, 0, 0, 0]
    assert events.weights(10, 2).tolist() == [1.5, 2, 1.5, 3.5, 1.5, 0, 0, 0, 0, 0]


def test_pairs_beyond_the_most_are_drawn_from_all_users():
    events = walks(50, 400)
    left, right = events.adjacent_pairs(1000)
    assert 850 < len(left) < 1150 and (left != right).all()
    assert np.bincount(left, minlength=50).min() > 5
    np.testing.assert_array_equal(left, events.adjacent_pairs(1000)[0])


def test_ppmi_in_blocks_is_that_of_the_whole_matrix(monkeypatch):
    together = Cooccurrence.of(walks(60, 80), 60, 3)
    (whole,) = together.ranges()
    monkeypatch.setattr(cooccurrence, "BLOCK_PAIRS", 500)
    ranges = list(together.ranges())
    assert len(ranges) > 3 and [row for rows in ranges for row in rows] == list(range(60))
    parts = sparse.vstack([together.ppmi(rows) for rows in ranges]).toarray()
    np.testing.assert_allclose(parts, together.ppmi(whole).toarray(), rtol=1e-12)
    counts = together._counts(whole).toarray()  # pyright: ignore[reportPrivateUsage]
    np.testing.assert_allclose(counts, counts.T)
    np.testing.assert_allclose(counts.sum(axis=1), together.weights_N)


@pytest.mark.parametrize("rows", [1 << 16, 70])
def test_a_randomised_decomposition_keeps_as_much_as_the_exact_one(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(singular_vectors, "ROWS", rows)
    together = Cooccurrence.of(walks(300, 400), 300, 5)
    matrix = together.ppmi(range(300))
    blocks = [Block(0, matrix[:100]), Block(100, matrix[100:])]
    exact_Nk, value_k = exact_svd(matrix, 16, 0)
    found_Nk, nearly_k = randomised_svd(blocks, 300, 16, 0, tmp_path)
    np.testing.assert_allclose(found_Nk.T @ found_Nk, np.eye(16), atol=1e-5)
    np.testing.assert_allclose(nearly_k, value_k, rtol=0.01)
    kept, most = (np.square(matrix.T @ left_Nk).sum() for left_Nk in (found_Nk, exact_Nk))
    assert 0.999 * most < kept <= 1.0001 * most


def test_dependent_columns_stay_finite():
    rng = np.random.default_rng(0)
    tall = rng.standard_normal((50, 3)).astype(np.float32)
    tall = np.concatenate([tall, tall[:, :1]], axis=1)
    tall = tall @ orthonormaliser(gram(tall))
    np.testing.assert_allclose(np.linalg.svd(tall)[1], [1, 1, 1, 0], atol=1e-5)


def test_factors_in_blocks_put_the_same_items_together(tmp_path, monkeypatch):
    options = {"dims": 16, "window": 5, "seed": 0, "scratch": tmp_path / "ppmi"}
    exact, warm = factorise(walks(300, 800), 301, **options)
    assert warm.tolist() == [True] * 300 + [False] and not (tmp_path / "ppmi").exists()
    monkeypatch.setattr(collaborative, "EXACT_ITEMS", 100)
    monkeypatch.setattr(cooccurrence, "BLOCK_PAIRS", 20_000)
    monkeypatch.setattr(cooccurrence, "BLOCK_ROWS", 50)
    nearly, warm_too = factorise(walks(300, 800), 301, **options)
    np.testing.assert_array_equal(warm, warm_too)
    np.testing.assert_allclose((nearly @ nearly.T)[:300, :300], (exact @ exact.T)[:300, :300], atol=0.05)
    again, _ = factorise(walks(300, 800), 301, **options)
    np.testing.assert_array_equal(nearly, again)


def test_items_bought_together_lie_together_and_a_cold_item_near_its_textual_neighbours(tmp_path):
    rng = np.random.default_rng(0)
    users = [[(int(i) + 10 * side, 1) for i in rng.choice(10, 8)] for side in (0, 1) for _ in range(40)]
    text = np.concatenate([np.tile([1.0, 0], (10, 1)), np.tile([0, 1.0], (10, 1)), [[1.0, 0.1]]]).astype(np.float32)
    options = {"dims": 4, "window": 3, "seed": 0, "scratch": tmp_path}
    vectors, warm = factorise(TrainEvents.of(sequences(*users)), 21, **options)
    fill_cold(vectors, warm, InMemory(text), 0)
    similar = vectors @ vectors.T
    assert similar[:10, :10].mean() > similar[:10, 10:20].mean() + 0.3
    assert similar[20, :10].mean() > similar[20, 10:20].mean() + 0.3
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_an_index_of_some_warm_items_finds_neighbours_for_a_cold_one(monkeypatch):
    rng = np.random.default_rng(0)
    group = np.arange(1200) % 4
    text = (np.eye(4, 8)[group] * 5 + rng.standard_normal((1200, 8))).astype(np.float32)
    factors = np.eye(4, dtype=np.float32)[group]
    warm = np.arange(1200) >= 40
    wanted, factors[:40] = factors[:40].copy(), 0
    for name, value in {"COMPARED": 100, "POOL": 600, "LISTS": 8, "PROBED": 2, "COLD": 16}.items():
        monkeypatch.setattr(collaborative, name, value)
    fill_cold(factors, warm, InMemory(text), 0)
    assert (factors[:40] * wanted).sum(axis=1).min() > 0.9


def test_a_log_without_train_pairs_cannot_give_collaborative_vectors(tmp_path):
    events = TrainEvents.of(sequences([(0, 0), (1, 2), (2, 3)]))
    with pytest.raises(InputError, match=r"set sid\.cf_weight=0"):
        factorise(events, 3, dims=1, window=5, seed=0, scratch=tmp_path)
    with pytest.raises(InputError, match=r"needs more than 9 items"):
        factorise(walks(9, 9), 9, dims=8, window=5, seed=0, scratch=tmp_path)


def test_a_log_in_which_nothing_is_related_is_refused(tmp_path):
    events = TrainEvents.of(pa.table({"items": [[0, 0]], "split": [[1, 1]]}))
    with pytest.raises(InputError, match="more than chance"):
        factorise(events, 50, dims=8, window=5, seed=0, scratch=tmp_path)
