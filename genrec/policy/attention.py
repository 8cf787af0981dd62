"""Attention in training on a CPU in bfloat16: computed in float32, which is both faster and nearer to the truth.

For sequences of a few hundred tokens the backward of torch's kernel for CPUs takes three to five times as long in
bfloat16 as in float32 (torch 2.11), far more than what a cast of queries, keys and values costs. Elsewhere, and where
no gradients are wanted, attention is transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sdpa_float32_backward"
SHORT = 256
"""Keys up to which float32 was faster; at 540 both take the same."""


def install(model: PreTrainedModel) -> None:
    """Give ``model`` this attention; one that does not take torch's kernel keeps what it has."""
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As ``sdpa_attention_forward``: (B, S, heads, D) of queries, keys and values (B, heads, S or K, D)."""
    slow = query.device.type == "cpu" and torch.is_autocast_enabled("cpu") and query.requires_grad
    if not slow or key.shape[2] > SHORT:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    with torch.autocast("cpu", enabled=False):
        found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return found.to(value.dtype), None
