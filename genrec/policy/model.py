"""The policy: a causal LM seen through its semantic IDs.

Decoding, scoring and learning need three things of a language model: hidden states under a given mask, logits over
one level's codes, and its trainable part. The logits are taken from the rows of the output embedding that the level
owns, never from the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from genrec.errors import InputError
from genrec.policy.decoding import last_layer
from genrec.policy.prompts import SidTokens
from genrec.types import Snapshot


class Policy(nn.Module):
    """A Hugging Face causal LM whose vocabulary holds the SID tokens in one block.

    Args:
        model: the LM; PEFT adapters may have been injected into it.
        sids: where the block lies.
        sid_in: the block's rows of the input embedding, when they are a parameter of their own (else: a slice).
        sid_out: likewise of the output embedding; None where the embeddings are tied.
        precision: of the matrix products (bfloat16: by autocast), wherever the policy runs; logits are float32.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sids: SidTokens,
        sid_in: nn.Parameter | None = None,
        sid_out: nn.Parameter | None = None,
        *,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model = model
        self.sids = sids
        self.precision = precision
        # Lists keep these out of the module's own parameters: they belong to the model already.
        self._sid_in = [sid_in]
        self._sid_out = [sid_in if sid_out is None else sid_out]
        last_layer.prepare(model.base_model, int(model.config.num_hidden_layers))

    def forward(self, method: str, *arguments: Any) -> Any:
        """Call a function of this policy by way of ``forward``, which is what DDP and DeepSpeed wrap."""
        if method == "call":
            function, *rest = arguments
            return function(self, *rest)
        return getattr(self, method)(*arguments)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def own_rows(self) -> list[nn.Parameter]:
        """The SID rows that are parameters of their own, which ``hidden`` and ``level_logits`` read directly."""
        return [rows for rows in (*self._sid_in, *self._sid_out) if rows is not None]

    def recompute_activations(self) -> None:
        """Gradient checkpointing from here on: training keeps layer inputs alone, for a second forward's time."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def new_cache(self) -> DynamicCache:
        """An empty KV cache."""
        return DynamicCache()

    def hidden(
        self, tokens_BS: Tensor, positions_BS: Tensor, mask_B1SK: Tensor, cache: Any = None, *, start: int = 0
    ) -> Tensor:
        """Last hidden states (B, S, D) of S new tokens.

        Args:
            positions_BS: position of each token, from 0.
            mask_B1SK: bool, True where a new token may look; K counts the cached tokens, then the S new ones.
            cache: extended in place when given.
            start: the first of the S tokens whose state is wanted; what stands before it is undefined.
        """
        body: Any = self.model.base_model
        lower = torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)
        with lower, last_layer.states_from(start):
            return body(
                inputs_embeds=self._embed(tokens_BS),
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

    def sid_names(self) -> tuple[str, ...]:
        """Names of the parameters that hold the SID rows: the input embedding's, and an untied output embedding's."""
        tables: Any = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        own = (self._sid_in[0], self._sid_out[0])
        held = {id(table.weight if rows is None else rows) for rows, table in zip(own, tables, strict=True)}
        return tuple(name for name, parameter in self.model.named_parameters() if id(parameter) in held)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def sid_tables(self) -> list[tuple[nn.Parameter, slice]]:
        """The parameters that hold the SID rows, and which of their rows these are."""
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
            InputError: the names or shapes are not those of this policy.
        """
        own = self.trainable()
        bound = [name for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape]
        if len(bound) != len(own) or len(bound) != len(tensors):
            raise InputError(
                f"a snapshot bound {len(bound)} of its {len(tensors)} tensors to the {len(own)} trainable tensors of "
                f"this policy (first of the policy: {next(iter(own), None)!r}, of the snapshot: "
                f"{next(iter(tensors), None)!r}); both must come from the same policy settings and catalogue"
            )
        for name in bound:
            own[name].copy_(tensors[name])

    @contextmanager
    def using(self, tensors: Mapping[str, Tensor]) -> Generator[None]:
        """Run with other trainable tensors, by exchanging pointers; the policy's own come back afterwards."""
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

    def _embed(self, tokens_BS: Tensor) -> Tensor:
        table: Any = self.model.get_input_embeddings()
        rows = self._sid_in[0]
        if rows is None:
            return table(tokens_BS)
        # The adapter's own forward would copy the whole vocabulary's table; the block is looked up in its rows instead.
        is_sid_BS = (tokens_BS >= self.sids.base) & (tokens_BS < self.sids.base + self.sids.count)
        index_BS = torch.where(is_sid_BS, tokens_BS - self.sids.base, 0)
        text_BSD = table.token_adapter.base_layer(torch.where(is_sid_BS, 0, tokens_BS))
        return torch.where(is_sid_BS[..., None], F.embedding(index_BS, rows).to(text_BSD.dtype), text_BSD)
