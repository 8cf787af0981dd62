"""Beam search for semantic IDs with the decoder of an encoder-decoder, along the trie of all items.

The beams of a query are the columns of one sequence, in which a code sees itself and its ancestors (tree attention). So
the encoder runs once a query, its keys and values exist once for all beams, and nothing is copied when beams move.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from genrec.sid.trie import Trie


class CodeWriter(Protocol):
    """What the search asks of a network."""

    @property
    def trie(self) -> Trie:
        """The trie of all items."""
        ...

    def token(self, level: int, codes_x: Tensor) -> Tensor:
        """The token of each code (…,) of ``level``."""
        ...

    def is_open(self, depth: int, nodes_x: Tensor) -> Tensor:
        """Whether what comes after each node (…,) of ``depth`` depends on the network, (…,) bool."""
        ...

    def log_probabilities(self, level: int, hidden_xD: Tensor, exists_xK: Tensor) -> Tensor:
        """Of the codes of ``level`` after states (…, D), (…, K); minus infinity where ``exists_xK`` is False."""
        ...


class BeamItems(NamedTuple):
    """Items (B, W) and their log-probabilities, best first; minus infinity where a beam is empty."""

    items_BW: Tensor
    logp_BW: Tensor


class CodeTree:
    """A T5 decoder over codes that are appended level by level, behind the states ``encoded_BSD``.

    Args:
        decoder: a ``T5Stack``, in evaluation mode.
        mask_BS: True at real tokens of the encoder.
    """

    def __init__(self, decoder: Any, encoded_BSD: Tensor, mask_BS: Tensor) -> None:
        self._decoder, self._encoded_BSD = decoder, encoded_BSD
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._cross_B11S = _additive(mask_BS, encoded_BSD)[:, None, None]
        self._depth_T = torch.empty(0, dtype=torch.long, device=mask_BS.device)

    def append(self, tokens_BM: Tensor, depth: int, seen_BMT: Tensor) -> Tensor:
        """The states (B, M, D) at M tokens of ``depth``, each of which sees ``seen_BMT`` of the T tokens so far.

        These include the M new ones.
        """
        decoder = self._decoder
        self._depth_T = torch.cat([self._depth_T, self._depth_T.new_full((tokens_BM.shape[1],), depth)])
        # Distances are those of a single path: between two depths, wherever their tokens stand.
        by_distance_HT = decoder.block[0].layer[0].SelfAttention.compute_bias(depth + 1, depth + 1)[0, :, depth]
        bias_BHMT = by_distance_HT[:, None, self._depth_T] + _additive(seen_BMT, self._encoded_BSD)[:, None]
        states_BMD = decoder.embed_tokens(tokens_BM)
        for block in decoder.block:
            states_BMD = block(
                states_BMD,
                position_bias=bias_BHMT,
                encoder_hidden_states=self._encoded_BSD,
                encoder_decoder_position_bias=self._cross_B11S,
                past_key_values=self._cache,
            )[0]
        return decoder.final_layer_norm(states_BMD)

    def nothing(self, batch: int, width: int) -> Tensor:
        """States (B, W, D) that nothing depends on."""
        return self._encoded_BSD.new_zeros(batch, width, self._encoded_BSD.shape[-1])


def beam(network: CodeWriter, tree: CodeTree, start_B: Tensor, width: int) -> BeamItems:
    """The ``width`` most probable items of each query, all if there are fewer; ``start_B`` are the first tokens.

    Exact where ``width`` is at least the number of items; else items whose prefix was cut are missing.
    """
    trie, device = network.trie, start_B.device
    rows_B1 = torch.arange(len(start_B), device=device)[:, None]
    nodes_BW = torch.zeros(len(start_B), 1, dtype=torch.long, device=device)
    seen_BWT = torch.ones(len(start_B), 1, 1, dtype=torch.bool, device=device)
    hidden_BWD = tree.append(start_B[:, None], 0, seen_BWT)
    logp_BW = torch.zeros(nodes_BW.shape, device=device)
    for level in range(trie.depth):
        children_BWK = trie.step(level, nodes_BW.clamp(min=0))
        step_BWK = network.log_probabilities(level, hidden_BWD, children_BWK >= 0)
        total_BX = (logp_BW[..., None] + step_BWK).flatten(1)
        logp_BW, best_BW = total_BX.topk(min(width, total_BX.shape[1]))
        codes_BW, parents_BW = best_BW % step_BWK.shape[-1], best_BW // step_BWK.shape[-1]
        nodes_BW = children_BWK[rows_B1, parents_BW, codes_BW].long().masked_fill(logp_BW == -torch.inf, -1)
        if level < trie.depth - 1:
            open_BW = (nodes_BW >= 0) & network.is_open(level + 1, nodes_BW.clamp(min=0))
            tokens_BW, seen_BWT = network.token(level, codes_BW), seen_BWT[rows_B1, parents_BW]
            hidden_BWD, seen_BWT = _grown(tree, level + 1, tokens_BW, open_BW, seen_BWT)
    return BeamItems(trie.items_at(nodes_BW.clamp(min=0)), logp_BW)


def _grown(tree: CodeTree, depth: int, tokens_BW: Tensor, open_BW: Tensor, seen_BWT: Tensor) -> tuple[Tensor, Tensor]:
    """The states (B, W, D) of the open beams, undefined at the others, and what each beam sees now (B, W, T + M).

    M is the largest number of open beams of a query: they stand first, and the others are left out.
    """
    count = int(open_BW.sum(1).max())
    order_BW = open_BW.int().argsort(dim=1, descending=True, stable=True)
    place_BW = order_BW.argsort(dim=1)
    own_BWM = place_BW[..., None] == torch.arange(count, device=place_BW.device)
    seen_BWT = torch.cat([seen_BWT, own_BWM], dim=-1)
    if not count:
        return tree.nothing(*open_BW.shape), seen_BWT
    first_BM, rows_B1 = order_BW[:, :count], torch.arange(len(order_BW), device=order_BW.device)[:, None]
    states_BMD = tree.append(tokens_BW[rows_B1, first_BM], depth, seen_BWT[rows_B1, first_BM])
    return states_BMD[rows_B1, place_BW.clamp(max=count - 1)], seen_BWT


def _additive(allowed_x: Tensor, like: Tensor) -> Tensor:
    """0 where attention is allowed, else the lowest number."""
    return like.new_zeros(allowed_x.shape).masked_fill(~allowed_x, torch.finfo(like.dtype).min)
