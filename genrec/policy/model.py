"""The policy: a causal language model over semantic IDs.

Decoding, scoring and learning need three things of a language model: hidden states under a given attention mask, logits
over the codes of one level, and its trainable part. Logits are computed from the level's own rows of the output
embedding, not from the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from genrec.errors import InputError
from genrec.policy import attention
from genrec.policy.decoding import last_layer
from genrec.policy.item_rows import ItemRows
from genrec.policy.prompts import ITEM_TOKEN, SidTokens
from genrec.types import Snapshot


class Policy(nn.Module):
    """A Hugging Face causal LM whose vocabulary holds the SID tokens in one block.

    Args:
        model: the LM; PEFT adapters may have been injected into it.
        sids: the block of SID tokens.
        sid_in: the block's rows (C, D) of the input embedding, if they are a parameter of their own.
        sid_out: likewise of the output embedding; None where the embeddings are tied.
        precision: of the matrix products inside the model (bfloat16: by autocast).
        items: rows of items, if the policy has them; they are trained with it.

    ``base`` identifies the content of the pretrained model that it was built from; None for one from scratch.
    """

    base: str | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        sids: SidTokens,
        sid_in: nn.Parameter | None = None,
        sid_out: nn.Parameter | None = None,
        *,
        precision: torch.dtype = torch.float32,
        items: ItemRows | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.items = items
        self.sids = sids
        self.precision = precision
        # Lists keep these out of the module's own parameters: they belong to the model already.
        self._sid_in = [sid_in]
        self._sid_out = [sid_in if sid_out is None else sid_out]
        self._input_scale = input_scale(model)
        last_layer.install(model.base_model, int(model.config.num_hidden_layers))
        if precision == torch.bfloat16:
            attention.install(model)

    def forward(self, method: str, *arguments: Any) -> Any:
        """Call ``method`` of this policy (``"call"``: the first argument, a function of it) through ``forward``.

        DDP and DeepSpeed wrap ``forward`` and nothing else.
        """
        if method == "call":
            function, *rest = arguments
            return function(self, *rest)
        return getattr(self, method)(*arguments)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def item_head(self) -> ItemRows | None:
        """The rows of items, if they have a head; None otherwise."""
        return self.items if self.items is not None and self.items.has_head else None

    def own_rows(self) -> list[nn.Parameter]:
        """The parameters that are used directly, not by the forward of a module that holds them.

        These are SID embeddings that are parameters of their own, and the rows of the item head.
        """
        head = self.item_head.own_rows() if self.item_head is not None else []
        return [*(rows for rows in (*self._sid_in, *self._sid_out) if rows is not None), *head]

    def recompute_activations(self) -> None:
        """Turn on gradient checkpointing: training stores only the inputs of layers and runs each forward twice."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def recomputes_activations(self) -> bool:
        """Whether gradient checkpointing is on."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())

    def new_cache(self) -> DynamicCache:
        """An empty KV cache."""
        return DynamicCache()

    def hidden(
        self,
        tokens_BS: Tensor,
        positions_BS: Tensor,
        mask_B1SK: Tensor,
        cache: Cache | None = None,
        *,
        start: int = 0,
        earlier_BP: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (B, S, D) of S new tokens.

        Args:
            positions_BS: int64 position of each token, from 0.
            mask_B1SK: bool, True where a new token may attend; K counts the cached tokens, then the S new ones.
            cache: the KV cache, extended in place; None for none.
            start: the first of the S tokens whose state is needed; states before it are undefined.
            earlier_BP: the cached tokens before them, needed where there are items among the S.
        """
        body: Any = self.model.base_model
        autocast = torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)
        with autocast, last_layer.skip_states_before(start):
            return body(
                inputs_embeds=self._embed(tokens_BS, earlier_BP),
                position_ids=positions_BS,
                attention_mask=mask_B1SK,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state

    def level_logits(self, hidden_xD: Tensor, level: int) -> Tensor:
        """Logits over the K codes of ``level``, (…, K)."""
        start = self.sids.offsets[level]
        size = self.sids.level_sizes[level]
        rows = self._sid_out[0]
        if rows is None:
            rows, start = self._head(), start + self.sids.base
        return F.linear(hidden_xD.to(rows.dtype), rows[start : start + size])

    def vocabulary_logits(self, hidden_xD: Tensor) -> Tensor:
        """Logits over every token of the model, (…, V); code c of level l is token ``sids.token(l, c)``."""
        rows = self._sid_out[0]
        if rows is None:
            return F.linear(hidden_xD, self._head().to(hidden_xD.dtype))
        table: Any = (
            self.model.get_input_embeddings() if rows is self._sid_in[0] else self.model.get_output_embeddings()
        )
        text_TD = table.token_adapter.base_layer.weight[: self.sids.base]
        parts = (F.linear(hidden_xD, part.to(hidden_xD.dtype)) for part in (text_TD, rows))
        return torch.cat(tuple(parts), dim=-1)

    def embedding_tables(self) -> tuple[Tensor, Tensor]:
        """The whole input and output embedding tables, (V, D) each, with the SID embeddings in their rows."""
        tables: tuple[Any, Any] = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        whole: list[Tensor] = []
        for table, rows in zip(tables, (self._sid_in[0], self._sid_out[0]), strict=True):
            if rows is None:
                whole.append(table.weight.detach())
                continue
            holder: Any = tables[0] if rows is self._sid_in[0] else table
            text_TD = holder.token_adapter.base_layer.weight[: self.sids.base]
            whole.append(torch.cat([text_TD.to(rows.dtype), rows]).detach())
        return whole[0], whole[1]

    def embed_items(self, rows_N: Tensor) -> Tensor:
        """What stands for each item as the first of a history, as rows (N, D) of the input embedding table.

        A policy that reads items by their codes alone has no such rows.
        """
        return self._embed((ITEM_TOKEN + rows_N)[:, None], None)[:, 0] / self._input_scale

    def sid_names(self) -> tuple[str, ...]:
        """Names of the parameters with SID embeddings: that of the input table, and that of an untied output table."""
        tables: Any = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        own = (self._sid_in[0], self._sid_out[0])
        held = {id(table.weight if rows is None else rows) for rows, table in zip(own, tables, strict=True)}
        return tuple(name for name, parameter in self.model.named_parameters() if id(parameter) in held)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients, by name; those of the rows of items begin with ``items.``"""
        found = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        if self.items is not None:
            rows = self.items.named_parameters()
            found |= {f"items.{name}": parameter for name, parameter in rows if parameter.requires_grad}
        return found

    def parameter_counts(self) -> tuple[int, int]:
        """How many parameters are trained, and how many there are; packed ones count as what they stand for."""
        held: list[Any] = [*self.parameters()]
        scales = {id(p) for name, p in self.named_parameters() if name.endswith("scale_V1")}
        sizes = [(p.requires_grad, _size(p)) for p in held if id(p) not in scales]
        return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)

    def sid_tables(self) -> list[tuple[nn.Parameter, slice]]:
        """The parameters with SID embeddings, each with the slice of its rows that these are."""
        if self._sid_in[0] is not None:
            own = (self._sid_in[0], self._sid_out[0])
            return [(table, slice(None)) for table in {id(table): table for table in own if table is not None}.values()]
        inputs: Any = self.model.get_input_embeddings()
        tables: dict[int, nn.Parameter] = {id(table): table for table in (inputs.weight, self._head())}
        return [(table, slice(self.sids.base, self.sids.base + self.sids.count)) for table in tables.values()]

    def snapshot(self, version: int) -> Snapshot:
        """A copy of the trainable part on the CPU."""
        tensors = {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.trainable().items()}
        return Snapshot(version, tensors)

    @torch.no_grad()
    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a snapshot's tensors into the trainable part.

        Raises:
            InputError: the names or shapes differ from this policy's.
        """
        own = self.trainable()
        bound = [name for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape]
        if len(bound) != len(own) or len(bound) != len(tensors):
            raise InputError(
                f"the snapshot bound {len(bound)} of its {len(tensors)} tensors to the {len(own)} trainable tensors of "
                f"this policy (first of the policy: {next(iter(own), None)!r}, of the snapshot: "
                f"{next(iter(tensors), None)!r}); both must come from the same policy settings and catalogue"
            )
        for name in bound:
            own[name].copy_(tensors[name])

    @contextmanager
    def using(self, tensors: Mapping[str, Tensor]) -> Generator[None]:
        """Run with other trainable tensors: their storage is swapped in, and the policy's own back at the end."""
        own = self.trainable()
        kept = {name: own[name].data for name in tensors}
        try:
            for name, tensor in tensors.items():
                own[name].data = tensor.to(own[name].device)
            yield
        finally:
            for name, data in kept.items():
                own[name].data = data

    def _head(self) -> Any:
        head: Any = self.model.get_output_embeddings()
        return head.weight

    def _embed(self, tokens_BS: Tensor, earlier_BP: Tensor | None) -> Tensor:
        if self.items is not None and self.items.has_input:
            return self.items.embed(tokens_BS, self._embed_tokens, earlier_BP)
        return self._embed_tokens(tokens_BS)

    def _embed_tokens(self, tokens_BS: Tensor) -> Tensor:
        table: Any = self.model.get_input_embeddings()
        rows = self._sid_in[0]
        if rows is None:
            return table(tokens_BS)
        # The adapter's own forward would copy the whole vocabulary's table; the block is looked up in its rows instead.
        is_sid_BS = (tokens_BS >= self.sids.base) & (tokens_BS < self.sids.base + self.sids.count)
        index_BS = torch.where(is_sid_BS, tokens_BS - self.sids.base, 0)
        text_BSD = table.token_adapter.base_layer(torch.where(is_sid_BS, 0, tokens_BS))
        sid_BSD = F.embedding(index_BS, rows)
        if self._input_scale != 1:  # Rounded as the model rounds it: √640 is 25.25 in bfloat16.
            sid_BSD = sid_BSD * torch.tensor(self._input_scale, dtype=text_BSD.dtype).item()
        return torch.where(is_sid_BS[..., None], sid_BSD.to(text_BSD.dtype), text_BSD)


def input_scale(model: PreTrainedModel) -> float:
    """What the input embedding of a model multiplies its rows by: √D in the Gemma family, 1 elsewhere."""
    table: Any = model.get_input_embeddings()
    adapter = getattr(table, "token_adapter", None)
    return float(getattr(table if adapter is None else adapter.base_layer, "scalar_embed_scale", 1.0))


def _size(parameter: Any) -> int:
    """Numbers in a parameter; of one in 4 bits before it was packed, of one that is sharded over all workers."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else int(getattr(parameter, "ds_numel", parameter.numel()))
