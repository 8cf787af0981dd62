from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from genrec.config import Filters
from genrec.data.filters import first_of_pair, k_core, keep_titles, last_of_user, users_per_item, window
from genrec.errors import InputError


def naive_core(pairs, user_core, item_core):
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        kept = [(u, i) for u, i in pairs if users[u] >= user_core and items[i] >= item_core]
        if len(kept) == len(pairs):
            return {i for _, i in kept}
        pairs = kept


@pytest.mark.parametrize("seed", range(5))
def test_the_k_core_over_buckets_equals_that_of_the_whole_log(seed):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 60, 300), rng.integers(0, 40, 300)
    order = np.argsort(user, kind="stable")
    user, item = user[order], item[order]
    buckets = [(user[user % 3 == b], item[user % 3 == b]) for b in range(3)]
    alive = k_core(lambda: iter(buckets), np.ones(40, bool), 4, 6)
    assert set(np.flatnonzero(alive)) == naive_core(list(zip(user, item, strict=True)), 4, 6)


def test_a_chain_of_removals_is_followed_to_its_end():
    # Item 3 has one event; without it user 2 has one; without user 2 item 2 has one; and so on to nothing.
    user = np.array([0, 0, 1, 1, 2, 2])
    item = np.array([0, 1, 1, 2, 2, 3])
    assert not k_core(lambda: [(user, item)], np.ones(4, bool), 2, 2).any()


def test_an_items_users_are_counted_once_each():
    user, item = np.array([0, 0, 0, 1, 2]), np.array([1, 1, 0, 1, 1])
    assert users_per_item(user, item, 3).tolist() == [1, 3, 0]


def test_only_the_first_event_of_a_pair_stays():
    user, item = np.array([0, 0, 0, 1, 1]), np.array([5, 6, 5, 5, 5])
    assert first_of_pair(user, item, 7).tolist() == [True, True, False, True, False]


def test_only_the_last_events_of_each_user_stay():
    assert last_of_user(np.array([0, 0, 0, 1, 2, 2]), 2).tolist() == [False, True, True, True, True, True]


def test_titles_are_kept_by_presence_and_length():
    titles = pa.chunked_array([["one two three", "", None, "  one  two "]])
    assert keep_titles(titles, Filters(require_title=True)).tolist() == [True, False, False, True]
    assert keep_titles(titles, Filters(title_words=2)).tolist() == [False, True, True, True]


def test_the_window_is_read_as_utc_dates():
    assert window(Filters(start="1970-01-02", end="1970-01-03")) == (86400, 172800)
    assert window(Filters()) is None
    with pytest.raises(InputError, match="not an ISO date"):
        window(Filters(start="yesterday"))
    with pytest.raises(InputError, match="not before"):
        window(Filters(start="2018-01-01", end="2017-01-01"))
