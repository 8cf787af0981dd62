"""The measures against what others compute: scikit-learn and SciPy where they know the formula, else by hand."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, label_ranking_average_precision_score, ndcg_score, recall_score

from genrec.evaluation.calibration import calibration, reliability
from genrec.evaluation.comparisons import corrected, holm
from genrec.evaluation.judge.agreement import agreement, weighted_kappa
from genrec.evaluation.query_slices import by_label, query_labels
from genrec.evaluation.spread import gini, intra_list_distance, spread
from genrec.metrics import measure, per_query, target_ranks

ITEMS, QUERIES = 30, 200


def world() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores of all items, the whole ranking by them, targets, and the targets as rows of 0 and 1."""
    rng = np.random.default_rng(0)
    scores_QN = rng.permuted(np.tile(np.arange(ITEMS, dtype=float), (QUERIES, 1)), axis=1)
    targets_Q = rng.integers(0, ITEMS, QUERIES)
    return scores_QN, np.argsort(-scores_QN, axis=1), targets_Q, np.eye(ITEMS)[targets_Q]


@pytest.mark.parametrize("k", [1, 5, 10, ITEMS])
def test_ndcg_mrr_and_recall_are_those_of_scikit_learn(k: int) -> None:
    scores_QN, ranked_QN, targets_Q, truth_QN = world()
    found = measure(ranked_QN, targets_Q, (k,))
    assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(truth_QN, scores_QN, k=k))
    chosen_QN = (scores_QN >= ITEMS - k).astype(float)
    assert found[f"hr@{k}"] == pytest.approx(recall_score(truth_QN, chosen_QN, average="samples"))
    inside_Q = truth_QN[np.arange(QUERIES)[:, None], ranked_QN[:, :k]].any(1)
    precision = label_ranking_average_precision_score(truth_QN[inside_Q], scores_QN[inside_Q])
    assert found[f"mrr@{k}"] == pytest.approx(precision * inside_Q.mean()), "with one target it is 1 / rank"


def test_gini_is_half_the_relative_mean_difference_and_distance_that_of_the_pairs() -> None:
    rng = np.random.default_rng(0)
    counts_N = rng.integers(0, 9, 40)
    pairs = np.abs(counts_N[:, None] - counts_N[None, :]).mean()
    assert gini(counts_N) == pytest.approx(pairs / (2 * counts_N.mean()))
    assert gini(np.ones(7)) == pytest.approx(0) and gini(np.eye(5)[0]) == pytest.approx(0.8)
    vectors_ND, lists_QK = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 40, (5, 4))
    lists_QK[0, 2:] = lists_QK[1, 1:] = -1
    wanted = []
    for row in lists_QK:
        items = row[row >= 0]
        one = [
            1 - vectors_ND[a] @ vectors_ND[b] / np.linalg.norm(vectors_ND[a]) / np.linalg.norm(vectors_ND[b])
            for place, a in enumerate(items)
            for b in items[place + 1 :]
        ]
        wanted += [np.mean(one)] if one else []
    assert intra_list_distance(lists_QK, vectors_ND) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_repetition_counts_items_of_the_own_history_alone() -> None:
    ranked_QK, recent_QH = np.array([[0, 1, -1], [2, 3, 4]]), np.array([[1, -1], [0, 1]])
    assert spread(ranked_QK, np.ones(5, int), recent_QH=recent_QH)["repetition@10"] == pytest.approx(1 / 5)


def test_kappa_is_that_of_scikit_learn_and_none_without_variation() -> None:
    rng = np.random.default_rng(0)
    first_S = rng.integers(1, 6, 300)
    second_S = np.clip(first_S + rng.integers(-1, 2, 300), 1, 5)
    wanted = cohen_kappa_score(first_S, second_S, weights="quadratic", labels=[1, 2, 3, 4, 5])
    assert weighted_kappa(first_S, second_S) == pytest.approx(wanted)
    constant = agreement(np.full(4, 3), np.full(4, 3))
    assert constant is not None and constant["kappa"] is None and constant["equal"] == 1
    assert agreement(np.zeros(0, int), np.zeros(0, int)) is None


