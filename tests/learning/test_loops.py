from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.synthetic import random_catalog, small_policy

from genrec.errors import InputError
from genrec.learning.rl.loop import train_async
from genrec.learning.rl.query_sampler import QueryStream
from genrec.learning.schedule import learning_rate
from genrec.learning.sft.batches import DenseExamples, Epochs, RowExamples
from genrec.learning.sft.losses import SftLoss
from genrec.types import Group, Query, Snapshot


def sequences(lengths: Sequence[int]) -> pa.Table:
    items = [list(range(length)) for length in lengths]
    return pa.table({"items": items, "split": [[0] + [1] * (length - 1) for length in lengths]})


def test_dense_windows_score_every_train_target_once_with_enough_history() -> None:
    examples = DenseExamples(sequences([2, 9, 11, 12, 40]), max_history=5)
    batch = examples.take(np.arange(len(examples.lengths())))
    scored = batch.items_BI[batch.target_BI].tolist()
    assert sorted(scored) == sorted(item for n in (2, 9, 11, 12, 40) for item in range(1, n))
    places = batch.target_BI.nonzero()
    for row, place in places.tolist():
        item = int(batch.items_BI[row, place])
        assert place == item or place > 5


def test_the_dense_loss_is_that_of_a_row_per_target() -> None:
    catalog = random_catalog(40, (5, 5, 5))
    policy, prompts = small_policy(catalog)
    loss = SftLoss(prompts, catalog, smoothing=0.1)
    dense = DenseExamples(sequences([6, 4]), max_history=6)
    rows = {
        "history": [list(range(t)) for n in (6, 4) for t in range(1, n)],
        "target": [t for n in (6, 4) for t in range(1, n)],
    }
    by_row = RowExamples(pa.table(rows))
    whole = loss(policy, dense.take(np.arange(2)))
    each = loss(policy, by_row.take(np.arange(8)))
    assert float(whole.detach()) == pytest.approx(float(each.detach()), rel=1e-4)


def test_a_batch_depends_on_seed_and_step_alone_and_an_epoch_sees_all() -> None:
    examples = DenseExamples(sequences([3 + i % 5 for i in range(50)]), max_history=5)
    first, again = Epochs(examples, 8, seed=3), Epochs(examples, 8, seed=3)
    again.index(20)
    assert all((first.index(step) == again.index(step)).all() for step in (0, 5, 13))
    assert sorted(np.concatenate([first.index(s) for s in range(first.steps)])) == list(range(50))
    assert (first.index(0) != Epochs(examples, 8, seed=4).index(0)).any()


def test_workers_share_a_batch_without_overlap() -> None:
    epochs = Epochs(RowExamples(pa.table({"history": [[i] for i in range(10)], "target": list(range(10))})), 10, seed=0)
    shares = [epochs.micro_batches(0, 2, rank, 2) for rank in range(2)]
    assert {total for _, total in shares} == {10}
    targets = [int(t) for pieces, _ in shares for piece in pieces for t in piece.target_B]
    assert sorted(targets) == list(range(10))


def test_the_rate_rises_then_falls_to_its_low() -> None:
    rates = [learning_rate(step, 100, peak=1.0, low=0.1, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


class CountingLearner:
    """A learner that only counts; records the staleness of what it is fed."""

    def __init__(self) -> None:
        self.version = 0
        self.staleness: list[int] = []

    def snapshot(self) -> Snapshot:
        return Snapshot(self.version, {})

    def update(self, groups: list[Group]) -> dict[str, float]:
        self.staleness.append(self.version - groups[0].version)
        self.version += 1
        return {"step": float(self.version)}


class EchoRollouts:
    def submit(self, queries: Sequence[Query], policy: Snapshot) -> list[Group]:
        empty = torch.empty(0)
        return [Group(query, policy.version, empty, empty, empty, empty, {}) for query in queries]

    def collect(self, ticket: list[Group]) -> list[Group]:
        return ticket


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_window_bounds_staleness(limit: int) -> None:
    learner = CountingLearner()
    asked: list[int] = []

    def queries(step: int) -> list[Query]:
        asked.append(step)
        return [Query(step, 0, (1,), 0)]

    done = list(train_async(learner, EchoRollouts(), queries, steps=7, max_staleness=limit))
    assert len(done) == 7
    assert asked == list(range(7))
    assert max(learner.staleness) == min(limit, 6)
    assert learner.staleness == [min(step, limit) for step in range(7)]


def test_workers_get_equal_shares_of_the_queries_or_a_refusal() -> None:
    table = pa.table({"id": list(range(7)), "user": [0] * 7, "history": [[1]] * 7, "target": list(range(7))})
    shares = [QueryStream(table, 5, seed=0, rank=rank, world=2)(0) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    assert len({query.id for share in shares for query in share}) == 4
    with pytest.raises(InputError, match="cannot be shared"):
        QueryStream(table, 1, seed=0, rank=0, world=2)
