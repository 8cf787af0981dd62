"""Building, saving and loading policies: from scratch, or a pretrained LM with new SID rows, whole or by LoRA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from genrec import config as settings
from genrec.data.files import write_atomically, write_json
from genrec.errors import InputError
from genrec.policy.chat.byte_tokenizer import byte_tokenizer
from genrec.policy.model import Policy
from genrec.policy.pretrained import load_weights, pack_embeddings
from genrec.policy.prompts import Prompts, SidTokens, instruction, sid_names
from genrec.policy.sid_embeddings import add_rows
from genrec.sid.catalog import Catalog

PAD, BOS, SPECIALS = 0, 1, 2
"""The scratch vocabulary: padding, begin of sequence, any text there is, then the SID block."""

TEXT_POSITIONS = 8192
"""How long conversations in bytes may be; rotary positions cost nothing."""

UNUSUAL = ("embedding_multiplier", "logit_scale", "logits_scaling", "final_logit_softcapping", "scale_emb")
"""Config fields of models that scale embeddings or logits."""

DENSE_WINDOW = 2
"""Dense training reads windows of this many times ``max_history`` items, so positions reach that far."""


def build(
    policy: settings.PolicyConfig,
    catalog: Catalog,
    *,
    max_history: int,
    seed: int,
    cache: Path | None = None,
    titles: Sequence[str] = (),
) -> tuple[Policy, Prompts]:
    """A new policy for ``catalog`` with its prompts, initialised from ``seed``.

    ``cache`` is a directory for a packaged backbone in a form that loads fast (GGUF takes half a minute each time).
    ``titles`` of the items are what ``policy.sid_init=text`` starts from; without them it is as ``mean``, which is
    enough for a policy that adopts trained rows.

    Raises:
        InputError: the settings do not fit together, or the pretrained model cannot be found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if policy.kind == "scratch":
            return _scratch(policy, catalog, max_history)
        return _pretrained(policy, catalog, max_history, cache, titles)


def save(policy: Policy, tensors: dict[str, Tensor], catalog: Catalog, about: dict[str, Any], directory: Path) -> None:
    """Write ``policy.safetensors`` (the trainable part) and, last, ``policy.json``."""
    write_atomically(directory / "policy.safetensors", lambda path: save_file(tensors, path))
    write_json({**about, "catalog": catalog.digest, "sid_base": policy.sids.base}, directory / "policy.json")


def load_tensors(directory: Path, catalog: Catalog) -> dict[str, Tensor]:
    """The trainable part that ``save`` wrote for ``catalog``.

    Raises:
        InputError: no such files, damaged ones, or another catalogue.
    """
    try:
        about = json.loads((directory / "policy.json").read_text(encoding="utf-8"))
        tensors = load_file(directory / "policy.safetensors")
        trained_on = str(about["catalog"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"no readable policy in {directory}: {error}; run `python -m workflows.sft`") from error
    catalog.require_digest(trained_on, f"the policy in {directory}")
    return tensors


def load(
    policy: settings.PolicyConfig,
    catalog: Catalog,
    directory: Path,
    *,
    max_history: int,
    seed: int,
    cache: Path | None = None,
) -> tuple[Policy, Prompts]:
    """The policy that ``save`` wrote into ``directory``, ready to answer (evaluation mode).

    Raises:
        InputError: as ``build`` and ``load_tensors``.
    """
    loaded, prompts = build(policy, catalog, max_history=max_history, seed=seed, cache=cache)
    loaded.adopt(load_tensors(directory, catalog))
    return loaded.eval(), prompts


def _scratch(policy: settings.PolicyConfig, catalog: Catalog, max_history: int) -> tuple[Policy, Prompts]:
    if policy.hidden % policy.heads:
        raise InputError(f"policy.hidden={policy.hidden} is not a multiple of policy.heads={policy.heads}")
    base = SPECIALS if policy.tokenizer == "none" else len(byte_tokenizer())
    sids = SidTokens(base, catalog.level_sizes)
    positions = 1 + catalog.levels * (DENSE_WINDOW * max_history + 1)
    if policy.tokenizer != "none":
        positions = max(positions, TEXT_POSITIONS)
    model = (_gpt2 if policy.arch == "gpt2" else _qwen3)(policy, base + sids.count, positions)
    wrapped = Policy(model, sids, precision=getattr(torch, policy.dtype))
    return wrapped, Prompts(catalog, sids, [BOS], [], PAD, max_history)


def _gpt2(policy: settings.PolicyConfig, vocabulary: int, positions: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=positions,
            n_embd=policy.hidden,
            n_layer=policy.layers,
            n_head=policy.heads,
            embd_pdrop=policy.dropout,
            attn_pdrop=policy.dropout,
            resid_pdrop=policy.dropout,
            activation_function="relu",
            bos_token_id=BOS,
            eos_token_id=None,
            pad_token_id=PAD,
        )
    )


