"""Supervised losses over semantic IDs: Σ -log p(code) over targets and levels, weighted per code or per item."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.config import Loss
from genrec.learning.sft.batches import Dense, Rows
from genrec.learning.sft.knn_teacher import KnnTeacher
from genrec.policy.backbone import BOS
from genrec.policy.decoding.beam import masked_log_softmax
from genrec.policy.decoding.score import states
from genrec.policy.decoding.shared_prefix import states_after
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.catalog import Catalog

NEAR_ZERO = 1e-9
"""Floor of 1 - p in the focal weight: a power below 1 has no finite slope at 0, which a forced code (p = 1) reaches."""


class _TargetStates(NamedTuple):
    """The M targets of a batch: the items, and per level the hidden states (M, D) that predict its code.

    The state of a target has read its row ``row_M`` of the tokens, up to the place ``last_M``.
    """

    items_M: Tensor
    hidden_LMD: tuple[Tensor, ...]
    tokens_BS: Tensor
    row_M: Tensor
    last_M: Tensor


class SftLoss:
    """Σ_targets Σ_levels w · [-(1 - s) log p(code) - s · mean over allowed codes of log p]; one forward per batch.

    s is the label smoothing (Szegedy et al. 2016, §7), w the weights of ``weighted_units``. A policy with an item head
    adds ``policy.items.weight`` · -log p_head(target) for each target.

    Args:
        softmax: the codes that p is normalised over: ``trie``, those that exist under the prefix (as in decoding);
            ``level``, the level's K codes; ``vocabulary``, every token of the model.
        smoothing: s.
        weights: the weights of the cross-entropy (see ``weighted_units`` and ``hardest_sum``).
        rare_N: True for the items that the weight ``rare`` applies to (see ``rare_items``).
        teacher: gives the item head soft targets, too.
        device: of the policy.
    """

    def __init__(
        self,
        prompts: Prompts,
        catalog: Catalog,
        *,
        softmax: Literal["trie", "level", "vocabulary"] = "trie",
        smoothing: float = 0.0,
        weights: Loss | None = None,
        rare_N: Tensor | None = None,
        teacher: KnnTeacher | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._prompts = prompts
        self._codes_NL = catalog.codes_NL
        self._trie = catalog.trie.to(device)
        self._softmax = softmax
        self._smoothing = smoothing
        self._weights = weights or Loss()
        self._teacher = teacher
        self._rare_N = torch.zeros(len(catalog.codes_NL), dtype=torch.bool) if rare_N is None else rare_N

    def __call__(self, policy: Policy, batch: Dense | Rows) -> Tensor:
        """The loss summed over the batch's targets, a scalar."""
        loss_MU, head_M = self._parts(policy, batch)
        total = hardest_sum(loss_MU, self._weights)
        return total if head_M is None else total + head_M.sum()

    def per_sample(self, policy: Policy, batch: Dense | Rows) -> Tensor:
        """The loss of each row or window of the batch, (B,), summed over its targets; without the weight ``hard``."""
        loss_MU, head_M = self._parts(policy, batch)
        loss_M = loss_MU.sum(-1) if head_M is None else loss_MU.sum(-1) + head_M
        if isinstance(batch, Rows):
            return loss_M
        row_M = torch.repeat_interleave(batch.targets_B).to(loss_M.device)
        return loss_M.new_zeros(len(batch.target_BI)).index_add(0, row_M, loss_M)

    def _parts(self, policy: Policy, batch: Dense | Rows) -> tuple[Tensor, Tensor | None]:
        """The weighted losses of each target's units, (M, U), and its loss under an item head, (M,)."""
        found = self._dense(policy, batch) if isinstance(batch, Dense) else self._rows(policy, batch)
        items_M, hidden_LMD = found.items_M, found.hidden_LMD
        codes_ML = self._codes_NL[items_M].to(policy.device)
        nodes_ML = self._trie.walk(codes_ML)
        levels = [
            self._level(policy, hidden_LMD[level], level, codes_ML[:, level], nodes_ML[:, level])
            for level in range(self._trie.depth)
        ]
        logp_ML, loss_ML = (torch.stack(columns, dim=-1) for columns in zip(*levels, strict=True))
        loss_MU = weighted_units(loss_ML, logp_ML, self._rare_N[items_M].to(policy.device), self._weights)
        if policy.item_head is None:
            return loss_MU, None
        soft = None if self._teacher is None else self._teacher(batch).to(policy.device)
        tokens_MS, last_M = found.tokens_BS[found.row_M].to(policy.device), found.last_M.to(policy.device)
        head_M = policy.item_head.loss(hidden_LMD[0], items_M.to(policy.device), tokens_MS, soft, last_M=last_M)
        return loss_MU, head_M

    def _dense(self, policy: Policy, batch: Dense) -> _TargetStates:
        """The targets of a batch of sequences."""
        if self._prompts.form == "whole":
            return self._dense_whole(policy, batch)
        tokens_BS = self._sequence(batch)
        hidden_BSD = states_after(policy, self._prompts.prefix_P.to(policy.device), tokens_BS.to(policy.device))
        width, first = self._prompts.tokens_per_item, self._prompts.sids.context.before
        hidden_MWD = hidden_BSD.unflatten(1, (-1, width))[batch.target_BI.to(policy.device)]
        row_M, place_M = batch.target_BI.nonzero(as_tuple=True)
        return _TargetStates(
            batch.items_BI[batch.target_BI],
            hidden_MWD[:, first : first + self._trie.depth].unbind(1),
            tokens_BS,
            row_M,
            place_M * width + first - 1,
        )

    def _sequence(self, batch: Dense) -> Tensor:
        """The tokens of all items but the very last token, (B, I · W - 1)."""
        event_BI, time_BI = None, None
        if batch.context is not None:
            number_E = self._prompts.sids.context.numbers([*batch.context.names, None])
            event_BI, time_BI = number_E[batch.context.event_BI], batch.context.time_BI
        return self._prompts.items_in_context(batch.items_BI.clamp(min=0), event_BI, time_BI).flatten(1)[:, :-1]

    def _dense_whole(self, policy: Policy, batch: Dense) -> _TargetStates:
        """As ``_dense`` where an item of the history is one position.

        The codes of each target branch off the state before it, as in decoding: they see the items before the target
        and their own earlier codes.
        """
        items_BI, target_BI, levels = batch.items_BI, batch.target_BI, self._codes_NL.shape[1]
        history_BS = F.pad(self._sequence(batch), (1, 0), value=BOS)
        rows, length = history_BS.shape
        # T: the targets of a row, in front of other positions where it has fewer than the longest.
        at_BT = target_BI.long().argsort(dim=1, descending=True, stable=True)[:, : int(target_BI.sum(1).max())]
        target_BT, count = items_BI.gather(1, at_BT), at_BT.shape[1]
        row_M, target_M = target_BI.gather(1, at_BT).nonzero(as_tuple=True)
        # From an item's number to the position of the token before it.
        at_BT = at_BT * self._prompts.tokens_per_item + self._prompts.sids.context.before
        codes_BTL = self._codes_NL[target_BT.clamp(min=0)]
        branches = [policy.sids.token(level, codes_BTL[..., level]) for level in range(levels - 1)]
        tokens_BS = torch.cat([history_BS, *branches], 1)
        place_S = torch.arange(length)
        positions_BS = torch.cat([place_S.expand(rows, -1), *(at_BT + 1 + level for level in range(levels - 1))], 1)
        history_SS, own_TT = (torch.ones(length, length, dtype=torch.bool).tril(), torch.eye(count, dtype=torch.bool))
        masks_BXS = [F.pad(history_SS, (0, count * (levels - 1))).expand(rows, -1, -1)]
        for level in range(levels - 1):
            own_TX = F.pad(own_TT.repeat(1, level + 1), (0, count * (levels - 2 - level)))
            masks_BXS.append(torch.cat([place_S <= at_BT[..., None], own_TX.expand(rows, -1, -1)], -1))
        mask_B1SS = torch.cat(masks_BXS, 1)[:, None]
        tokens_BS, positions_BS, mask_B1SS = (part.to(policy.device) for part in (tokens_BS, positions_BS, mask_B1SS))
        hidden_BSD = policy.hidden(tokens_BS, positions_BS, mask_B1SS)
        history_BHD, *branched = hidden_BSD.split([length, *[count] * (levels - 1)], 1)
        last_M = at_BT[row_M, target_M]
        states_LMD = (history_BHD[row_M, last_M], *(part_BTD[row_M, target_M] for part_BTD in branched))
        return _TargetStates(target_BT[row_M, target_M], states_LMD, history_BS, row_M, last_M)

    def _rows(self, policy: Policy, batch: Rows) -> _TargetStates:
        """As ``_dense``, with one target per row: M = B."""
        tokens_BP, mask_BP = (tensor.to(policy.device) for tensor in self._encoded(batch))
        codes_B1L = self._codes_NL[batch.target_B][:, None].to(policy.device)
        hidden = states(policy, tokens_BP, mask_BP, codes_B1L)
        states_LBD, row_B = tuple(hidden_B1D[:, 0] for hidden_B1D in hidden), torch.arange(len(tokens_BP))
        return _TargetStates(
            batch.target_B, states_LBD, tokens_BP, row_B, torch.full_like(row_B, tokens_BP.shape[1] - 1)
        )

    def _encoded(self, batch: Rows) -> tuple[Tensor, Tensor]:
        return self._prompts.encode(batch.histories, batch.contexts)

    def _level(
        self, policy: Policy, hidden_MD: Tensor, level: int, codes_M: Tensor, nodes_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each target's code, and its (smoothed) cross-entropy, both (M,)."""
        if self._softmax == "vocabulary":
            logp_MX = policy.vocabulary_logits(hidden_MD).float().log_softmax(-1)
            codes_M = policy.sids.token(level, codes_M)
        elif self._softmax == "level":
            logp_MX = policy.level_logits(hidden_MD, level).float().log_softmax(-1)
        else:
            logp_MX = masked_log_softmax(policy.level_logits(hidden_MD, level), self._trie.step(level, nodes_M) >= 0)
        logp_M = logp_MX.gather(-1, codes_M[:, None])[:, 0]
        if not self._smoothing:
            return logp_M, -logp_M
        return logp_M, -(1 - self._smoothing) * logp_M - self._smoothing * _mean_allowed(logp_MX)


def weighted_units(loss_ML: Tensor, logp_ML: Tensor, rare_M: Tensor, weights: Loss) -> Tensor:
    """f_u · ρ_u · ℓ_u of every unit u, (M, U), where each factor is 1 unless ``weights`` names it.

    A unit is a code of a target (U = L), or with ``unit=item`` a whole target (U = 1): ℓ is then the sum over its
    codes, p the product of their probabilities.

    - ``focal``: f = α (1 - p)^γ, with its gradient (Lin et al. 2017, eq. 5).
    - ``rare``: ρ = ``rare_weight`` for rare targets.

    Args:
        loss_ML: cross-entropy ℓ of each code.
        logp_ML: log-probability of each code.
        rare_M: True for rare targets.
    """
    if weights.unit == "item":
        loss_ML, logp_ML = loss_ML.sum(-1, keepdim=True), logp_ML.sum(-1, keepdim=True)
    if "focal" in weights.weights:
        easy_ML = (-torch.expm1(logp_ML)).clamp(min=NEAR_ZERO)
        loss_ML = weights.focal_alpha * easy_ML**weights.focal_gamma * loss_ML
    if "rare" in weights.weights:
        loss_ML = loss_ML * torch.where(rare_M, weights.rare_weight, 1.0)[:, None]
    return loss_ML


def hardest_sum(loss_MU: Tensor, weights: Loss) -> Tensor:
    """The sum over all units, a scalar, or with the weight ``hard`` over the hardest alone.

    These are the k = ⌈share · n⌉ of n units with the largest f ρ ℓ (Shrivastava et al. 2016); their sum is multiplied
    by n / k, so that a mean over targets remains a mean. The units of one call, a worker's micro-batch, are compared.
    """
    units = loss_MU.numel()
    if "hard" in weights.weights and units:
        hardest = math.ceil(weights.hard_share * units)
        return loss_MU.flatten().topk(hardest).values.sum() * (units / hardest)
    return loss_MU.sum()


def rare_items(counts_N: Tensor, share: float) -> Tensor:
    """True for the least frequent items that together make up ``share`` of the train targets, (N,) bool.

    Items are taken in order of their count, those of equal count together, until the share is reached.

    Args:
        counts_N: how often each item is a train target.
    """
    ordered_N, order_N = counts_N.double().sort()
    reached_N = ordered_N.cumsum(0) >= share * ordered_N.sum()
    return counts_N <= counts_N[order_N[int(reached_N.int().argmax())]]


def _mean_allowed(logp_xK: Tensor) -> Tensor:
    allowed_xK = logp_xK > -torch.inf
    return logp_xK.masked_fill(~allowed_xK, 0).sum(-1) / allowed_xK.sum(-1)
