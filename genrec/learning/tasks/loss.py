"""The loss of a mixture of tasks: next items by ``SftLoss``, conversations token by token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genrec.learning.sft.second_pass import SampleLoss
from genrec.learning.tasks.mixture import MixedBatch
from genrec.policy.decoding.beam import masked_log_softmax
from genrec.policy.decoding.tree import prompt_mask, prompt_positions
from genrec.policy.model import Policy
from genrec.sid.trie import Trie

CHUNK = 256
"""Tokens whose logits over the whole vocabulary are held at once."""


class MixedLoss:
    """Σ_examples f · L · mean over its learned tokens of -log p(token), for conversations; f · SFT loss for next items.

    f is the factor of the example's task. The mean times L (SID levels) gives a conversation the weight of a next item.
    p is normalised as in decoding (``policy.chat``): of a text token over the text vocabulary, of a SID token over the
    codes that exist under the prefix.

    Args:
        next_item: the loss of a batch of next-item rows, summed.
    """

    def __init__(self, next_item: SampleLoss, trie: Trie) -> None:
        self._next_item, self._trie = next_item, trie

    def __call__(self, policy: Policy, batch: MixedBatch) -> Tensor:
        """The loss summed over the batch's examples, a scalar."""
        total = torch.zeros((), device=policy.device)
        if len(batch.factor_R):
            total = total + float(batch.factor_R[0]) * self._next_item(policy, batch.rows)
        if len(batch.factor_C):
            text, *sids = (loss_x.sum() for _, loss_x in self._conversations(policy, batch))
            total = total + (text + sum(sids))
        return total

    def per_sample(self, policy: Policy, batch: MixedBatch) -> Tensor:
        """The loss of each example, (B,), in the order in which they were asked for."""
        rows, count = len(batch.factor_R), batch.targets
        loss_B = torch.zeros(count, device=policy.device)
        if rows:
            loss_R = float(batch.factor_R[0]) * self._next_item.per_sample(policy, batch.rows)
            loss_B = loss_B.index_add(0, torch.arange(rows, device=policy.device), loss_R)
        if len(batch.factor_C):
            for row_x, loss_x in self._conversations(policy, batch):
                loss_B = loss_B.index_add(0, rows + row_x, loss_x)
        if batch.place_B is None:
            return loss_B
        return torch.zeros_like(loss_B).index_add(0, batch.place_B.to(policy.device), loss_B)

    def _conversations(self, policy: Policy, batch: MixedBatch) -> list[tuple[Tensor, Tensor]]:
        """The weighted losses of learned tokens, each with the conversation that it is in: of text, and per level."""
        device = policy.device
        tokens_CS, mask_CS, label_CS = (t.to(device) for t in (batch.tokens_CS, batch.mask_CS, batch.label_CS))
        hidden_CSD = policy.hidden(tokens_CS, prompt_positions(mask_CS), prompt_mask(mask_CS))
        read_CS = tokens_CS
        if policy.items is not None:
            tokens_CS = policy.items.plain_tokens(tokens_CS)
        learned_C = label_CS.sum(-1)
        weight_C = batch.factor_C.to(device) * self._trie.depth / learned_C.clamp(min=1)
        is_text_CS = label_CS & (tokens_CS < policy.sids.text_end)
        row_T, column_T = is_text_CS.nonzero(as_tuple=True)
        hidden_TD, token_T = hidden_CSD[row_T, column_T - 1], tokens_CS[row_T, column_T]
        text_T = self._text(policy, hidden_TD, token_T) * weight_C[row_T]
        return [(row_T, text_T), *self._spans(policy, hidden_CSD, tokens_CS, label_CS, weight_C, read_CS)]

    def _text(self, policy: Policy, hidden_TD: Tensor, token_T: Tensor) -> Tensor:
        """Loss of each text token, (T,); logits are recomputed in backward, chunk by chunk."""

        def chunk(hidden_KD: Tensor, token_K: Tensor) -> Tensor:
            logits_KV = policy.vocabulary_logits(hidden_KD)[:, : policy.sids.text_end].float()
            return F.cross_entropy(logits_KV, token_K, reduction="none")

        pieces: list[Any] = [
            checkpoint(chunk, hidden_KD, token_K, use_reentrant=False)
            for hidden_KD, token_K in zip(hidden_TD.split(CHUNK), token_T.split(CHUNK), strict=True)
        ]
        return torch.cat(pieces)

    def _spans(
        self,
        policy: Policy,
        hidden_CSD: Tensor,
        tokens_CS: Tensor,
        label_CS: Tensor,
        weight_C: Tensor,
        read_CS: Tensor,
    ) -> list[tuple[Tensor, Tensor]]:
        """Weighted losses of the assistant's SIDs; in a span that starts at s, s + l - 1 predicts level l.

        Args:
            read_CS: ``tokens_CS`` as the policy reads them, with items in the place of their last codes.
        """
        sids, trie = policy.sids, self._trie
        first = sids.base + sids.offsets[0]
        starts_CS = label_CS & (tokens_CS >= first) & (tokens_CS < first + sids.level_sizes[0])
        row_M, column_M = starts_CS.nonzero(as_tuple=True)
        span_ML = column_M[:, None] + torch.arange(trie.depth, device=column_M.device)
        offsets_L = torch.tensor(sids.offsets, device=column_M.device)
        codes_ML = tokens_CS[row_M[:, None], span_ML] - sids.base - offsets_L
        nodes_ML = trie.walk(codes_ML)
        parts: list[tuple[Tensor, Tensor]] = []
        first_1 = row_M.new_zeros(1)
        for level in range(trie.depth):
            logits_MK = policy.level_logits(hidden_CSD[row_M, span_ML[:, level] - 1], level)
            logp_MK = masked_log_softmax(logits_MK, trie.step(level, nodes_ML[:, level]) >= 0)
            chosen_M = logp_MK.gather(-1, codes_ML[:, level : level + 1])[:, 0]
            # DDP waits for a gradient of every SID embedding: without a span the second part gives them one of 0.
            nothing = 0.0 * policy.level_logits(hidden_CSD[:1, :1], level).sum()
            parts += [(row_M, -chosen_M * weight_C[row_M]), (first_1, nothing[None])]
        if policy.item_head is None:
            return parts
        head_M = policy.item_head.loss(
            hidden_CSD[row_M, column_M - 1], trie.find(codes_ML), read_CS[row_M], last_M=column_M - 1
        )
        return [*parts, (row_M, head_M * weight_C[row_M])]
