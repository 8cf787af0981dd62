"""Validation during training ranks as the evaluation does."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.synthetic import random_catalog, small_policy

from genrec import metrics
from genrec.baselines.train_log import recent_history
from genrec.baselines.tuning import fit_baselines
from genrec.data.train_counts import count_train
from genrec.evaluation.validate import Search, ranked_items
from genrec.inference.batch import without_seen
from genrec.inference.prior import RankedItems
from genrec.policy.decoding.beam import beam
from genrec.types import Query

HISTORY = 4


def sequences(items: list[list[int]]) -> pa.Table:
    return pa.table({"items": items, "split": [[0, *[1] * (len(row) - 1)] for row in items]})


@pytest.mark.parametrize("repeats", [False, True])
def test_seen_items_are_masked_exactly_where_the_evaluation_masks_them(repeats: bool) -> None:
    log = sequences([[i, i + 1, i + 2, *([i] if repeats else [])] for i in range(20)])
    valid = pa.table({"history": [[1, 2]], "target": [3]})
    search = Search.of(10, HISTORY, mask_seen=count_train(log, 40).mask_seen)
    assert (search.masked > 0) == (not repeats) == fit_baselines(log, valid, 40, HISTORY).mask_seen
    catalog = random_catalog(40, (5, 5, 5))
    policy, prompts = small_policy(catalog)
    best = beam(policy, *prompts.encode([[1, 2]]), catalog.trie, 40).items_BW[0].tolist()
    histories = [tuple(best[:3]), (7, 8), tuple(best[4:10])]
    asked = zip(histories, best[3:6], strict=True)
    queries = [Query(i, i, history, target) for i, (history, target) in enumerate(asked)]
    found = beam(policy, *prompts.encode(histories), catalog.trie, 10 + search.masked)
    ranked = RankedItems(found.items_BW.numpy(), found.logp_BW.numpy())
    if not repeats:  # what cluster.batch_inference does with the answers of the evaluation
        ranked = without_seen(ranked, recent_history(pa.table({"history": histories}), HISTORY), 10)
    items_QK = ranked_items(policy, prompts, catalog.trie, queries, search)
    assert torch.equal(items_QK, torch.from_numpy(ranked.items_QK))
    seen = [Query(0, 0, (best[0],), best[0])]
    found = ranked_items(policy, prompts, catalog.trie, seen, Search(40, search.masked)).numpy()
    assert found.shape == (1, 40) and bool(metrics.target_ranks(found, np.array([best[0]])) > 0) == repeats
