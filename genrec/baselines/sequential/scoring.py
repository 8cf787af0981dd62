"""All items scored by a sequential network, in batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrec.baselines.sequential.network import ItemNetwork
from genrec.metrics import FloatArray, IntArray

BATCH = 512
"""Histories of a forward."""


class SequentialBaseline:
    """A trained network as a baseline: scores of all items for histories."""

    def __init__(self, network: ItemNetwork) -> None:
        self.network = network.eval()

    @torch.inference_mode()
    def dense(self, recent_QH: IntArray) -> FloatArray:
        """Scores (Q, N) of histories (Q, H), newest first and padded with -1; all 0 for an empty one."""
        scores = np.zeros((len(recent_QH), self.network.n_items))
        for rows, states_BD in last_states(self.network, recent_QH):
            scores[rows] = (states_BD @ self.network.rows_ND.T).cpu().numpy()
        return scores


def last_states(network: ItemNetwork, recent_QH: IntArray) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Rows of queries, and the states (B, D) of their histories; empty histories are left out.

    Queries of similar lengths are encoded together.
    """
    device = network.items.weight.device
    lengths_Q = (recent_QH >= 0).sum(axis=1)
    order_Q = np.argsort(lengths_Q, kind="stable")
    order_Q = order_Q[lengths_Q[order_Q] > 0]
    for start in range(0, len(order_Q), BATCH):
        rows = order_Q[start : start + BATCH]
        lengths_B = lengths_Q[rows]
        place_T = np.arange(lengths_B.max())
        index_BT = np.maximum(lengths_B[:, None] - 1 - place_T, 0)
        items_BT = np.take_along_axis(recent_QH[rows], index_BT, axis=1)
        yield rows, network.last(torch.from_numpy(items_BT).to(device), torch.from_numpy(lengths_B).to(device))