def _qwen3(policy: settings.PolicyConfig, vocabulary: int, positions: int) -> PreTrainedModel:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            max_position_embeddings=positions,
            hidden_size=policy.hidden,
            intermediate_size=4 * policy.hidden,
            num_hidden_layers=policy.layers,
            num_attention_heads=policy.heads,
            num_key_value_heads=policy.heads,
            head_dim=policy.hidden // policy.heads,
            attention_dropout=policy.dropout,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=None,
            pad_token_id=PAD,
        )
    )


def _pretrained(
    policy: settings.PolicyConfig, catalog: Catalog, max_history: int, cache: Path | None, titles: Sequence[str]
) -> tuple[Policy, Prompts]:
    tokenizer, model = load_weights(policy, cache)
    names = sid_names(catalog.level_sizes)
    known = tokenizer.get_vocab()
    if clash := [name for name in names if name in known]:
        raise InputError(
            f"the tokenizer of {policy.path!r} already has {len(clash)} of the SID tokens (such as {clash[0]!r}); "
            "start from the base model, not from one that was trained on SIDs"
        )
    base = max(len(tokenizer), int(model.config.vocab_size))
    sids = SidTokens(base, catalog.level_sizes)
    add_rows(model, tokenizer, sids, catalog.codes_NL, policy.sid_init, titles)
    _refuse_unusual_embeddings(model, policy.path)
    precision = getattr(torch, policy.dtype)
    wrapped = Policy(model, sids, precision=precision) if policy.finetuning == "full" else _adapted(model, sids, policy)
    prefix, suffix = instruction(tokenizer)
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    prompts = Prompts(catalog, sids, prefix, suffix, int(pad), max_history)
    _refuse_long_prompts(model, prompts, policy.path)
    return wrapped, prompts


def _adapted(model: PreTrainedModel, sids: SidTokens, policy: settings.PolicyConfig) -> Policy:
    """LoRA on the frozen ``model``, its SID rows trainable parameters of their own; both are kept in float32."""
    from peft import LoraConfig, get_peft_model

    tied = bool(model.config.tie_word_embeddings)
    tables = [_name_of(model, model.get_input_embeddings())]
    if not tied:
        tables.append(_name_of(model, model.get_output_embeddings()))
    lora, rows = policy.lora, list(range(sids.base, sids.base + sids.count))
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        trainable_token_indices=dict.fromkeys(tables, rows),
        task_type="CAUSAL_LM",
    )
    inner: Any = get_peft_model(model, adapter).get_base_model()
    for parameter in inner.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if policy.finetuning == "qlora":
        pack_embeddings(inner)
    rows_in = _rows_of(inner.get_input_embeddings())
    rows_out = None if tied else _rows_of(inner.get_output_embeddings())
    return Policy(inner, sids, rows_in, rows_out, precision=getattr(torch, policy.dtype))


def _refuse_long_prompts(model: PreTrainedModel, prompts: Prompts, path: str) -> None:
    """A prompt and its answer must fit the positions that the model knows."""
    levels = len(prompts.sids.level_sizes)
    need = prompts.max_tokens + levels
    what, room = _reach(model)
    if room is not None and need > room:
        fixed = need - levels * prompts.max_items
        raise InputError(
            f"prompts of data.max_history={prompts.max_items} items take up to {need} tokens, policy.path={path!r} "
            f"has {what}; data.max_history={max((room - fixed) // levels, 0)} fits"
        )


def _reach(model: PreTrainedModel) -> tuple[str, int | None]:
    """How many tokens the model sees at once: its positions, or the narrowest window of its attention.

    The decoder's masks say who may look where; a window narrower than a prompt would be overruled by them.
    """
    config: Any = model.config
    kinds: list[str] = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None)
    room = getattr(config, "max_position_embeddings", None)
    if window and (not kinds or "sliding_attention" in kinds) and (room is None or window < room):
        return f"attention windows of {window} tokens", int(window)
    return f"{room} positions", room


def _refuse_unusual_embeddings(model: PreTrainedModel, path: str) -> None:
    """The policy reads rows of the embedding tables itself, so nothing may happen between them and the states."""
    unusual = [name for name in UNUSUAL if getattr(model.config, name, None)]
    head: Any = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        unusual.append("a bias of the output embedding")
    if str(model.config.model_type).startswith("gemma"):
        unusual.append("scaled input embeddings")
    kinds: set[str] = set(getattr(model.config, "layer_types", None) or ())
    unusual += sorted(f"layers of {kind}" for kind in kinds - {"full_attention", "sliding_attention"})
    if unusual:
        raise InputError(
            f"policy.path={path!r} has {', '.join(unusual)}, which the decoder does not apply; "
            "use a model with plain embeddings and attention (Qwen2, Qwen3, Llama, SmolLM, GPT-2, Mistral)"
        )


def _name_of(model: PreTrainedModel, module: object) -> str:
    return next(name.rpartition(".")[2] for name, found in model.named_modules() if found is module)


def _rows_of(table: Any) -> nn.Parameter:
    return table.token_adapter.trainable_tokens_delta["default"]
