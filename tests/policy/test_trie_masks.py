"""The masks of a request's constraint, shared by threads."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.synthetic import random_catalog

from genrec.policy.decoding.trie_masks import TrieMaskCache, open_nodes

CATALOG = random_catalog(60, (5, 6, 7))


@pytest.fixture
def hasty_threads():
    """Threads take turns after every microsecond, so that a race that can happen does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_share_a_full_cache_of_masks(hasty_threads) -> None:
    masks = [torch.arange(60) % 7 == number % 7 if number % 8 else torch.arange(60) == number for number in range(40)]
    wanted = [open_nodes(CATALOG.trie, mask_N) for mask_N in masks]
    cache, start = TrieMaskCache(CATALOG.trie, remember=2), threading.Barrier(8)

    def ask(turn: int) -> int:
        start.wait()
        wrong = 0
        for number in range(200):
            place = (turn * 7 + number) % len(masks)
            found = cache.masks([masks[place]])
            assert found is not None
            wrong += any(not torch.equal(a[0], b) for a, b in zip(found._open, wanted[place], strict=True))
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 0
    assert len(cache._known) <= 2
