"""Losses over all items of the catalogue, for P predictions at a time.

full      cross-entropy over all N items: -log softmax(S x)[target]
sampled   the same over the target and ``negatives`` items drawn for the whole batch, each of which stands for its share
          of the others: its score gets log((N - 1) / K) added (uniform sampling, so this is the log-Q correction)
bce       -log σ(s_target) - mean of log σ(-s_negative), ``negatives`` drawn for each prediction (SASRec's own loss)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_FLOATS = 3_000_000
"""Scores that the full softmax holds at a time: 12 MB stay in a core's cache, which is what its speed is made of."""

LossName = Literal["full", "sampled", "bce"]


class FullSoftmax(torch.autograd.Function):
    """Summed cross-entropy over all items, whose gradient is computed on the way: no (P, N) array is ever held."""

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, rows_ND: Tensor, target_P: Tensor) -> Tensor:
        """The sum (scalar) over P predictions; x_PD are states, rows_ND the items' rows."""
        chunk = max(1, CHUNK_FLOATS // len(rows_ND))
        grad_PD, grad_ND, total = torch.empty_like(x_PD), torch.zeros_like(rows_ND), x_PD.new_zeros(())
        for start in range(0, len(x_PD), chunk):
            x_CD, target_C1 = x_PD[start : start + chunk], target_P[start : start + chunk, None]
            score_CN = x_CD @ rows_ND.T
            wanted_C1 = score_CN.gather(1, target_C1)
            highest_C1 = score_CN.amax(1, keepdim=True)
            sum_C1 = score_CN.sub_(highest_C1).exp_().sum(1, keepdim=True)
            total += (sum_C1.log() + highest_C1 - wanted_C1).sum()
            share_CN = score_CN.div_(sum_C1)
            share_CN.scatter_add_(1, target_C1, torch.full_like(wanted_C1, -1.0))
            torch.mm(share_CN, rows_ND, out=grad_PD[start : start + chunk])
            grad_ND.addmm_(share_CN.T, x_CD)
        ctx.save_for_backward(grad_PD, grad_ND)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """What ``forward`` prepared, times the gradient of the sum, whose shape is ()."""
        grad_PD, grad_ND = ctx.saved_tensors
        return grad_PD * grad, grad_ND * grad, None


def full_softmax(x_PD: Tensor, rows_ND: Tensor, target_P: Tensor) -> Tensor:
    """Cross-entropy over all items, summed over the predictions (scalar)."""
    return FullSoftmax.apply(x_PD, rows_ND, target_P)


def sampled_softmax(x_PD: Tensor, rows_ND: Tensor, target_P: Tensor, negative_K: Tensor) -> Tensor:
    """Cross-entropy over the target and K shared negatives, summed (scalar); a negative that is the target is none."""
    wanted_P1 = (x_PD * rows_ND[target_P]).sum(1, keepdim=True)
    others_PK = x_PD @ rows_ND[negative_K].T + math.log(max(1, len(rows_ND) - 1) / len(negative_K))
    others_PK = others_PK.masked_fill(target_P[:, None] == negative_K, -math.inf)
    return (torch.cat([wanted_P1, others_PK], 1).logsumexp(1) - wanted_P1[:, 0]).sum()


def binary(x_PD: Tensor, rows_ND: Tensor, target_P: Tensor, negative_PK: Tensor) -> Tensor:
    """Binary cross-entropy of the target and of K own negatives, whose mean counts, summed (scalar)."""
    wanted_P = (x_PD * rows_ND[target_P]).sum(1)
    others_PK = torch.einsum("pd,pkd->pk", x_PD, rows_ND[negative_PK])
    return F.softplus(-wanted_P).sum() + F.softplus(others_PK).mean(1).sum()


def item_loss(kind: LossName, x_PD: Tensor, rows_ND: Tensor, target_P: Tensor, negatives: int) -> Tensor:
    """The loss ``kind``, summed over the predictions (scalar); negatives are drawn by torch's generator."""
    if kind == "full":
        return full_softmax(x_PD, rows_ND, target_P)
    if kind == "sampled":
        drawn_K = torch.randint(len(rows_ND), (negatives,), device=x_PD.device)
        return sampled_softmax(x_PD, rows_ND, target_P, drawn_K)
    drawn_PK = torch.randint(len(rows_ND), (len(target_P), negatives), device=x_PD.device)
    return binary(x_PD, rows_ND, target_P, drawn_PK)
