"""A cache of recent prompts: where a new prompt begins as a cached one does, only the rest runs through the model.

That is the case when a user's history has grown since the last request.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple, cast

from torch import Tensor
from transformers import DynamicCache

from genrec.policy.decoding.tree import prompt_mask, prompt_positions
from genrec.policy.model import Policy


class Prefilled(NamedTuple):
    """Prompts after their forward pass: the hidden state (B, 1, D) of the last token, and the KV cache."""

    hidden_B1D: Tensor
    cache: DynamicCache

    def copy(self) -> Prefilled:
        """The same for one more search: a search extends its cache by longer tensors and leaves these as they are."""
        cache, layers = DynamicCache(), cast("Any", self.cache).layers
        for index, layer in enumerate(layers):
            cache.update(layer.keys, layer.values, index)
        return Prefilled(self.hidden_B1D, cache)


class CachedPrompt(NamedTuple):
    """Keys and values of one prompt, a pair (1, heads, P, D) per layer; the hash of each prefix; the size in bytes."""

    layers: list[tuple[Tensor, Tensor]]
    hashes: list[int]
    size: int


def prefill(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor) -> Prefilled:
    """Run whole left-padded prompts through the model; ``mask_BP`` is True at real tokens."""
    cache = policy.new_cache()
    last = tokens_BP.shape[1] - 1
    hidden_BPD = policy.hidden(tokens_BP, prompt_positions(mask_BP), prompt_mask(mask_BP), cache, start=last)
    return Prefilled(hidden_BPD[:, -1:], cache)


class PromptCache:
    """Keys and values of the most recent prompts, up to ``limit`` bytes; safe to share among threads.

    Attention is causal, so keys and values of a prefix do not depend on what follows: the result equals that of the
    whole prompt, up to rounding. Prefixes are found by hash and then compared token by token.

    Args:
        policy: its weights must not change during the life of the cache.
        limit: bytes of keys and values; beyond it the least recently used prompts are evicted.
    """

    def __init__(self, policy: Policy, limit: int) -> None:
        self._policy, self._limit = policy, limit
        self._prompts: OrderedDict[tuple[int, ...], CachedPrompt] = OrderedDict()
        self._prefixes: dict[int, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self.bytes = 0
        self.reused_tokens = 0

    def __len__(self) -> int:
        return len(self._prompts)

    def prefill(self, tokens_BP: Tensor, mask_BP: Tensor) -> Prefilled:
        """As ``prefill``, but one unpadded prompt skips its longest cached prefix and is cached; others are neither."""
        if len(tokens_BP) != 1 or not bool(mask_BP.all()):
            return prefill(self._policy, tokens_BP, mask_BP)
        tokens = tuple(tokens_BP[0].tolist())
        hashes = _prefix_hashes(tokens)
        cache, known = self._policy.new_cache(), 0
        with self._lock:
            found = self._longest_prefix(tokens, hashes)
        if found is not None:
            prompt, known = found
            for layer, (keys, values) in enumerate(prompt.layers):
                cache.update(keys[:, :, :known], values[:, :, :known], layer)
        rest_BS, positions_BS = tokens_BP[:, known:], prompt_positions(mask_BP)[:, known:]
        mask_B1SP, last = prompt_mask(mask_BP)[:, :, known:], rest_BS.shape[1] - 1
        earlier_BP = tokens_BP[:, :known]
        hidden_BSD = self._policy.hidden(rest_BS, positions_BS, mask_B1SP, cache, start=last, earlier_BP=earlier_BP)
        # A search extends the cache by making longer tensors, so the tensors kept here do not change.
        filled: Any = cache.layers
        layers = [(layer.keys, layer.values) for layer in filled]
        with self._lock:
            self.reused_tokens += known
            self._store(tokens, CachedPrompt(layers, hashes, sum(k.nbytes + v.nbytes for k, v in layers)))
        return Prefilled(hidden_BSD[:, -1:], cache)

    def _longest_prefix(self, tokens: tuple[int, ...], hashes: list[int]) -> tuple[CachedPrompt, int] | None:
        """The cached prompt with the longest common prefix and that length: at most all but the last token."""
        for length in range(len(tokens) - 1, 0, -1):
            other = self._prefixes.get(hashes[length - 1])
            if other is not None and other[:length] == tokens[:length]:
                self._prompts.move_to_end(other)
                return self._prompts[other], length
        return None

    def _store(self, tokens: tuple[int, ...], prompt: CachedPrompt) -> None:
        if prompt.size > self._limit:
            return
        if tokens in self._prompts:
            self._evict(tokens)
        while self.bytes + prompt.size > self._limit:
            self._evict(next(iter(self._prompts)))
        self._prompts[tokens] = prompt
        self.bytes += prompt.size
        for value in prompt.hashes:
            self._prefixes[value] = tokens

    def _evict(self, tokens: tuple[int, ...]) -> None:
        prompt = self._prompts.pop(tokens)
        self.bytes -= prompt.size
        for value in prompt.hashes:
            if self._prefixes.get(value) == tokens:
                del self._prefixes[value]


def _prefix_hashes(tokens: tuple[int, ...]) -> list[int]:
    """A hash of every prefix, from the first token on."""
    hashes: list[int] = []
    so_far = 0
    for token in tokens:
        so_far = hash((so_far, token))
        hashes.append(so_far)
    return hashes
