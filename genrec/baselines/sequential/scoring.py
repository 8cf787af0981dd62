"""All items scored by a sequential network, in batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrec.baselines.sequential.network import TrainedNetwork
from genrec.errors import InputError
from genrec.metrics import FloatArray, IntArray

BATCH = 512
"""Histories of a forward."""


class SequentialBaseline:
    """A trained network as a baseline: scores of all items for histories."""

    def __init__(self, network: TrainedNetwork) -> None:
        self.network = network.eval()

    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N) of histories (Q, H), newest first and padded with -1; all 0 for an empty one."""
        return self.dense_of(np.full(len(recent_QH), -1), recent_QH)

    @torch.inference_mode()
    def dense_of(self, users_Q: IntArray, recent_QH: IntArray) -> FloatArray:
        """The same for histories of the users ``users_Q``; -1 for one that is not known."""
        scores_QN = np.zeros((len(recent_QH), self.network.n_items))
        device = next(self.network.parameters()).device
        for rows, items_BT, lengths_B in _batches(recent_QH):
            users_B = torch.from_numpy(users_Q[rows])
            scores_BN = self.network.scores(items_BT.to(device), lengths_B.to(device), users_B.to(device))
            scores_QN[rows] = scores_BN.cpu().numpy()
            if np.isnan(scores_QN[rows]).any():
                raise InputError("the network's scores are no numbers: its training diverged; lower its lr")
        return scores_QN


def _batches(recent_QH: IntArray) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """Rows of queries, and their histories, items (B, T) from the oldest on and lengths (B,); no empty ones.

    Queries of similar lengths are in one batch.
    """
    lengths_Q = (recent_QH >= 0).sum(axis=1)
    order_Q = np.argsort(lengths_Q, kind="stable")
    order_Q = order_Q[lengths_Q[order_Q] > 0]
    for start in range(0, len(order_Q), BATCH):
        rows = order_Q[start : start + BATCH]
        lengths_B = lengths_Q[rows]
        place_T = np.arange(lengths_B.max())
        index_BT = np.maximum(lengths_B[:, None] - 1 - place_T, 0)
        items_BT = np.take_along_axis(recent_QH[rows], index_BT, axis=1)
        yield rows, torch.from_numpy(items_BT), torch.from_numpy(lengths_B)
