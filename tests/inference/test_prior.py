import numpy as np
import pytest
from scipy import sparse

from genrec.errors import InputError
from genrec.inference.prior import RankedItems, mix, normalise, tune_weight
from genrec.metrics import measure


def test_prior_probabilities_sum_to_one_for_every_query_with_a_score():
    scores = sparse.csr_matrix(np.array([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0], [1e-300, 1e-300, 0.0]]))
    for power in (0.5, 1.0, 2.0):
        sums = np.asarray(normalise(scores, power).sum(axis=1)).ravel()
        assert sums == pytest.approx([1.0, 0.0, 1.0])


def test_the_mixture_ranks_by_hand_computed_probabilities():
    items, logp = np.array([[0, 1, -1]]), np.log(np.array([[0.6, 0.3, 1.0]]))
    prior = sparse.csr_matrix(np.array([[0.0, 1.0, 3.0, 0.0]]))
    assert mix(items, logp, prior, 0.0, k=3).tolist() == [[0, 1, -1]]
    assert mix(items, logp, prior, 1.0, k=3).tolist() == [[2, 1, 0]], "the policy fills the list"
    # 0: .5 * .6 = .300, 1: .5 * .3 + .5 * .25 = .275, 2: .5 * .75 = .375
    assert mix(items, logp, prior, 0.5, k=3).tolist() == [[2, 0, 1]]


def test_candidates_outside_the_beam_count_with_the_probability_the_policy_gave_them():
    items, logp = np.array([[0]]), np.log(np.array([[0.3]]))
    prior = sparse.csr_matrix(np.array([[0.0, 0.55, 0.45]]))
    assert mix(items, logp, prior, 0.5, k=2).tolist() == [[1, 2]]
    extra = RankedItems(np.array([[2, 0]]), np.log(np.array([[0.25, 0.3]])))
    assert mix(items, logp, prior, 0.5, extra=extra, k=2).tolist() == [[2, 1]]


def test_an_item_given_twice_counts_once():
    beams = RankedItems(np.array([[1, 1, 0]]), np.log(np.array([[0.2, 0.2, 0.3]])))
    assert beams.probabilities(2).toarray() == pytest.approx(np.array([[0.3, 0.2]]))


def test_a_query_without_prior_keeps_the_order_of_the_policy():
    items, logp = np.array([[3, 1, 2]]), np.log(np.array([[0.5, 0.3, 0.1]]))
    assert mix(items, logp, sparse.csr_matrix((1, 4)), 0.9, k=3).tolist() == [[3, 1, 2]]


def test_the_tuned_weight_favours_the_side_that_ranks_the_target_first():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 30, 40)
    right = np.zeros((40, 30))
    right[np.arange(40), targets] = 1.0
    wrong_items, logp = ((targets + 1) % 30)[:, None], np.zeros((40, 1))
    best = tune_weight(wrong_items, logp, sparse.csr_matrix(right), targets)
    assert best.weight > 0.5
    assert best.ndcg == 1.0
    wrong = np.roll(right, 3, axis=1)
    assert tune_weight(targets[:, None], logp, sparse.csr_matrix(wrong), targets).weight == 0.0


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_weight_outside_zero_and_one_is_refused(weight):
    with pytest.raises(InputError, match="share in"):
        mix(np.array([[0]]), np.array([[0.0]]), sparse.csr_matrix((1, 1)), weight)


def test_negative_scores_and_other_queries_are_refused():
    with pytest.raises(InputError, match="must not be negative"):
        normalise(sparse.csr_matrix(np.array([[-1.0]])))
    with pytest.raises(InputError, match="1 queries of the policy and 2 of the prior"):
        mix(np.array([[0]]), np.array([[0.0]]), sparse.csr_matrix((2, 1)), 0.5)


def test_tuning_counts_the_same_ranks_that_mixing_sorts_out():
    rng = np.random.default_rng(1)
    items = np.stack([rng.permutation(60)[:15] for _ in range(80)])
    logp = np.log(np.sort(rng.dirichlet(np.ones(20), 80)[:, :15], axis=1)[:, ::-1])
    scores = sparse.csr_matrix(rng.integers(0, 4, (80, 60)) * (rng.random((80, 60)) < 0.3))
    targets = rng.integers(0, 60, 80)
    best = tune_weight(items, logp, scores, targets, weights=(0.0, 0.3, 1.0), powers=(1.0, 2.0))
    for (weight, power), ndcg in best.tried.items():
        ranked = mix(items, logp, scores, weight, power=power)
        assert measure(ranked, targets)["ndcg@10"] == pytest.approx(ndcg)
