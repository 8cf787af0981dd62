from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from genrec.baselines.itemknn import KnnSettings, Pairs, fit_itemknn
from genrec.baselines.popularity import Popularity
from genrec.baselines.ranking import rank
from genrec.baselines.train_log import recent_history, train_log
from genrec.baselines.transitions import Transition
from genrec.baselines.tuning import exact_ranks, fit_baselines, tune_itemknn, tune_popularity
from genrec.errors import InputError
from genrec.metrics import measure, target_ranks


def sequences(items, split, times=None):
    columns = {"items": pa.array(items, pa.list_(pa.int32())), "split": pa.array(split, pa.list_(pa.int8()))}
    if times is not None:
        columns["times"] = pa.array(times, pa.list_(pa.int64()))
    return pa.table(columns)


def queries(histories, targets):
    return pa.table({"history": pa.array(histories, pa.list_(pa.int32())), "target": pa.array(targets, pa.int32())})


def cycle_world(users=60, items=12, length=8, repeat=False):
    """Everyone walks round the circle of items, from a random start; with ``repeat`` everyone stays where they are."""
    starts = np.random.default_rng(0).integers(0, items, users)
    walk = [[int(s) if repeat else int(s + step) % items for step in range(length)] for s in starts]
    table = sequences(walk, [[0, *[1] * (length - 3), 2, 3]] * users)
    valid = queries([w[: length - 2] for w in walk], [w[length - 2] for w in walk])
    test = queries([w[: length - 1] for w in walk], [w[length - 1] for w in walk])
    return table, valid, test, items


def random_world(seed=0, users=200, items=50):
    rng = np.random.default_rng(seed)
    walk = [rng.integers(0, items, rng.integers(3, 15)).tolist() for _ in range(users)]
    log = train_log(sequences(walk, [[0] + [1] * (len(w) - 1) for w in walk]), items)
    recent = recent_history(queries([w[:-1] for w in walk], [w[-1] for w in walk]), 10)
    return log, recent, np.array([w[-1] for w in walk])


def test_nothing_after_a_users_last_train_target_is_learned():
    table = sequences([[0, 1, 2, 3], [4, 5], [6, 7, 8]], [[0, 1, 2, 3], [0, 3], [0, 1, 1]])
    log = train_log(table, 9)
    assert log.items_E.tolist() == [0, 1, 6, 7, 8]
    assert log.counts_N.tolist() == [1, 1, 0, 0, 0, 0, 1, 1, 1]


def test_validation_and_test_rows_do_not_change_any_baseline():
    split = [[0, 1, 1, 2, 3]] * 3
    one = sequences([[0, 1, 2, 3, 4]] * 3, split)
    two = sequences([[0, 1, 2, 4, 3], [0, 1, 2, 0, 0], [0, 1, 2, 1, 1]], split)
    recent = np.array([[2, 1], [0, -1]])
    for build in (Popularity, Transition, lambda log: fit_itemknn(Pairs(log), KnnSettings())):
        assert np.array_equal(build(train_log(one, 5)).dense(recent), build(train_log(two, 5)).dense(recent))


def test_a_log_without_train_positions_is_refused():
    with pytest.raises(InputError, match="no train position"):
        train_log(sequences([[0, 1]], [[0, 3]]), 2)


def test_an_item_beyond_the_catalogue_is_refused():
    with pytest.raises(InputError, match="sequences hold item 7; the catalogue has rows 0 to 4"):
        train_log(sequences([[0, 7]], [[0, 1]]), 5)


def test_a_missing_column_is_refused_by_name():
    with pytest.raises(InputError, match="wanted 'split'"):
        train_log(pa.table({"items": pa.array([[0, 1]])}), 2)


def test_sliced_and_chunked_tables_are_read_like_whole_ones():
    table = sequences([[9, 9], [0, 1, 2], [3, 4]], [[0, 1], [0, 1, 1], [0, 1]])
    parts = pa.concat_tables([table.slice(1, 1), table.slice(2, 1)])
    assert train_log(parts, 10).items_E.tolist() == [0, 1, 2, 3, 4]


def test_history_is_newest_first_cut_and_padded():
    table = queries([[1, 2, 3, 4], [5]], [0, 0])
    assert recent_history(table, 3).tolist() == [[4, 3, 2], [5, -1, -1]]


def test_the_repeat_share_counts_targets_the_user_had_before():
    log = train_log(sequences([[1, 1, 2], [3, 4, 3]], [[0, 1, 1]] * 2), 5)
    assert log.repeat_share == 0.5


def test_popularity_orders_by_train_count_and_a_window_by_recent_count():
    table = sequences([[0, 0, 0, 1, 2, 2]], [[0, 1, 1, 1, 1, 1]], [[1, 2, 3, 4, 5, 6]])
    log = train_log(table, 3)
    recent = np.array([[-1]])
    assert rank(Popularity(log), recent, 3, mask_seen=False).tolist() == [[0, 2, 1]]
    assert rank(Popularity(log, recent=0.3), recent, 3, mask_seen=False).tolist() == [[2, 0, 1]]


