"""Policies from scratch: a small GPT-2 or Qwen3 over semantic IDs, and over the bytes of text where it has to talk."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from genrec.config import PolicyConfig
from genrec.errors import InputError
from genrec.policy.chat.byte_tokenizer import byte_tokenizer
from genrec.policy.context import ContextTokens
from genrec.policy.item_rows import make_item_rows
from genrec.policy.model import Policy
from genrec.policy.prompts import DENSE_WINDOW, Prompts, SidTokens
from genrec.sid.catalog import Catalog

PAD, BOS, SPECIALS = 0, 1, 2
"""Token ids of padding and of the beginning of a sequence, and how many such tokens there are. The vocabulary is
these, then the bytes of text (if the policy knows text), then the SID block."""

TEXT_POSITIONS = 8192
"""Longest conversation in bytes; rotary positions need no table, so a large number costs nothing."""


def build_scratch(settings: PolicyConfig, catalog: Catalog, max_history: int) -> tuple[Policy, Prompts]:
    """A policy with random weights, and its prompts ``<bos>`` + SIDs.

    Raises:
        InputError: ``policy.hidden`` is not a multiple of ``policy.heads``.
    """
    if settings.hidden % settings.heads:
        raise InputError(
            f"got policy.hidden={settings.hidden} and policy.heads={settings.heads}; "
            "policy.hidden must be a multiple of policy.heads"
        )
    base = SPECIALS if settings.tokenizer == "none" else len(byte_tokenizer())
    sids = SidTokens(base, catalog.level_sizes, style=settings.sid_tokens, context=ContextTokens.of(settings.context))
    positions = 1 + (catalog.levels + sids.context.per_item) * (DENSE_WINDOW * max_history + 1)
    if settings.tokenizer != "none":
        positions = max(positions, TEXT_POSITIONS)
    model = (_gpt2 if settings.arch == "gpt2" else _qwen3)(settings, base + sids.count, positions)
    items, form = make_item_rows(settings, catalog, settings.hidden, sids)
    policy = Policy(model, sids, precision=getattr(torch, settings.dtype), items=items)
    return policy, Prompts(catalog, sids, [BOS], [], PAD, max_history, form)


def _gpt2(settings: PolicyConfig, vocabulary: int, positions: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=positions,
            n_embd=settings.hidden,
            n_layer=settings.layers,
            n_head=settings.heads,
            embd_pdrop=settings.dropout,
            attn_pdrop=settings.dropout,
            resid_pdrop=settings.dropout,
            activation_function="relu",
            bos_token_id=BOS,
            eos_token_id=None,
            pad_token_id=PAD,
        )
    )


def _qwen3(settings: PolicyConfig, vocabulary: int, positions: int) -> PreTrainedModel:
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            max_position_embeddings=positions,
            hidden_size=settings.hidden,
            intermediate_size=4 * settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            head_dim=settings.hidden // settings.heads,
            attention_dropout=settings.dropout,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=None,
            pad_token_id=PAD,
        )
    )
    _drop_where_gpt2_does(model, settings.dropout)
    return model


def _drop_where_gpt2_does(model: Qwen3ForCausalLM, share: float) -> None:
    """Dropout on embeddings and on what attention and MLP add to the residual stream; Qwen3 has it in attention alone.

    By hooks, which leave the names of the weights as they are.
    """

    def drop(module: nn.Module, _inputs: object, output_BSD: Tensor) -> Tensor:
        return F.dropout(output_BSD, share, module.training)

    def drop_embeddings(body: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
        return inputs, {**options, "inputs_embeds": F.dropout(options["inputs_embeds"], share, body.training)}

    if share:
        model.model.register_forward_pre_hook(drop_embeddings, with_kwargs=True)
        for name, module in model.named_modules():
            if name.endswith(("o_proj", "down_proj")):
                module.register_forward_hook(drop)
