"""Many sequences behind one prefix, with gradients: the prefix runs through the model once, not once per sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genrec.policy.model import Policy


def states_after(policy: Policy, prefix_P: Tensor, tokens_BS: Tensor) -> Tensor:
    """Hidden states (B, 1 + S, D): of the prefix's last token, then of the tokens of each sequence behind it.

    They and their gradients are those of B sequences of P + S tokens. With gradient checkpointing those run, since
    recomputed layers keep no keys and values.

    Args:
        prefix_P: token ids, at least one.
        tokens_BS: token ids, padded on the right: attention is causal, so nothing before sees the padding.
    """
    (rows, length), prefix = tokens_BS.shape, len(prefix_P)
    device = tokens_BS.device
    positions_X = torch.arange(prefix + length, device=device)
    causal_XX = torch.ones(prefix + length, prefix + length, dtype=torch.bool, device=device).tril()
    if prefix == 1 or policy.recomputes_activations:
        whole_BX = torch.cat([prefix_P.expand(rows, -1), tokens_BS], 1)
        return policy.hidden(whole_BX, positions_X.expand(rows, -1), causal_XX[None, None])[:, prefix - 1 :]
    cache: Any = policy.new_cache()
    before_11PP = causal_XX[:prefix, :prefix][None, None]
    prefix_1PD = policy.hidden(prefix_P[None], positions_X[None, :prefix], before_11PP, cache, start=prefix - 1)
    for layer in cache.layers:
        layer.keys, layer.values = (part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values))
    after_11SX = causal_XX[None, None, prefix:]
    positions_BS = positions_X[prefix:].expand(rows, -1)
    hidden_BSD = policy.hidden(tokens_BS, positions_BS, after_11SX, cache)
    return torch.cat([prefix_1PD[:, -1:].expand(rows, -1, -1), hidden_BSD], 1)
