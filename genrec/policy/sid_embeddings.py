"""The SID rows of the embedding tables: what they start from in a pretrained model, and whether they learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.policy.prompts import SidTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from genrec.policy.model import Policy

TOKENS_AT_ONCE = 65_536

MIN_CHANGE = 1e-5
"""A row has learned if it left its line by this share of its length: weight decay alone moves it along the line."""


@torch.no_grad()
def add_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sids: SidTokens,
    codes_NL: Tensor,
    start: Literal["text", "mean", "random"],
    titles: Sequence[str] = (),
) -> None:
    """Grow the embeddings of ``model`` by the block ``sids``; a tied table once, an untied head by rows of its own.

    Args:
        codes_NL: the SIDs of the catalogue.
        start: ``text``, the mean embedding of the title tokens of the items under a code, scaled to the table's
            median row norm (codes without a title: as ``mean``); ``mean``, the table's mean row and noise of half its
            rows' spread; ``random``, normal noise at the median norm.
        titles: of the catalogue's items, or of its first ones.
    """
    model.resize_token_embeddings(sids.base + sids.count, mean_resizing=False)
    words = _title_tokens(tokenizer, titles[: len(codes_NL)]) if start == "text" and titles else None
    done: set[int] = set()
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight: Tensor = table.weight  # type: ignore[union-attr,assignment]
        if weight.data_ptr() in done:
            continue
        done.add(weight.data_ptr())
        text_TD = weight[: sids.base].float()
        noise_CD = torch.randn(sids.count, text_TD.shape[1])
        rows_CD = text_TD.mean(0) + 0.5 * text_TD.std(0) * noise_CD
        if start == "random":
            rows_CD = _scaled(noise_CD, text_TD)
        elif words is not None:
            mean_CD, named_C = _named_rows(text_TD, sids, codes_NL, *words)
            rows_CD[named_C] = _scaled(mean_CD[named_C], text_TD)
        weight[sids.base : sids.base + sids.count] = rows_CD.to(weight.dtype)


def _title_tokens(tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> tuple[Tensor, Tensor]:
    """All title tokens, (T,), and the item that each belongs to, (T,)."""
    found: Any = tokenizer(list(titles), add_special_tokens=False)["input_ids"]
    sizes_N = torch.tensor([len(tokens) for tokens in found])
    tokens_T = torch.tensor([token for tokens in found for token in tokens], dtype=torch.long)
    return tokens_T, torch.arange(len(found)).repeat_interleave(sizes_N)


def _named_rows(
    text_TD: Tensor, sids: SidTokens, codes_NL: Tensor, tokens_T: Tensor, items_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean embedding of the title tokens under each code, (C, D), and which codes have any, (C,) bool."""
    sums_CD = torch.zeros(sids.count, text_TD.shape[1])
    counts_C = torch.zeros(sids.count)
    offsets_L = torch.tensor(sids.offsets)
    for part in torch.arange(len(tokens_T)).split(TOKENS_AT_ONCE):
        words_TD = text_TD[tokens_T[part]]
        for rows_T in (codes_NL[items_T[part]] + offsets_L).unbind(-1):
            sums_CD.index_add_(0, rows_T, words_TD)
            counts_C += rows_T.bincount(minlength=sids.count)
    return sums_CD / counts_C.clamp(min=1)[:, None], counts_C > 0


def _scaled(rows_CD: Tensor, like_TD: Tensor) -> Tensor:
    norm_C1 = rows_CD.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return rows_CD / norm_C1 * like_TD.norm(dim=-1).median()


class EmbeddingUpdateCheck:
    """Remembers the SID rows of a policy before training, to refuse a training that left them as they were."""

    def __init__(self, policy: Policy) -> None:
        self._sids, self._names = policy.sids, policy.sid_names()
        own = policy.trainable()
        if frozen := [name for name in self._names if name not in own]:
            raise InputError(
                f"the SID rows in {frozen} are not trainable: the model could neither read nor write its items; "
                "the embedding tables, or the SID rows as parameters of their own, must require gradients"
            )
        self._before = {name: self._rows(own[name].detach()).cpu().clone() for name in self._names}

    def require_changed(self, tensors: Mapping[str, Tensor], advice: str) -> None:
        """Refuse a policy in which no SID row of a table turned away from where it began.

        Args:
            tensors: the trained part of the policy, as in a snapshot.
            advice: the settings to change.

        Raises:
            InputError: a table whose rows all stayed (weight decay alone shortens a row, which is not learning).
        """
        for name, before_CD in self._before.items():
            after_CD = self._rows(tensors[name]).to(before_CD).double()
            along_C1 = (after_CD * before_CD).sum(-1, keepdim=True) / before_CD.double().square().sum(-1, keepdim=True)
            off_C = (after_CD - along_C1 * before_CD).norm(dim=-1) / before_CD.norm(dim=-1)
            if not (off_C > MIN_CHANGE).any():
                raise InputError(
                    f"none of the {len(off_C)} SID rows in {name!r} learned: they are where they were before training "
                    f"(largest change {float(off_C.max()):.1e} of a row's length, above {MIN_CHANGE:g} was wanted); {advice}"
                )

    def _rows(self, tensor: Tensor) -> Tensor:
        base, count = self._sids.base, self._sids.count
        return tensor if len(tensor) == count else tensor[base : base + count]
