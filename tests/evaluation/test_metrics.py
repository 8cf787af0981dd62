import math

import numpy as np
import pytest

from genrec.baselines.buckets import popularity_bucket
from genrec.errors import InputError
from genrec.evaluation.intervals import intervals, paired
from genrec.evaluation.slices import by_bucket, sid_use
from genrec.evaluation.spread import of_targets, spread
from genrec.metrics import (
    means,
    measure,
    per_query,
    prefix_per_query,
    prefix_ranks,
    sid_numbers,
    sid_ranking,
    sid_target_ranks,
    target_ranks,
)


def test_ranks_count_from_one_and_zero_means_missing():
    ranked = np.array([[4, 2, 9], [1, 0, -1], [5, 6, 7]])
    assert target_ranks(ranked, np.array([2, 1, 8])).tolist() == [2, 1, 0]


def test_hit_rate_and_ndcg_match_hand_computed_values():
    ranked = np.array([[4, 2, 9], [1, 0, -1], [5, 6, 7], [3, 1, 0]])
    result = measure(ranked, np.array([2, 1, 8, 0]), (1, 2, 3))
    assert result["hr@1"] == 0.25
    assert result["hr@3"] == 0.75
    assert result["ndcg@2"] == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert result["ndcg@3"] == pytest.approx((1 + 1 / math.log2(3) + 0.5) / 4)


def test_items_with_the_same_codes_count_once_at_the_best_place_of_the_id_ranking():
    sid = sid_numbers(np.array([[1, 1], [1, 1], [2, 1], [0, 5]]))
    assert sid[0] == sid[1]
    assert len(set(sid.tolist())) == 3
    ranked = np.array([[0, 1, 3, 2], [2, -1, -1, -1]])
    assert sid_ranking(ranked, sid).tolist() == [[sid[0], sid[3], sid[2], -1], [sid[2], -1, -1, -1]]


def test_a_colliding_item_hits_at_id_level_but_not_at_item_level():
    sid = np.array([0, 0, 1])
    ranked, target = np.array([[2, 0]]), np.array([1])
    assert target_ranks(ranked, target).tolist() == [0]
    assert sid_target_ranks(ranked, target, sid).tolist() == [2]


def test_prefixes_match_hand_computed_values():
    codes = np.array([[1, 1, 0], [1, 1, 1], [1, 2, 0], [2, 1, 0]])
    ranked = np.array([[3, 2, 1, 0], [3, -1, -1, -1], [3, 0, 2, -1]])
    ranks = prefix_ranks(ranked, np.array([0, 1, 1]), codes)
    assert ranks.tolist() == [[2, 3, 4], [0, 0, 0], [2, 2, 0]]
    found = means(prefix_per_query(ranks, (2, 4)))
    assert found == pytest.approx(
        {"prefix@1@2": 2 / 3, "prefix@2@2": 1 / 3, "prefix@3@2": 0, "prefix@1@4": 2 / 3, "prefix@2@4": 2 / 3}
        | {"prefix@3@4": 1 / 3}
    )


def test_prefixes_agree_with_a_search_item_by_item_and_the_whole_prefix_with_the_hit_rate():
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, 4, (60, 3)), axis=0)
    targets = rng.integers(0, len(codes), 80)
    ranked = np.stack([rng.permutation(len(codes))[:12] for _ in targets])
    ranked[:, 9:][rng.random((80, 3)) < 0.5] = -1
    values = prefix_per_query(prefix_ranks(ranked, targets, codes), (1, 5, 12))
    for level in (1, 2, 3):
        for k in (1, 5, 12):
            wanted = [
                float(any(item >= 0 and tuple(codes[item][:level]) == tuple(codes[target][:level]) for item in row[:k]))
                for row, target in zip(ranked, targets, strict=True)
            ]
            assert values[f"prefix@{level}@{k}"].tolist() == wanted
    hits = per_query(target_ranks(ranked, targets), (1, 5, 12))
    assert all((values[f"prefix@3@{k}"] == hits[f"hr@{k}"]).all() for k in (1, 5, 12))


def test_padding_has_no_prefix_and_an_empty_ranking_no_hit():
    codes = np.array([[0], [1]])
    assert prefix_ranks(np.array([[-1, 0]]), np.array([0]), codes).tolist() == [[2]]
    assert prefix_ranks(np.zeros((1, 0), int), np.array([0]), codes).tolist() == [[0]]


def test_padding_is_never_a_hit():
    assert target_ranks(np.array([[-1, -1]]), np.array([0])).tolist() == [0]
    assert sid_target_ranks(np.array([[-1, -1]]), np.array([0]), np.array([0, 1])).tolist() == [0]


