"""The prompts that were read lately: one that begins as another did has only its rest read, as when a history grew."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

from torch import Tensor

from genrec.policy.decoding.tree import prompt_mask, prompt_positions
from genrec.policy.model import Policy


class Read(NamedTuple):
    """A prompt that was read: the hidden state of its last token, (B, 1, D), and the KV cache behind it."""

    hidden_B1D: Tensor
    cache: Any


class CachedPrompt(NamedTuple):
    """Keys and values of one prompt, a pair per layer, each (1, heads, P, D), and the hash of each of its prefixes."""

    layers: list[tuple[Tensor, Tensor]]
    hashes: list[int]
    size: int


def read(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor) -> Read:
    """Read left-padded prompts from their beginning."""
    cache = policy.new_cache()
    last = tokens_BP.shape[1] - 1
    hidden_BPD = policy.hidden(tokens_BP, prompt_positions(mask_BP), prompt_mask(mask_BP), cache, start=last)
    return Read(hidden_BPD[:, -1:], cache)


class PromptCache:
    """Keys and values of the prompts that were read last, up to ``limit`` bytes; threads may share it.

    Attention is causal, so keys and values of a prefix do not depend on what follows: the answer is that of a prompt
    read whole, up to rounding. Prefixes are found by hash and compared token by token.

    Args:
        policy: whose weights must not change while this lives.
        limit: bytes of keys and values; the least recently used go first.
    """

    def __init__(self, policy: Policy, limit: int) -> None:
        self._policy, self._limit = policy, limit
        self._kept: OrderedDict[tuple[int, ...], CachedPrompt] = OrderedDict()
        self._prefixes: dict[int, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self.bytes = 0
        self.reused_tokens = 0

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, tokens_BP: Tensor, mask_BP: Tensor) -> Read:
        """Read one prompt from where it leaves the known ones; a batch, or a padded prompt, from its beginning."""
        if len(tokens_BP) != 1 or not bool(mask_BP.all()):
            return read(self._policy, tokens_BP, mask_BP)
        tokens = tuple(tokens_BP[0].tolist())
        hashes = _prefix_hashes(tokens)
        cache, known = self._policy.new_cache(), 0
        with self._lock:
            found = self._longest(tokens, hashes)
        if found is not None:
            kept, known = found
            for layer, (keys, values) in enumerate(kept.layers):
                cache.update(keys[:, :, :known], values[:, :, :known], layer)
        rest_BS, positions_BS = tokens_BP[:, known:], prompt_positions(mask_BP)[:, known:]
        mask_B1SP, last = prompt_mask(mask_BP)[:, :, known:], rest_BS.shape[1] - 1
        hidden_BSD = self._policy.hidden(rest_BS, positions_BS, mask_B1SP, cache, start=last)
        # The search behind this appends to the cache by making longer tensors: these stay as they are.
        read_layers: Any = cache.layers
        layers = [(layer.keys, layer.values) for layer in read_layers]
        with self._lock:
            self.reused_tokens += known
            self._keep(tokens, CachedPrompt(layers, hashes, sum(k.nbytes + v.nbytes for k, v in layers)))
        return Read(hidden_BSD[:, -1:], cache)

    def _longest(self, tokens: tuple[int, ...], hashes: list[int]) -> tuple[CachedPrompt, int] | None:
        """The known prompt with the longest common prefix, and its length: all but the last token at most."""
        for length in range(len(tokens) - 1, 0, -1):
            other = self._prefixes.get(hashes[length - 1])
            if other is not None and other[:length] == tokens[:length]:
                self._kept.move_to_end(other)
                return self._kept[other], length
        return None

    def _keep(self, tokens: tuple[int, ...], kept: CachedPrompt) -> None:
        if kept.size > self._limit:
            return
        if tokens in self._kept:
            self._drop(tokens)
        while self.bytes + kept.size > self._limit:
            self._drop(next(iter(self._kept)))
        self._kept[tokens] = kept
        self.bytes += kept.size
        for value in kept.hashes:
            self._prefixes[value] = tokens

    def _drop(self, tokens: tuple[int, ...]) -> None:
        kept = self._kept.pop(tokens)
        self.bytes -= kept.size
        for value in kept.hashes:
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