def test_tests_are_those_of_scipy_and_holm_as_in_a_table_by_hand() -> None:
    rng = np.random.default_rng(0)
    differences = {name: rng.normal(mean, 1, 60) for name, mean in [("a", 0.0), ("b", 0.4), ("c", 0.9)]}
    found = corrected(differences)
    for name, values_Q in differences.items():
        whole = stats.ttest_1samp(values_Q, 0)
        span = whole.confidence_interval(1 - 0.05 / 3)
        assert found[name]["p"] == pytest.approx(whole.pvalue)
        assert (found[name]["all_low"], found[name]["all_high"]) == pytest.approx((span.low, span.high))
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_of_many_systems_that_are_equal_none_is_found_better() -> None:
    rng = np.random.default_rng(1)
    worlds = [corrected({str(n): rng.normal(0, 1, 40) for n in range(20)}) for _ in range(100)]
    plain = np.mean([min(one["p"] for one in found.values()) < 0.05 for found in worlds])
    after = np.mean([min(one["p_holm"] for one in found.values()) < 0.05 for found in worlds])
    assert plain > 0.4 and after < 0.12, (plain, after)


def test_equal_differences_leave_no_doubt() -> None:
    found = corrected({"same": np.zeros(9), "ahead": np.full(9, 0.1)})
    assert found["same"]["p"] == 1 and found["ahead"]["p"] == 0 and found["ahead"]["all_low"] == pytest.approx(0.1)


def test_a_policy_that_means_what_it_says_is_calibrated_and_a_boastful_one_is_not() -> None:
    rng = np.random.default_rng(0)
    p_QK = rng.dirichlet(np.ones(6), 4000)
    order_QK = np.argsort(-p_QK, axis=1)
    targets_Q = np.array([rng.choice(6, p=p_K) for p_K in p_QK])
    logp_QK = np.log(np.take_along_axis(p_QK, order_QK, 1))
    honest = calibration(order_QK[:, :4], logp_QK[:, :4], targets_Q)
    assert honest["first"]["error"] < 0.03 and honest["beams"]["error"] < 0.02
    assert honest["mass"] == pytest.approx(honest["found"], abs=0.02)
    boastful = calibration(order_QK[:, :4], logp_QK[:, :4] / 4, targets_Q)
    assert boastful["first"]["error"] > 0.2
    assert sum(row["queries"] for row in honest["first"]["bins"]) == 4000
    assert reliability(np.zeros(0), np.zeros(0, bool)) == {"bins": [], "error": 0.0}


def test_slices_are_those_of_the_queries_and_add_up() -> None:
    day, hour = 86400, 3600
    items = pa.table({"categories": [["shop", "a"], ["shop", "b"], ["shop"], []]})
    queries = pa.table(
        {
            "history": [[0], [1, 2, 0], [0] * 30],
            "target": pa.array([1, 2, 3], pa.int32()),
            "times": [[10 * day], [day, day, day + hour], [0] * 30],
            "time": [10 * day + 60, day + hour + 7200, 5 * day],
        }
    )
    labels = query_labels(queries, items)
    assert {name: label_Q.tolist() for name, label_Q in labels.items()} == {
        "history length": ["1", "2–4", "20+"],
        "category": ["shop", "shop", "none"],
        "repeat": ["new", "repeat", "new"],
        "day": ["same day", "same day", "later"],
        "session": ["within a session", "first of a session", "first of a session"],
    }
    values = per_query(target_ranks(np.array([[1], [0], [3]]), np.array([1, 2, 3])), (10,))
    table = by_label(values, labels["repeat"])
    assert table["new"] == {"queries": 2, "hr@10": 1.0, "ndcg@10": 1.0} and table["repeat"]["hr@10"] == 0
    dates = queries.set_column(3, "time", pa.array([10 * day, 2 * day + hour, 5 * day]))
    assert "session" not in query_labels(dates, items), "dates alone tell no sessions"
    assert "day" not in query_labels(queries.set_column(3, "time", pa.nulls(3, pa.int64())), items)


def test_a_category_that_begins_with_a_digit_of_another_kind_is_a_label():
    labels = np.array(["① new", "① new", "² x", "3+"])
    assert set(by_label({"hr@10": np.ones(4)}, labels)) == {"① new", "² x", "3+"}