@pytest.mark.parametrize(("ranked", "targets"), [(np.zeros((2, 3), int), np.zeros(3, int)), (np.zeros(3, int),) * 2])
def test_rankings_that_do_not_fit_the_targets_are_refused(ranked, targets):
    with pytest.raises(InputError, match="do not fit"):
        target_ranks(ranked, targets)


def test_a_negative_target_is_refused():
    with pytest.raises(InputError, match="item rows from 0"):
        target_ranks(np.zeros((1, 3), int), np.array([-1]))


def test_the_interval_of_a_coin_agrees_with_the_binomial_distribution():
    coin = np.random.default_rng(1).permutation(np.repeat([0.0, 1.0], [600, 400]))
    low, high = intervals({"hr@10": coin}, 4000, seed=0)["hr@10"]
    half = 1.96 * math.sqrt(0.4 * 0.6 / 1000)
    assert low == pytest.approx(0.4 - half, abs=0.003)
    assert high == pytest.approx(0.4 + half, abs=0.003)


def test_intervals_repeat_with_the_same_seed_and_do_not_depend_on_the_block_size(monkeypatch):
    values = {"hr@10": np.random.default_rng(0).random(50)}
    first = intervals(values, 200, seed=3)
    monkeypatch.setattr("genrec.evaluation.intervals.DRAWS_AT_ONCE", 50 * 7)
    assert intervals(values, 200, seed=3) == first
    assert intervals(values, 200, seed=4) != first


def test_a_constant_lead_has_an_interval_without_width_and_every_resample_above_zero():
    theirs = np.random.default_rng(0).random(300)
    difference = paired({"ndcg@10": theirs + 0.25}, {"ndcg@10": theirs}, 100, seed=0)["ndcg@10"]
    assert difference["low"] == pytest.approx(0.25)
    assert difference["high"] == pytest.approx(0.25)
    assert difference["share_above_zero"] == 1.0


def test_rankings_of_different_queries_cannot_be_paired():
    with pytest.raises(InputError, match="same queries"):
        paired({"hr@1": np.zeros(3)}, {"hr@1": np.zeros(4)}, 10, seed=0)


def test_no_queries_cannot_be_resampled():
    with pytest.raises(InputError, match="test split empty"):
        intervals({"hr@1": np.zeros(0)}, 10, seed=0)


def test_buckets_split_the_traffic_in_thirds_and_keep_unseen_items_apart():
    bucket = popularity_bucket(np.array([1, 30, 10, 0, 10, 10, 29]))
    assert bucket.tolist() == [2, 0, 1, 3, 2, 2, 1]


def test_bucket_means_weigh_up_to_the_whole():
    rng = np.random.default_rng(0)
    targets, bucket = rng.integers(0, 40, 500), popularity_bucket(rng.integers(0, 9, 40))
    values = per_query(rng.integers(0, 60, 500), (10,))
    table = by_bucket(values, targets, bucket)
    total = sum(row["queries"] * row["hr@10"] for row in table.values())
    assert total == pytest.approx(values["hr@10"].sum())


def test_what_is_recommended_counts_each_item_once_and_no_padding():
    counts = np.array([9, 4, 0, 5])
    found = spread(np.array([[0, 1, -1], [1, 0, 2]]), counts, k=2)
    shares = {"gini@2": 0.5, "novelty@2": -math.log2(10 / 22 * 5 / 22) / 2}
    assert found == pytest.approx({"coverage@2": 0.5, "new_items@2": 0.5, "popularity@2": 6.5, **shares})
    assert of_targets(np.array([0, 2]), counts) == {"popularity": 4.5, "new_items": 0.5}
    nothing = spread(np.array([[-1, -1]]), counts, np.array([0, 0, 1, 1]))
    assert nothing["coverage@10"] == nothing["new_items@10"] == nothing["unique_categories@10"] == 0


@pytest.mark.parametrize(("items", "bits", "number"), [([0, 1], 0.0, 1), ([0, 2, 3], 1.0, 2), ([3, -1], 0.0, 0)])
def test_one_category_has_no_entropy_and_an_even_pair_one_bit(items: list[int], bits: float, number: int):
    found = spread(np.array([items]), np.ones(4), np.array([0, 0, 1, -1]))
    assert found["category_entropy@10"] == pytest.approx(bits)
    assert found["unique_categories@10"] == number


def test_items_without_categories_have_no_figures_of_them():
    assert "category_entropy@10" not in spread(np.array([[0, 1]]), np.ones(2), np.full(2, -1))


def test_code_use_counts_codes_and_even_use_has_full_perplexity():
    use = sid_use(np.array([[0, 0], [1, 0], [2, 0], [3, 0]]), (4, 8))
    assert (use["items"], use["distinct"]) == (4, 4)
    assert use["levels"][0]["perplexity"] == pytest.approx(4.0)
    assert use["levels"][1] == {"size": 8, "used": 1, "perplexity": 1.0, "counts": [4, 0, 0, 0, 0, 0, 0, 0]}
