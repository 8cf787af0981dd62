import numpy as np
import pytest

from genrec.data.splits import Samples, chronological, cut_points, given, hash_ids, hash_limit, leave_one_out
from genrec.errors import InputError


def test_leave_one_out_by_the_number_of_events():
    bounds = np.array([0, 1, 3, 6, 11])
    assert leave_one_out(bounds).tolist() == [0, 0, 1, 0, 2, 3, 0, 1, 1, 2, 3]


def test_a_given_split_loses_its_users_first_events():
    assert given(np.array([1, 1, 2, 3, 3], np.int8), np.array([0, 3, 5])).tolist() == [0, 1, 2, 0, 3]


def test_a_train_target_after_a_test_target_is_refused():
    with pytest.raises(InputError, match="a train target after a test target"):
        given(np.array([0, 3, 1], np.int8), np.array([0, 3]))


@pytest.mark.parametrize("total", [1, 5, 10, 97, 1000])
def test_the_cuts_are_those_of_a_stable_sort_of_all_samples(total):
    rng = np.random.default_rng(total)
    time = rng.integers(0, 7, total)
    order = rng.permutation(total)
    user, place = order // 5, order % 5
    buckets = [Samples(time[b::3], user[b::3], place[b::3]) for b in range(3)]
    cuts = cut_points(lambda: iter(buckets))
    ranked = np.lexsort((place, user, time))
    wanted = np.empty(total, int)
    wanted[ranked] = 1 + (np.arange(total) >= int(total * 0.8)) + (np.arange(total) >= int(total * 0.9))
    for b, bucket in enumerate(buckets):
        codes = chronological(bucket, np.zeros(1, int), cuts)
        assert codes.tolist() == wanted[b::3].tolist()


def test_the_sample_of_ids_has_the_size_that_was_asked_for_and_does_not_depend_on_buckets():
    ids = np.arange(1000)
    limit = hash_limit([ids[:300], ids[300:]], 50)
    chosen = ids[hash_ids(ids) <= np.uint64(limit)]
    assert len(chosen) == 50
    assert hash_limit([ids], 50) == limit
    assert chosen.std() > 200  # spread over all ids
    assert hash_limit([ids], 0) is None
    assert hash_limit([ids], 1000) is None
