"""Prompts that were read before give the answers of prompts read whole, in bounded memory."""

import threading

import pytest
import torch
from support.synthetic import random_catalog, small_policy

from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.prompt_cache import PromptCache

CATALOG = random_catalog(60, (5, 6, 7))
GROWING = [[1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 9], [7], [1, 2, 3, 4]]


@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
def test_a_history_that_grew_gets_the_answer_of_a_prompt_read_whole(arch: str) -> None:
    policy, prompts = small_policy(CATALOG, arch)
    cache = PromptCache(policy, 2**24)
    for history in GROWING:
        tokens_BP, mask_BP = prompts.encode([history])
        cached = beam(policy, tokens_BP, mask_BP, CATALOG.trie, 10, prefilled=cache.prefill(tokens_BP, mask_BP))
        whole = beam(policy, tokens_BP, mask_BP, CATALOG.trie, 10)
        assert torch.equal(cached.items_BW, whole.items_BW)
        torch.testing.assert_close(cached.logp_BWL, whole.logp_BWL, atol=1e-5, rtol=0)
    assert cache.reused_tokens >= 2 * 3 + 3 * 3 + 2 * 3
    assert len(cache) == len(GROWING) - 1


def test_memory_is_bounded_and_the_least_recently_used_are_evicted_first() -> None:
    policy, prompts = small_policy(CATALOG, "gpt2")
    probe = PromptCache(policy, 2**24)
    probe.prefill(*prompts.encode([[1, 2]]))
    one = probe.bytes
    cache = PromptCache(policy, 2 * one)
    for history in ([1, 2], [3, 4], [1, 2], [5, 6]):
        cache.prefill(*prompts.encode([history]))
        assert cache.bytes <= 2 * one
    before = cache.reused_tokens
    cache.prefill(*prompts.encode([[1, 2]]))
    kept = cache.reused_tokens - before
    before = cache.reused_tokens
    cache.prefill(*prompts.encode([[3, 4]]))
    assert kept > cache.reused_tokens - before


def test_a_prompt_beyond_the_limit_and_a_batch_are_read_and_not_kept() -> None:
    policy, prompts = small_policy(CATALOG, "gpt2")
    cache = PromptCache(policy, 16)
    assert cache.prefill(*prompts.encode([[1, 2]])).hidden_B1D.shape[:2] == (1, 1)
    assert cache.prefill(*prompts.encode([[1, 2], [3]])).hidden_B1D.shape[:2] == (2, 1)
    assert len(cache) == 0 and cache.bytes == 0


def test_threads_share_it() -> None:
    policy, prompts = small_policy(CATALOG, "gpt2")
    wanted = [beam(policy, *prompts.encode([history]), CATALOG.trie, 5).items_BW for history in GROWING]
    cache = PromptCache(policy, 30_000)
    wrong: list[int] = []

    def ask(turn: int) -> None:
        for number in range(24):
            place = (turn + number) % len(GROWING)
            inputs = prompts.encode([GROWING[place]])
            found = beam(policy, *inputs, CATALOG.trie, 5, prefilled=cache.prefill(*inputs))
            if not torch.equal(found.items_BW, wanted[place]):
                wrong.append(place)

    threads = [threading.Thread(target=ask, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.bytes <= 30_000
