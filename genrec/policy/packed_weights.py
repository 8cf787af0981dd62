"""QLoRA's packed weights: 4-bit linear layers by bitsandbytes, 8-bit embedding tables of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from genrec.policy.model import input_scale

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantization (Dettmers et al. 2023, QLoRA, section 3)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


class PackedTable(nn.Module):
    """A frozen embedding table (V, D) in 8 bits: row = scale · int8 with scale = max |row| / 127, one per row.

    Args:
        factor: what the looked-up rows are multiplied by (``input_scale``), and ``weight`` is not.
    """

    def __init__(self, weight_VD: Tensor, factor: float = 1.0) -> None:
        super().__init__()
        self.scalar_embed_scale = factor
        self._dtype = weight_VD.dtype
        scale_V1 = weight_VD.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        packed_VD = (weight_VD.float() / scale_V1).round().to(torch.int8)
        # Parameters, not buffers: DDP sends buffers before every forward.
        self.scale_V1 = nn.Parameter(scale_V1, requires_grad=False)
        self.packed_VD = nn.Parameter(packed_VD, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The whole table (V, D), unpacked into its original type."""
        return (self.packed_VD * self.scale_V1).to(self._dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (…, D) of ``tokens`` (…)."""
        rows = (F.embedding(tokens, self.packed_VD) * F.embedding(tokens, self.scale_V1)).to(self._dtype)
        return rows if self.scalar_embed_scale == 1 else rows * torch.tensor(self.scalar_embed_scale).to(rows)


def pack_embeddings(model: PreTrainedModel) -> None:
    """Replace the frozen embedding tables of a QLoRA model by ``PackedTable``, in place; tied ones share one.

    bitsandbytes packs linear layers only, and the vocabulary is a fifth or more of a small model. The SID embeddings
    are parameters of their own (peft's ``trainable_token_indices``), so they stay in full precision.
    """
    from bitsandbytes.nn import Linear4bit  # pyright: ignore[reportMissingImports]

    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Its CPU inference format replaces the weights for good, but training continues after a validation.
            module.support_avx512bf16_for_cpu = False
    tables: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    inputs, outputs = (table.token_adapter for table in tables)
    tied = outputs.base_layer.weight is inputs.base_layer.weight
    inputs.base_layer = PackedTable(inputs.base_layer.weight.data, input_scale(model))
    outputs.base_layer = inputs.base_layer if tied else PackedTable(outputs.base_layer.weight.data)


def frozen_bytes(model: nn.Module) -> int:
    """Bytes of the weights that are not trained, the scales of packed ones included."""
    held = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    states = [state for weight in held if (state := getattr(weight, "quant_state", None)) is not None]
    inner = [state.state2 for state in states if state.state2 is not None]
    held += [state.absmax for state in (*states, *inner)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)
