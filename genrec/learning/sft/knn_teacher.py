"""What other users of the same recent history chose, as soft targets for the item head.

The head of a policy learns from one item per history; ItemKNN knows from counts what else often follows. Its
distribution q is learned beside the targets (distillation, Hinton et al. 2015):

    loss = (1 - w) · -log p(target) - w · Σ_j q(j) log p(j)

ItemKNN has to be cross-fitted: with a user's own events in its counts, q would give the targets away. So the users are
divided into folds, and the q of a fold comes from the train events of the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from genrec.baselines.itemknn import ItemKNN, KnnSettings, Pairs, cross_fitted, fit_itemknn
from genrec.baselines.sparse import Sparse, keep_largest, mask_seen_items, row_of_entry
from genrec.baselines.train_log import TRAIN_COLUMNS, newest_first, train_events, train_log
from genrec.data.readers import stream_sequences
from genrec.inference.prior import normalise
from genrec.learning.sft.batches import Dense, Rows
from genrec.metrics import IntArray
from genrec.policy.item_rows import SoftTargets

FOLDS = 4

ENTRIES = 100
"""Items of q at most, the most probable ones."""


class KnnTeacher:
    """Soft targets from ItemKNN, with its default settings: they need no validation query.

    Args:
        by_fold: of each fold the ItemKNN that knows the users of the others, see ``fit_by_fold`` and ``fit_fold``.
        max_history: items of a history that are used, its last ones.
        weight: w of the module's formula.
        mask_seen: whether q leaves out the items of the history.
    """

    def __init__(self, by_fold: Sequence[ItemKNN], max_history: int, weight: float, *, mask_seen: bool) -> None:
        self._by_fold, self._max_history, self._weight, self._mask_seen = by_fold, max_history, weight, mask_seen

    def __call__(self, batch: Dense | Rows) -> SoftTargets:
        """The soft targets of the M targets of ``batch``, in the order of the loss; without users, none."""
        recent_MH, row_M = _histories(batch, self._max_history)
        row_E, item_E, share_E = list[IntArray](), list[IntArray](), list[NDArray[np.float64]]()
        if batch.users:
            fold_M = user_folds(batch.users)[row_M]
            for fold in np.unique(fold_M):
                (at_m,) = (fold_M == fold).nonzero()
                shares = self._shares(self._by_fold[fold], recent_MH[at_m])
                row_E.append(at_m[row_of_entry(shares)])
                item_E.append(shares.indices.astype(np.int64))
                share_E.append(shares.data)
        rows_E, items_E = (torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *part])) for part in (row_E, item_E))
        shares_E = torch.from_numpy(np.concatenate([np.zeros(0), *share_E])).float()
        return SoftTargets(rows_E, items_E, shares_E, self._weight)

    def _shares(self, knn: ItemKNN, recent_MH: IntArray) -> Sparse:
        scores = knn.scores(recent_MH)
        return normalise(keep_largest(mask_seen_items(scores, recent_MH) if self._mask_seen else scores, ENTRIES))


def _histories(batch: Dense | Rows, length: int) -> tuple[IntArray, IntArray]:
    """The items before each target (M, H), newest first and padded with -1, and the row of the batch it is in (M,)."""
    if isinstance(batch, Rows):
        return newest_first(batch.histories, length), np.arange(len(batch.histories))
    row_M, place_M = (part.numpy() for part in batch.target_BI.nonzero(as_tuple=True))
    index_MH = place_M[:, None] - 1 - np.arange(length)
    items_BI = batch.items_BI.numpy()
    return np.where(index_MH >= 0, items_BI[row_M[:, None], index_MH.clip(min=0)], -1), row_M


def fit_by_fold(sequences: pa.Table, n_items: int) -> list[ItemKNN]:
    """The ItemKNN of each fold, from the train positions of all users' sequences, with their ``user_id``."""
    return cross_fitted(train_log(sequences, n_items), user_folds(sequences["user_id"].to_pylist()), FOLDS)


def fit_fold(data: Path, n_items: int, fold: int) -> ItemKNN:
    """The one of a single fold, from the sequences of a data directory, which are read a part at a time."""
    tables = stream_sequences(data, ["user_id", *TRAIN_COLUMNS])
    others = (table.filter(pa.array(user_folds(table["user_id"].to_pylist()) != fold)) for table in tables)
    return fit_itemknn(Pairs(train_events(others, n_items)), KnnSettings())


def user_folds(users: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each user."""
    return np.array([zlib.crc32(str(user).encode()) % FOLDS for user in users], dtype=np.int64)