def test_transition_follows_the_last_item_and_backs_off_to_popularity():
    table = sequences([[0, 1], [0, 1], [0, 2], [3, 2], [2, 3], [2, 4]], [[0, 1]] * 6)
    model = Transition(train_log(table, 6))
    ranked = rank(model, np.array([[0, 2], [5, -1]]), 3, mask_seen=False)
    assert ranked[0, :2].tolist() == [1, 2]
    assert ranked[1].tolist() == rank(Popularity(train_log(table, 6)), np.array([[5]]), 3, mask_seen=False)[0].tolist()


def test_masked_items_never_come_back_and_leave_padding():
    log = train_log(sequences([[0, 1, 2]], [[0, 1, 1]]), 3)
    assert rank(Popularity(log), np.array([[0, 1]]), 3, mask_seen=True).tolist() == [[2, -1, -1]]


def test_ties_go_to_the_lower_item_row():
    log = train_log(sequences([[3, 1, 4, 2, 0]], [[0, 1, 1, 1, 1]]), 5)
    assert rank(Popularity(log), np.array([[-1]]), 3, mask_seen=False).tolist() == [[0, 1, 2]]


def test_ranking_in_chunks_equals_ranking_at_once():
    log, recent, _ = random_world()
    model = fit_itemknn(Pairs(log), KnnSettings())
    whole = rank(model, recent, 10, mask_seen=True)
    assert np.array_equal(rank(model, recent, 10, mask_seen=True, chunk_bytes=24 * 50 * 7), whole)


def test_similarity_equals_the_formula_worked_by_hand():
    log = train_log(sequences([[0, 1, 0]], [[0, 1, 1]]), 2)
    settings = KnnSettings(
        window=2, distance_decay=1.0, backward=0.5, source_power=0.5, target_power=0.5, shrink=1.0, self_weight=3.0
    )
    similar = fit_itemknn(Pairs(log), settings).similarity_NN.toarray()
    assert similar[0, 1] == pytest.approx((1 + 0.5) / (np.sqrt(2) + 1))
    assert similar[1, 0] == pytest.approx((1 + 0.5) / (np.sqrt(2) + 1))
    assert similar[0, 0] == pytest.approx(3 * (0.5 + 0.25) / (2 + 1))


def test_only_the_strongest_neighbours_are_kept():
    log, _, _ = random_world()
    full = fit_itemknn(Pairs(log), KnnSettings()).similarity_NN.toarray()
    cut = fit_itemknn(Pairs(log), replace(KnnSettings(), neighbours=3)).similarity_NN.toarray()
    assert ((cut > 0).sum(axis=1) <= 3).all()
    assert np.allclose(np.sort(full, axis=1)[:, -3:], np.sort(cut, axis=1)[:, -3:])


def test_sparse_ranks_equal_the_dense_ranking():
    log, recent, targets = random_world()
    model = fit_itemknn(Pairs(log), replace(KnnSettings(), popularity=0.1))
    for mask in (False, True):
        dense = target_ranks(rank(model, recent, 50, mask_seen=mask), targets)
        voted = model.scores(recent).toarray()[np.arange(len(targets)), targets] > 0
        assert np.array_equal(exact_ranks(model, recent, targets, mask_seen=mask)[voted], dense[voted])


def test_everyone_walks_the_circle_and_the_order_aware_baselines_know_the_next_step():
    table, valid, test, items = cycle_world()
    suite = fit_baselines(table, valid, items, 5)
    rankings = suite.rank(recent_history(test, 5), 5)
    targets = test["target"].to_numpy()
    assert suite.mask_seen
    assert measure(rankings["transition"], targets)["hr@1"] == 1.0
    assert measure(rankings["itemknn"], targets)["hr@1"] == 1.0
    assert measure(rankings["popularity"], targets)["hr@1"] < 0.5


def test_where_everyone_repeats_itemknn_recommends_the_item_again_and_nothing_is_masked():
    table, valid, test, items = cycle_world(repeat=True)
    suite = fit_baselines(table, valid, items, 5)
    assert not suite.mask_seen
    ranking = suite.rank(recent_history(test, 5), 5)["itemknn"]
    assert measure(ranking, test["target"].to_numpy())["hr@1"] == 1.0


def test_tuning_is_repeatable_stays_in_its_budget_and_never_ends_below_its_start():
    log, recent, targets = random_world()
    first = tune_itemknn(log, recent, targets, mask_seen=False, budget=12)
    second = tune_itemknn(log, recent, targets, mask_seen=False, budget=12)
    assert first.knn.settings == second.knn.settings
    assert first.tried <= 12
    start = exact_ranks(fit_itemknn(Pairs(log), KnnSettings()), recent, targets, mask_seen=False)
    gain = np.where((start > 0) & (start <= 10), 1 / np.log2(1 + np.maximum(start, 1)), 0).mean()
    assert first.ndcg >= gain


def test_popularity_is_tuned_to_the_recent_past_when_fashion_changed():
    walk = [[0] * 8 + [1] * 2 for _ in range(20)]
    times = [[*range(8), 100, 101]] * 20
    log = train_log(sequences(walk, [[0] + [1] * 9] * 20, times), 2)
    tuned = tune_popularity(log, np.full((5, 1), -1), np.ones(5, dtype=int), mask_seen=False)
    assert tuned.recent < 1.0
