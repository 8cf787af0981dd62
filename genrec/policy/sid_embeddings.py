"""SID embeddings, the rows of the SID tokens in the embedding tables: their start values, and whether they learned."""

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

SAME = 1e-3
"""Share of its length by which the mean of a code's titles differs at least from that of all codes' to be its start."""

MIN_CHANGE = 1e-5
"""A row has learned if its part perpendicular to its start exceeds this share of the start's length: weight decay
alone only shortens a row."""


@torch.no_grad()
def add_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sids: SidTokens,
    codes_NL: Tensor,
    start: Literal["text", "mean", "random"],
    titles: Sequence[str] = (),
) -> None:
    """Extend the embedding tables of ``model`` by the block ``sids``: the input table, and an untied output table too.

    Args:
        codes_NL: the SIDs of the catalogue's N items.
        start: ``mean``: the table's mean row + 0.5 · its rows' standard deviation · normal noise. ``text``: the same
            with what the code's titles say in place of the noise: the mean embedding t_c of the title tokens of the
            items that have the code, minus the mean of all t_c, at the length that the noise has (codes without a
            title keep the noise). The t_c themselves are nearly one vector (cosine .95 in SmolLM2), from which a
            language model hardly learns to tell codes apart. ``random``: normal noise, scaled to the median row norm.
        titles: of the catalogue's items, or of the first of them.
    """
    model.resize_token_embeddings(sids.base + sids.count, mean_resizing=False)
    words = _title_tokens(tokenizer, titles[: len(codes_NL)]) if start == "text" and titles else None
    initialised: set[int] = set()
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight: Tensor = table.weight  # type: ignore[union-attr,assignment]
        if weight.data_ptr() in initialised:
            continue
        initialised.add(weight.data_ptr())
        text_TD = weight[: sids.base].float()
        # Vocabularies are padded to round sizes, often with rows of zeros: those say nothing of a row's usual length.
        used_TD = text_TD[text_TD.any(-1)]
        noise_CD = torch.randn(sids.count, text_TD.shape[1])
        spread_CD = 0.5 * used_TD.std(0) * noise_CD
        rows_CD = used_TD.mean(0) + spread_CD
        if start == "random":
            rows_CD = _scaled(noise_CD, used_TD.norm(dim=-1).median())
        elif words is not None:
            mean_CD, named_C = _named_rows(text_TD, sids, codes_NL, *words)
            own_CD = mean_CD - mean_CD[named_C].mean(0)
            # Where all titles are one, there is nothing to tell codes apart by, and the noise stays.
            named_C &= own_CD.norm(dim=-1) > SAME * mean_CD.norm(dim=-1)
            rows_CD[named_C] = used_TD.mean(0) + _scaled(own_CD[named_C], spread_CD.norm(dim=-1).mean())
        weight[sids.base : sids.base + sids.count] = rows_CD.to(weight.dtype)


def _title_tokens(tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The tokens (T,) of all titles, and the item (T,) that each belongs to."""
    ids: Any = tokenizer(list(titles), add_special_tokens=False)["input_ids"]
    sizes_N = torch.tensor([len(tokens) for tokens in ids])
    tokens_T = torch.tensor([token for tokens in ids for token in tokens], dtype=torch.long)
    return tokens_T, torch.arange(len(ids)).repeat_interleave(sizes_N)


def _named_rows(
    text_TD: Tensor, sids: SidTokens, codes_NL: Tensor, tokens_T: Tensor, items_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Per code of the block the mean embedding (C, D) of its items' title tokens, and whether it has any (C,) bool."""
    sums_CD = torch.zeros(sids.count, text_TD.shape[1])
    counts_C = torch.zeros(sids.count)
    offsets_L = torch.tensor(sids.offsets)
    for part in torch.arange(len(tokens_T)).split(TOKENS_AT_ONCE):
        words_TD = text_TD[tokens_T[part]]
        for rows_T in (codes_NL[items_T[part]] + offsets_L).unbind(-1):
            sums_CD.index_add_(0, rows_T, words_TD)
            counts_C += rows_T.bincount(minlength=sids.count)
    return sums_CD / counts_C.clamp(min=1)[:, None], counts_C > 0


def _scaled(rows_CD: Tensor, length: Tensor) -> Tensor:
    """The rows at one ``length``."""
    return rows_CD / rows_CD.norm(dim=-1, keepdim=True).clamp(min=1e-12) * length


class EmbeddingUpdateCheck:
    """Remembers the SID embeddings of a policy before training, to refuse a training that did not change them.

    Raises:
        InputError: SID embeddings that are not trainable.
    """

    def __init__(self, policy: Policy) -> None:
        self._sids, self._names = policy.sids, policy.sid_names()
        own = policy.trainable()
        if frozen := [name for name in self._names if name not in own]:
            raise InputError(
                f"the SID rows in {frozen} are not trainable, so the model could not learn its items; the embedding "
                "tables, or the SID rows as parameters of their own, must require gradients"
            )
        self._before = {name: self._rows(own[name].detach()).cpu().clone() for name in self._names}

    def require_changed(self, tensors: Mapping[str, Tensor], advice: str) -> None:
        """Refuse a policy in which a table has no SID row r with ‖r - proj(r)‖ / ‖r0‖ > ``MIN_CHANGE``.

        r0 is the row before training and proj(r) the projection of r onto r0.

        Args:
            tensors: the trained part of the policy, as in a snapshot.
            advice: the settings to change, for the error message.

        Raises:
            InputError: a table none of whose rows changed that much.
        """
        for name, before_CD in self._before.items():
            after_CD = self._rows(tensors[name]).to(before_CD).double()
            length_C = before_CD.double().norm(dim=-1).clamp(min=1e-12)
            along_C = (after_CD * before_CD).sum(-1) / length_C.square()
            off_C = (after_CD - along_C[:, None] * before_CD).norm(dim=-1) / length_C
            if not (off_C > MIN_CHANGE).any():
                raise InputError(
                    f"none of the {len(off_C)} SID rows in {name!r} learned: the largest change is "
                    f"{float(off_C.max()):.1e} of a row's length, wanted more than {MIN_CHANGE:g}; {advice}"
                )

    def _rows(self, tensor: Tensor) -> Tensor:
        base, count = self._sids.base, self._sids.count
        return tensor if len(tensor) == count else tensor[base : base + count]
