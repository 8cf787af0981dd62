"""Rows of items of their own: at the input of the policy, and as a second head on it.

A semantic ID says what an item shares with others; a row says what it is alone. Rows are used twice:

- input: U · e_i is added to the embedding of an item i of the history (LIGER, Yang et al. 2024; COBRA, Yang et al.
  2025), where e_i is a learned row, a projection of the item's vector, or the sum of both. The t-th item gets V · m_t
  too, m_t = Σ_{s ≤ t} γ^(t - s) e_s / (Σ_{s ≤ t} γ^(t - s))^½ with learned γ: what attention has to learn to average is
  there at once (the low-pass filter of BSARec, Shin et al. 2024);
- head: log p(i) = log softmax_i(s · cos(o_i, Q h)), where o_i is another learned row, h the state that predicts the
  first code, and s a learned scale (NormFace, Wang et al. 2017); or o_i · Q h. It costs one product more per prompt,
  and the search reads it as a prior on the trie's nodes (MemGen-GR 2603.19809). Items of the history
  gain and lose by their places there (``genrec.policy.repeats``).

An item that was inserted after the training has the mean of the rows of the trained items whose vectors are nearest.

Shapes: N items, F vector, d row, D hidden units, I items of a history.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.config import Items, PolicyConfig
from genrec.errors import InputError
from genrec.policy.prompts import ITEM_TOKEN, ItemTokens, SidTokens
from genrec.policy.repeats import RepeatWeights, Seen
from genrec.sid.catalog import Catalog

FULL_SOFTMAX = 20_000
"""Most items whose logits are all computed in training; beyond, ``policy.items.negatives`` of them are drawn."""

COPIES = 7
"""Float32 copies of the rows that training holds at most: weights, gradient, two moments, average, best, snapshot."""

START = 0.02
"""Standard deviation of new rows, as of GPT-2's embeddings."""

SCALE = 20.0
"""Scale of the cosines before the training: one right item among 10^4 can then have nearly all of the probability."""


DECAYS = 8
"""Different γ of the means of a history, each for an equal share of a row's units."""

DECAY_START = 0.4
"""γ before the training."""


NEW_ITEMS = 0.5
"""How far the head's row of an inserted item is stretched: 0, the mean of its neighbours' rows; 1, of length 1."""


class SoftTargets(NamedTuple):
    """Distributions over items that the head learns beside its targets: Σ_e share_e = 1 over the entries of each row.

    ``row_E``: the target that an entry belongs to (some have none); ``weight``: of these distributions, in [0, 1].
    """

    row_E: Tensor
    item_E: Tensor
    share_E: Tensor
    weight: float

    def to(self, device: torch.device) -> SoftTargets:
        """The same on a device."""
        return SoftTargets(self.row_E.to(device), self.item_E.to(device), self.share_E.to(device), self.weight)


@dataclass(frozen=True)
class Known:
    """What is fixed of a catalogue: the tokens (N, L) of each item, which items are there, and their vectors (N, F).

    ``near_MX``: the trained items nearest to each of the M inserted ones. None of them is a parameter or a buffer: DDP
    would send those to every worker before each forward.
    """

    tokens_NL: Tensor
    present_N: Tensor
    vectors_NF: Tensor | None = None
    near_MX: Tensor | None = None

    def moved(self, move: Callable[[Tensor], Tensor]) -> Known:
        """The same with ``move`` applied to every tensor."""
        tensors = (self.tokens_NL, self.present_N, self.vectors_NF, self.near_MX)
        tokens_NL, present_N, *rest = (None if tensor is None else move(tensor) for tensor in tensors)
        return Known(cast("Tensor", tokens_NL), cast("Tensor", present_N), *rest)


