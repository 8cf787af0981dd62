"""Repeats in the head over items: what the logit of an item of the history gains and loses, by its places there.

logit_i = (1 - tanh(2 · f(h))) · own_i + Σ_t (w_a(t)(h) + v_e(t),a(t)(h)) + u_e(l),q(l)(h) for the places t where the
item i stands and the last of them, l, with a(t) the number of items behind t and f, w, v and u linear in the state h. v
and u are there where prompts have event types: e(t) is the type of the event, and q(l) the place of the item in the
queue of those whose latest event has the same type, 0 for the one that waits longest. So places tell how likely a
repeat is, and which one (the repeat mode of RepeatNet, Ren et al. 2019, in one softmax): what lies in the cart is
bought, in the order in which it was put there, and what was bought is not.

Shapes: M states, S tokens that they stand behind, N items, X items that are asked about.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.policy.prompts import ITEM_TOKEN, SidTokens

AGES = 20
"""Ages of an item of the history, in items since, that have a weight of their own; older ones share the last. So do
places in a queue."""

REPEAT_SCALE = 5.0
"""Factor of the learned weights of repeats: logits of the size of the scaled cosines within a short training."""

FADE_SCALE = 2.0
"""Factor of f in tanh."""


class Seen(NamedTuple):
    """Items of histories: the item at each place, the logit that it gains there, and whether one stands there, (M, S).

    Without one the item and the gain are 0. ``is_first_MS``: whether the item stands there for the first time;
    ``fade_M``: the share of its own logit that an item of the history loses.
    """

    item_MS: Tensor
    gain_MS: Tensor
    is_item_MS: Tensor
    is_first_MS: Tensor
    fade_M: Tensor

    def rows(self, row_E: Tensor) -> Seen:
        """Those of some rows."""
        return Seen(*(tensor[row_E] for tensor in self))

    def adjusted(self, logit_MX: Tensor, items_MX: Tensor) -> Tensor:
        """The logits (M, X) of ``items_MX`` with what those in the history of their row gain and lose."""
        same_MXS = (items_MX[:, :, None] == self.item_MS[:, None]) & self.is_item_MS[:, None]
        gain_MX = (same_MXS * self.gain_MS[:, None]).sum(-1)
        return logit_MX * (1 - self.fade_M[:, None] * same_MXS.any(-1)) + gain_MX

    def adjusted_all(self, logit_MN: Tensor) -> Tensor:
        """The same of all items, (M, N)."""
        lost_MS = self.fade_M[:, None] * logit_MN.gather(1, self.item_MS) * self.is_first_MS
        return logit_MN.scatter_add(1, self.item_MS, self.gain_MS - lost_MS)


class RepeatWeights(nn.Linear):
    """From a state to w, v, u and f: ``AGES`` weights, twice as many for each event type, and one; zeros at first.

    Args:
        hidden: units of a state.
        width: tokens of an item in a prompt, of which the last is its own.
    """

    def __init__(self, hidden: int, sids: SidTokens, width: int) -> None:
        context = sids.context
        super().__init__(hidden, AGES * (1 + 2 * context.event_count) + 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self._first_type, self._types = sids.context_base, context.event_count
        self._type_place = 1 - context.before * (1 + width)

    def seen(self, hidden_MD: Tensor, tokens_MS: Tensor, last_M: Tensor | None = None) -> Seen:
        """The items of the tokens up to the places ``last_M`` (all, without), with what their logits gain and lose."""
        is_item_MS = tokens_MS >= ITEM_TOKEN
        if last_M is not None:
            is_item_MS = is_item_MS & (torch.arange(tokens_MS.shape[1], device=tokens_MS.device) <= last_M[:, None])
        behind_MS = is_item_MS.long().flip(1).cumsum(1).flip(1) - 1
        age_MS = behind_MS.clamp(0, AGES - 1)
        learned_MX = self(hidden_MD.to(self.weight.dtype)).float()
        weight_MX, fade_M = learned_MX[:, :-1] * REPEAT_SCALE, (learned_MX[:, -1] * FADE_SCALE).tanh()
        gain_MS = weight_MX.gather(1, age_MS)
        if self._types:
            type_MS = (tokens_MS.roll(-self._type_place, 1) - self._first_type) * is_item_MS
            gain_MS = gain_MS + weight_MX.gather(1, AGES * (1 + type_MS) + age_MS)
            latest_MS = is_item_MS & _are_first(torch.where(is_item_MS, tokens_MS, -1).flip(1)).flip(1)
            waiting_MSE = F.one_hot(type_MS, self._types) * latest_MS[..., None]
            queue_MS = (waiting_MSE.cumsum(1) - waiting_MSE).gather(-1, type_MS[..., None])[..., 0].clamp(max=AGES - 1)
            gain_MS = gain_MS + weight_MX.gather(1, AGES * (1 + self._types + type_MS) + queue_MS) * latest_MS
        item_MS = torch.where(is_item_MS, tokens_MS - ITEM_TOKEN, 0)
        return Seen(item_MS, gain_MS * is_item_MS, is_item_MS, is_item_MS & _are_first(tokens_MS), fade_M)


def _are_first(tokens_MS: Tensor) -> Tensor:
    """Whether the token at each place (M, S) stands nowhere before it."""
    sorted_MS, place_MS = tokens_MS.sort(dim=1, stable=True)
    is_new_MS = torch.ones_like(sorted_MS, dtype=torch.bool)
    is_new_MS[:, 1:] = sorted_MS[:, 1:] != sorted_MS[:, :-1]
    return torch.zeros_like(is_new_MS).scatter(1, place_MS, is_new_MS)
