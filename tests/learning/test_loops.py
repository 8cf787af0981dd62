import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.synthetic import random_catalog, small_policy

from genrec.errors import InputError
from genrec.learning.divergence import require_finite
from genrec.learning.rl.loop import train_async
from genrec.learning.rl.query_sampler import Draws, QueryStream
from genrec.learning.schedule import epochs_for, learning_rate
from genrec.learning.sft.batches import DenseExamples, Epochs, RowExamples
from genrec.learning.sft.losses import SftLoss
from genrec.seeds import generator_of, seed_of
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


def test_few_examples_are_shown_more_often_unless_the_epochs_are_named() -> None:
    assert [epochs_for(0, steps) for steps in (1, 20, 55, 111, 175, 5000)] == [60, 55, 20, 10, 8, 8]
    assert epochs_for(3, 1) == 3


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


def query_table(rows: int) -> pa.Table:
    return pa.table({"id": range(rows), "user": [0] * rows, "history": [[1]] * rows, "target": range(rows)})


@pytest.mark.parametrize("rows", [5, 7, 60])
def test_the_queries_of_an_update_are_the_same_for_any_number_of_workers(rows: int) -> None:
    table, size = query_table(rows), 6

    def batch(step: int, world: int) -> list[Query]:
        draws = [Draws(rows, size, seed=1, rank=rank, world=world) for rank in range(world)]
        shares = [QueryStream(table, own)(step) for own in draws]
        assert {len(share) for share in shares} == {size // world}
        return sorted((query for share in shares for query in share), key=lambda query: query.draw)

    stream = [query for step in range(rows) for query in batch(step, 1)]
    assert [query.draw for query in stream] == list(range(size * rows))
    for start in range(0, size * rows, rows):
        assert sorted(query.id for query in stream[start : start + rows]) == list(range(rows)), "an epoch sees all"
    for world in (2, 3):
        assert all(batch(step, world) == stream[size * step : size * (step + 1)] for step in (0, 3))
    assert [query.id for query in stream[:rows]] != [query.id for query in stream[rows : 2 * rows]]


def test_an_epoch_of_queries_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    shuffled = Draws._shuffled

    def counted(self: Draws, epoch: int) -> np.ndarray:
        asked.append(epoch)
        return shuffled(self, epoch)

    monkeypatch.setattr(Draws, "_shuffled", counted)
    stream = QueryStream(query_table(50), Draws(50, 8, seed=0, rank=0, world=2))
    for step in range(15):
        stream(step)
    assert asked == [0, 1, 2]


def test_queries_that_cannot_be_shared_equally_or_that_are_missing_are_refused() -> None:
    with pytest.raises(InputError, match=r"got 5 queries in a batch and 2 workers.*multiple of compute\.workers"):
        Draws(7, 5, seed=0, rank=0, world=2)
    with pytest.raises(InputError, match=r"no training query.*data\.split"):
        Draws(0, 4, seed=0, rank=0, world=2)


@pytest.mark.parametrize(("rows", "steps"), [(100, 3), (20, 6), (130, 1)])
@pytest.mark.parametrize("world", [1, 3])
def test_the_queries_that_a_run_draws_are_enough_for_it(rows: int, steps: int, world: int) -> None:
    table = query_table(rows)
    for rank in range(world):
        draws = Draws(rows, 12, seed=2, rank=rank, world=world)
        kept = draws.rows_until(steps)
        assert len(kept) <= 12 // world * steps and kept.tolist() == sorted(set(kept.tolist()))
        whole, part = QueryStream(table, draws), QueryStream(table.take(kept), draws, kept)
        assert [part(step) for step in range(steps)] == [whole(step) for step in range(steps)]


@pytest.mark.parametrize("kind", ["dense", "rows"])
def test_a_worker_builds_its_own_part_of_a_batch_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = (
        DenseExamples(sequences([3 + i % 9 for i in range(40)]), max_history=4)
        if kind == "dense"
        else RowExamples(query_table(40))
    )
    built: list[int] = []
    take = type(examples).take
    monkeypatch.setattr(type(examples), "take", lambda self, index: built.append(len(index)) or take(self, index))
    epochs = Epochs(examples, 30, seed=0)
    index = epochs.index(0)
    shares = [epochs.micro_batches(0, 4, rank, 3) for rank in range(3)]
    assert sum(built) == len(index)
    assert {total for _, total in shares} == {sum(piece.targets for pieces, _ in shares for piece in pieces)}
    assert shares[0][1] == examples.take(index).targets == examples.targets(index)


def test_two_uses_of_randomness_never_share_a_seed() -> None:
    uses = [(use, seed, step, rank) for use in ("a", "b") for seed in range(9) for step in range(99) for rank in (0, 1)]
    assert len({seed_of(*use) for use in uses}) == len(uses)
    assert seed_of("a", 1, 23) != seed_of("a", 12, 3) and seed_of("a", 0) != seed_of("a", 0, 0)
    assert seed_of("a", 1) == seed_of("a", 1) < 2**64
    first, again = (generator_of("a", 1).random(4) for _ in range(2))
    assert (first == again).all()


def test_figures_that_are_not_finite_are_told_with_the_step_the_batch_and_the_remedy() -> None:
    require_finite(3, ["query 1"], "lower x", loss=1.0, gradient_norm=2.0)
    batch = [f"query {i}" for i in range(20)]
    message = r"step 3: got a gradient norm of inf.*query 0, .*query 7 and 12 more; lower learning\.sft\.lr=1;"
    with pytest.raises(InputError, match=message):
        require_finite(3, batch, "lower learning.sft.lr=1", loss=1.0, gradient_norm=math.inf)
    with pytest.raises(InputError, match=r"got a loss of nan"):
        require_finite(3, batch, "lower learning.sft.lr=1", loss=math.nan)