class ItemRows(nn.Module):
    """The rows of the items of one catalogue, as it was assigned or with later inserts.

    Args:
        hidden: D of the policy.
        sids: the block of SID tokens.
        whole: an item of the history is one position, whose embedding has all of its codes.

    Raises:
        InputError: rows of vectors for a catalogue without, or rows that memory cannot hold.
    """

    def __init__(self, settings: Items, catalog: Catalog, hidden: int, sids: SidTokens, *, whole: bool = False) -> None:
        super().__init__()
        dims = min(settings.dims, hidden)
        self._dropout, self._negatives, self._items = settings.dropout, settings.negatives, catalog.assigned
        self._is_whole = whole
        self._weight = settings.weight
        self._context = range(sids.context_base, sids.base + sids.count)
        has_own = settings.input in ("own", "both")
        has_own_tokens = whole or settings.input != "none"
        self.content = None
        if settings.input in ("vectors", "both"):
            if catalog.vectors_NF is None:
                raise InputError(
                    f"policy.items.input={settings.input} needs the vectors that semantic IDs are made from, and "
                    "published ones have none; take policy.items.input=own"
                )
            self.content = nn.Linear(catalog.vectors_NF.shape[1], dims, bias=False)
        _require_memory(self._items, dims, int(has_own) + int(settings.head))
        self.own = _table(self._items, dims) if has_own else None
        self.up = nn.Linear(dims, hidden, bias=False) if settings.input != "none" else None
        has_mean = settings.mean and settings.input != "none"
        self.mean_up = nn.Linear(dims, hidden, bias=False) if has_mean else None
        decays = torch.full((math.gcd(DECAYS, dims),), math.log(DECAY_START / (1 - DECAY_START)))
        self.decay_G = nn.Parameter(decays) if has_mean else None
        self.head = _table(self._items, dims) if settings.head else None
        self.query = nn.Linear(hidden, dims, bias=False) if settings.head else None
        has_scale = settings.head and settings.score == "cosine"
        self.repeat = None
        if settings.head and settings.repeats and has_own_tokens:
            self.repeat = RepeatWeights(hidden, sids, 1 if whole else len(sids.level_sizes))
        self.log_scale = nn.Parameter(torch.full((1,), math.log(SCALE))) if has_scale else None
        for up in (self.up, self.mean_up):
            if up is not None:  # A pretrained model begins as it would without rows.
                nn.init.zeros_(up.weight)
        if self.query is not None:
            nn.init.normal_(self.query.weight, std=hidden**-0.5)
        self.set_catalog(catalog, sids)

    def set_catalog(self, catalog: Catalog, sids: SidTokens) -> None:
        """Serve a catalogue that grew from the one of the training; it must have vectors if that had."""
        present_N = torch.ones(len(catalog), dtype=torch.bool)
        present_N[list(catalog.removed)] = False
        vectors_NF = None if self.content is None else catalog.vectors_NF
        known = Known(sids.tokens(catalog.codes_NL), present_N, vectors_NF, catalog.nearest_assigned)
        device = next(self.parameters()).device
        # One assignment, so that requests of other threads see one catalogue or the other.
        self._known = known.moved(lambda tensor: tensor.to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ItemRows:
        super()._apply(fn, recurse)
        self._known = self._known.moved(fn)
        return self

    @property
    def has_input(self) -> bool:
        """Whether items of the history get their rows."""
        return self.up is not None

    @property
    def has_head(self) -> bool:
        """Whether there is a head over items."""
        return self.head is not None

    def own_rows(self) -> list[nn.Parameter]:
        """The parameters that no module's own forward uses: the head's table, its scale, the decays of the mean."""
        table = [] if self.head is None else list(self.head.parameters())
        return [*table, *(one for one in (self.log_scale, self.decay_G) if one is not None)]

    def embed(self, tokens_BS: Tensor, table: Callable[[Tensor], Tensor], earlier_BP: Tensor | None = None) -> Tensor:
        """Embeddings (B, S, D) of tokens, items among them (``ITEM_TOKEN`` + row).

        Args:
            table: the policy's own embedding of tokens.
            earlier_BP: the P tokens before them, whose items count in the means of the history.
        """
        new = tokens_BS.shape[1]
        if (self.mean_up is not None or self._context) and earlier_BP is not None:
            tokens_BS = torch.cat([earlier_BP, tokens_BS], 1)
        row_BS = tokens_BS - ITEM_TOKEN
        is_item_BS = row_BS >= 0
        row_BS = row_BS.clamp(min=0)
        codes_BSL = self._known.tokens_NL[row_BS]
        embedded_BSD = table(torch.where(is_item_BS, codes_BSL[..., -1], tokens_BS))
        if self._is_whole:
            others_BSD = table(codes_BSL[..., :-1]).sum(-2)
            embedded_BSD = embedded_BSD + others_BSD * is_item_BS[..., None]
        if self.up is None:
            return embedded_BSD
        input_BSd = self._input(row_BS)
        rows_BSD = self.up(input_BSd) * is_item_BS[..., None]
        if self.mean_up is not None and (longest := int(is_item_BS.sum(1).max())):
            # The items of each row in front: their distances are then the same in all rows.
            at_BI = is_item_BS.long().argsort(dim=1, descending=True, stable=True)[:, :longest]
            is_item_BI1 = is_item_BS.gather(1, at_BI)[..., None]
            at_BId = at_BI[..., None].expand(-1, -1, input_BSd.shape[-1])
            mean_BID = self.mean_up(self._means(input_BSd.gather(1, at_BId) * is_item_BI1)) * is_item_BI1
            rows_BSD = rows_BSD.scatter_add(1, at_BI[..., None].expand_as(mean_BID), mean_BID)
        embedded_BSD = embedded_BSD + rows_BSD.to(embedded_BSD.dtype)
        if self._context:
            embedded_BSD = embedded_BSD + self._carried(tokens_BS, is_item_BS, embedded_BSD)
        return embedded_BSD[:, -new:]

    def _carried(self, tokens_BS: Tensor, is_item_BS: Tensor, embedded_BSD: Tensor) -> Tensor:
        """For each token of the context the embedding (B, S, D) of the last item before it; zeros for other tokens.

        The answer is predicted from the last token of a prompt. Without context that is an item, and attention would
        otherwise have to learn first to fetch what the state of an item has from the start.
        """
        place_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        last_BS = torch.where(is_item_BS, place_S, -1).cummax(1).values
        is_context_BS = (tokens_BS >= self._context.start) & (tokens_BS < self._context.stop)
        index_BSD = last_BS.clamp(min=0)[..., None].expand_as(embedded_BSD)
        return embedded_BSD.gather(1, index_BSD) * (is_context_BS & (last_BS >= 0))[..., None]

    def plain_tokens(self, tokens_BS: Tensor) -> Tensor:
        """The tokens with each item's last code in its place."""
        last_BS = self._known.tokens_NL[(tokens_BS - ITEM_TOKEN).clamp(min=0)][..., -1]
        return torch.where(tokens_BS >= ITEM_TOKEN, last_BS, tokens_BS)

    def log_probabilities(self, hidden_MD: Tensor, tokens_MS: Tensor) -> Tensor:
        """log p (M, N) of every item, in float32; -inf at removed ones.

        Args:
            tokens_MS: the prompts that the states ``hidden_MD`` stand behind.
        """
        return self._logits(hidden_MD, self._seen(hidden_MD, tokens_MS)).log_softmax(-1)

    def loss(
        self,
        hidden_MD: Tensor,
        items_M: Tensor,
        tokens_MS: Tensor,
        soft: SoftTargets | None = None,
        *,
        last_M: Tensor | None = None,
    ) -> Tensor:
        """``policy.items.weight`` · -log p of the targets ``items_M`` after the states ``hidden_MD``, (M,).

        Beyond ``FULL_SOFTMAX`` items the partition sum is estimated from n items drawn uniformly for the whole batch,
        those equal to the target left out: exp(s_t) + (N - 1) / n · Σ exp(s_j). Where repeats have weights, each item
        of the history is added by itself, with its weight; that the sample may hold it too is of the order of 1 in N.

        Args:
            tokens_MS: what the states stand behind, or whole sequences with ``last_M``, the place of the last token
                that each state has read.
            soft: the loss becomes (1 - w) · -log p(target) - w · Σ_e share_e log p(item_e) where a target has entries.
        """
        asked_Md, head = self._asked(hidden_MD), cast("nn.Embedding", self.head)
        seen = self._seen(hidden_MD, tokens_MS, last_M)
        if self._items <= FULL_SOFTMAX:
            logp_MN = self._logits(hidden_MD, seen).log_softmax(-1)
            logp_M = logp_MN.gather(1, items_M[:, None])[:, 0]
            logp_E = None if soft is None else logp_MN[soft.row_E, soft.item_E]
        else:
            drawn_n = torch.randint(self._items, (self._negatives,), device=items_M.device)
            target_M = (asked_Md * self._compared(head(items_M))).sum(-1).float()
            others_Mn = F.linear(asked_Md, self._compared(head(drawn_n))).float()
            others_Mn = others_Mn + math.log((self._items - 1) / self._negatives)
            others_Mn = others_Mn.masked_fill(drawn_n == items_M[:, None], -torch.inf)
            if seen is not None:
                target_M = seen.adjusted(target_M[:, None], items_M[:, None])[:, 0]
                others_Mn = torch.cat([others_Mn, self._seen_logits(asked_Md, seen, items_M)], -1)
            sum_M = torch.cat([target_M[:, None], others_Mn], -1).logsumexp(-1)
            logp_M, logp_E = target_M - sum_M, None
            if soft is not None:
                logit_E = (asked_Md[soft.row_E] * self._compared(head(soft.item_E))).sum(-1).float()
                if seen is not None:
                    logit_E = seen.rows(soft.row_E).adjusted(logit_E[:, None], soft.item_E[:, None])[:, 0]
                logp_E = logit_E - sum_M[soft.row_E]
        if soft is None or logp_E is None:
            return -self._weight * logp_M
        zeros_M = torch.zeros_like(logp_M)
        expected_M = zeros_M.index_add(0, soft.row_E, soft.share_E * logp_E)
        weight_M = zeros_M.index_fill(0, soft.row_E, soft.weight)
        return -self._weight * torch.lerp(logp_M, expected_M, weight_M)

    def _asked(self, hidden_xD: Tensor) -> Tensor:
        """What a state asks for, (…, d): its product with an item's compared row is the item's logit."""
        query = cast("nn.Linear", self.query)
        asked_xd = query(hidden_xD.to(query.weight.dtype))
        return asked_xd if self.log_scale is None else F.normalize(asked_xd, dim=-1) * self.log_scale.exp()

    def _compared(self, rows_xd: Tensor) -> Tensor:
        return rows_xd if self.log_scale is None else F.normalize(rows_xd, dim=-1)

    def _seen(self, hidden_MD: Tensor, tokens_MS: Tensor, last_M: Tensor | None = None) -> Seen | None:
        return None if self.repeat is None else self.repeat.seen(hidden_MD, tokens_MS, last_M)

    def _seen_logits(self, asked_Md: Tensor, seen: Seen, items_M: Tensor) -> Tensor:
        """The logits (M, S) of the items of each history but the target, once each; -inf in other places."""
        rows_MSd = self._compared(cast("nn.Embedding", self.head)(seen.item_MS))
        logit_MS = seen.adjusted(torch.einsum("md,msd->ms", asked_Md, rows_MSd).float(), seen.item_MS)
        is_counted_MS = seen.is_first_MS & (seen.item_MS != items_M[:, None])
        return logit_MS.masked_fill(~is_counted_MS, -torch.inf)

    def _logits(self, hidden_MD: Tensor, seen: Seen | None) -> Tensor:
        """Logits (M, N) of all items in float32, -inf at removed ones."""
        known, head, asked_Md = self._known, cast("nn.Embedding", self.head), self._asked(hidden_MD)
        rows_Nd = self._compared(head.weight)
        if inserted := len(known.tokens_NL) - self._items:
            rows_Nd = torch.cat([rows_Nd, self._new_rows(rows_Nd, inserted, known.near_MX)])
        logits_MN = F.linear(asked_Md, rows_Nd).float()
        if seen is not None:
            logits_MN = seen.adjusted_all(logits_MN)
        return logits_MN.masked_fill(~known.present_N, -torch.inf)

    def _new_rows(self, rows_Nd: Tensor, inserted: int, near_MX: Tensor | None) -> Tensor:
        """The head's rows (M, d) of inserted items, from the compared rows of the trained ones.

        Their mean m gives the mean of the neighbours' logits, too little for an item that is like them; m / |m| has
        larger cosines than most trained rows, and takes the places of other items. Between them lies m / |m|^½.
        """
        if near_MX is None:
            return rows_Nd.new_zeros(inserted, rows_Nd.shape[1])
        mean_Md = rows_Nd[near_MX].mean(-2)
        if self.log_scale is None:
            return mean_Md
        return mean_Md * mean_Md.norm(dim=-1, keepdim=True).clamp(min=1e-6) ** -NEW_ITEMS

    def _means(self, input_BId: Tensor) -> Tensor:
        """m (B, I, d) of the module's formula, from the rows of the items of each history, oldest first."""
        decay_G, length = cast("Tensor", self.decay_G), input_BId.shape[1]
        place_I = torch.arange(length, device=input_BId.device)
        age_II = place_I[:, None] - place_I
        weight_IIG = torch.exp(age_II.clamp(min=0)[..., None] * F.logsigmoid(decay_G)) * (age_II >= 0)[..., None]
        weight_IIG = weight_IIG / weight_IIG.sum(1, keepdim=True).sqrt()
        input_BIGu = input_BId.unflatten(-1, (len(decay_G), -1))
        return torch.einsum("tsg,bsgu->btgu", weight_IIG.to(input_BId.dtype), input_BIGu).flatten(2)

    def _input(self, items_x: Tensor) -> Tensor:
        """The input's rows (…, d) of ``items_x``; in training some of the learned ones are left out."""
        known, parts = self._known, list[Tensor]()
        if self.own is not None:
            own_xd = _rows(self.own, items_x, known.near_MX)
            if self.training and self._dropout:
                own_xd = own_xd * (torch.rand(items_x.shape, device=items_x.device) >= self._dropout)[..., None]
            parts.append(own_xd)
        if self.content is not None and known.vectors_NF is not None:
            parts.append(self.content(known.vectors_NF[items_x].to(self.content.weight.dtype)))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def make_item_rows(
    settings: PolicyConfig, catalog: Catalog, hidden: int, sids: SidTokens
) -> tuple[ItemRows | None, ItemTokens]:
    """The rows of items of a policy, None where it has none, and how its prompts write an item; errors of ``ItemRows``.

    Args:
        hidden: D of the policy.
    """
    whole = settings.has_whole_items
    form: ItemTokens = "whole" if whole else "codes" if settings.items.input == "none" else "last"
    if settings.items.input == "none" and not settings.items.head:
        return None, form
    return ItemRows(settings.items, catalog, hidden, sids, whole=whole), form


def _table(items: int, dims: int) -> nn.Embedding:
    table = nn.Embedding(items, dims)
    nn.init.normal_(table.weight, std=START)
    return table


def _rows(table: nn.Embedding, items_x: Tensor, near_MX: Tensor | None) -> Tensor:
    """Rows (…, d) of a table of trained items; of inserted ones the mean of their neighbours' (zeros without)."""
    trained = table.num_embeddings
    is_new_x = items_x >= trained
    if not bool(is_new_x.any()):
        return table(items_x)
    rows_xd = table(torch.where(is_new_x, 0, items_x)) * ~is_new_x[..., None]
    if near_MX is None:
        return rows_xd
    near_xX = near_MX[(items_x - trained).clamp(min=0)]
    return rows_xd + table(near_xX).mean(-2) * is_new_x[..., None]


def _require_memory(items: int, dims: int, tables: int) -> None:
    """Refuse rows that training could not hold.

    Raises:
        InputError: ``COPIES`` of them are more than the memory that is free.
    """
    free = psutil.virtual_memory().available
    need = items * dims * tables * 4 * COPIES
    if need > free:
        fits = free // (items * tables * 4 * COPIES)
        remedy = f"policy.items.dims={fits} fits" if fits else "take policy.items.input=vectors and head=false"
        raise InputError(
            f"rows of {items:,} items with policy.items.dims={dims} take {need / 2**30:.1f} GiB in training, got "
            f"{free / 2**30:.1f} GiB of free memory; {remedy}"
        )
