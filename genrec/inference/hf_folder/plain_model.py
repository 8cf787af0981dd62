"""A policy as a plain Hugging Face model: adapters merged, SID embeddings and rows of items in the embedding tables."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from genrec.policy.model import Policy

ROWS_AT_ONCE = 4096


@torch.no_grad()
def plain_model(policy: Policy, n_items: int) -> PreTrainedModel:
    """A new model in float32 with the weights of ``policy``, which any loader of ``transformers`` reads.

    Args:
        n_items: items that get a token of their own behind the SID block, whose embedding is what the policy reads in
            an item's place; 0 for a policy whose prompts hold codes alone. The same rows of an output table of its
            own are zero.
    """
    inner = policy.model
    weights = {name: tensor.float() for name, tensor in _merged(policy).items()}
    tables: list[Any] = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    tables_VD = [table_VD.float() for table_VD in policy.embedding_tables()]
    items_ND = _item_embeddings(policy, n_items)
    names = _names(inner, tables)
    weights[f"{names[0]}.weight"] = torch.cat([tables_VD[0], items_ND])
    if not inner.config.tie_word_embeddings:
        weights[f"{names[1]}.weight"] = torch.cat([tables_VD[1], torch.zeros_like(items_ND)])
    config = copy.deepcopy(inner.config)
    config.vocab_size = len(tables_VD[0]) + n_items
    config.__dict__.pop("quantization_config", None)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    report = model.load_state_dict(weights, strict=False)
    tied = {f"{names[1]}.weight"} if inner.config.tie_word_embeddings else set[str]()
    if report.unexpected_keys or set(report.missing_keys) - tied:
        raise RuntimeError(f"weights without a place {report.unexpected_keys}, places without {report.missing_keys}")
    model.tie_weights()
    return model.eval()


def _merged(policy: Policy) -> dict[str, Tensor]:
    """All weights but those of the embedding tables, by their names in the plain model; adapters are added to them."""
    from peft.tuners.lora import LoraLayer

    inner: nn.Module = policy.model
    tables = (policy.model.get_input_embeddings(), policy.model.get_output_embeddings())
    found, done = dict[str, Tensor](), [f"{name}." for name in _names(inner, list(tables))]
    for name, module in inner.named_modules():
        base: Any = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if base is module and (not _is_in_4_bits(getattr(base, "weight", None)) or _is_done(name, done)):
            continue
        weight = _dense(base.weight)
        if base is not module:
            delta: Any = module.get_delta_weight("default")  # type: ignore[operator]
            weight = weight.float() + delta.float()
        found[f"{name}.weight"] = weight
        if getattr(base, "bias", None) is not None:
            found[f"{name}.bias"] = base.bias
        done.append(f"{name}.")
    for name, tensor in inner.state_dict().items():
        if not _is_done(name, done):
            found[name] = tensor
    return found


def _is_done(name: str, done: list[str]) -> bool:
    return name.startswith(tuple(done))


def _is_in_4_bits(weight: Any) -> bool:
    return getattr(weight, "quant_state", None) is not None


def _dense(weight: Any) -> Tensor:
    """A weight matrix, unpacked where it is in 4 bits."""
    if not _is_in_4_bits(weight):
        return weight.data
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def _names(inner: nn.Module, tables: list[Any]) -> list[str]:
    """The names of the input and the output table."""
    return [next(name for name, module in inner.named_modules() if module is table) for table in tables]


def _item_embeddings(policy: Policy, n_items: int) -> Tensor:
    """What the policy reads in the place of each item, (N, D), before the model's own scale of its embeddings."""
    parts = [policy.embed_items(rows_R) for rows_R in torch.arange(n_items, device=policy.device).split(ROWS_AT_ONCE)]
    hidden = policy.embedding_tables()[0].shape[1]
    return torch.cat(parts).float() if parts else torch.zeros(0, hidden, device=policy.device)
