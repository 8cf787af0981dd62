import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from worlds import random_catalog, small_policy

from genrec.config import Rewards
from genrec.errors import InputError
from genrec.learning import rewards
from genrec.learning.advantages import advantages
from genrec.learning.batches import DenseExamples, Epochs, RowExamples
from genrec.learning.loop import improve
from genrec.learning.losses import SftLoss
from genrec.learning.objectives import clipped_surrogate, exact_kl
from genrec.learning.queries import QueryStream
from genrec.learning.rewards import Knowledge, pay, term_shares
from genrec.learning.schedule import learning_rate
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
    assert float(whole) == pytest.approx(float(each), rel=1e-4)


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


def group(items: Sequence[int], target: int, codes: torch.Tensor) -> Group:
    chosen = torch.tensor(items)
    query = Query(0, 0, (1,), target)
    return Group(
        query, 0, chosen, codes[chosen.clamp(min=0)], torch.zeros(len(items), codes.shape[1]), torch.empty(0), {}
    )


CODES = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
KNOWLEDGE = Knowledge(CODES, ["a", "a", "b", ""])


def test_reward_terms_give_what_their_formulas_say() -> None:
    made = group([3, 1, 0, 2], 0, CODES)
    assert rewards.hit(made, KNOWLEDGE).tolist() == [0, 0, 1, 0]
    assert rewards.rank_log(made, KNOWLEDGE).tolist() == pytest.approx([0, 0, math.log(3), 0])
    assert rewards.prefix(made, KNOWLEDGE).tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3])
    assert rewards.diversity(made, KNOWLEDGE).tolist() == [0, 1, 0, 1]


def test_rewards_are_weighted_sums_and_empty_candidates_earn_nothing() -> None:
    made = group([0, -1, 2], 0, CODES)
    pay([made], KNOWLEDGE, Rewards(hit=2.0, rank_log=0.0, prefix=0.5, diversity=0.0))
    assert made.rewards_G.tolist() == pytest.approx([2.5, 0.0, 0.5 / 3])
    assert set(made.terms) == {"hit", "prefix"}
    assert sum(term_shares([made]).values()) == pytest.approx(1.0)


def test_a_broken_reward_term_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in (torch.tensor([1.0]), torch.tensor([1.0, math.nan])):
        monkeypatch.setattr(rewards, "TERMS", {**rewards.TERMS, "hit": lambda g, k, bad=bad: bad})
        with pytest.raises(InputError, match="'hit'"):
            pay([group([0, 1], 0, CODES)], KNOWLEDGE, Rewards())


def test_dead_groups_get_no_advantage_and_a_lone_hit_the_same_whatever_its_size() -> None:
    rewards_BG = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0.3, 0], [0, 1.0, 0, 0]])
    found = advantages("group_std", rewards_BG)
    assert (found[0] == 0).all()
    assert float(found[1].max()) == pytest.approx(float(found[2].max())) == pytest.approx(math.sqrt(3))
    assert advantages("group_mean", rewards_BG)[2].tolist() == pytest.approx([-0.25, 0.75, -0.25, -0.25])
    assert float(advantages("batch_std", rewards_BG).mean()) == pytest.approx(0.0, abs=1e-6)


def test_the_surrogate_clips_and_ignores_empty_candidates() -> None:
    old = torch.zeros(1, 2, 1)
    new = torch.tensor([[[math.log(2.0)], [-math.inf]]], requires_grad=True)
    valid = torch.tensor([[True, False]])
    loss = clipped_surrogate(new, old, torch.tensor([[1.0, 1.0]]), valid, clip=0.2)
    assert float(loss) == pytest.approx(-1.2 / 2)
    loss.backward()
    assert new.grad is not None
    assert new.grad.flatten().tolist() == [0.0, 0.0]


def test_kl_is_exact_and_zero_between_equals() -> None:
    p = torch.tensor([[[0.5, 0.5, 0.0]]]).log()
    q = torch.tensor([[[0.25, 0.75, 0.0]]]).log()
    valid = torch.ones(1, 1, dtype=torch.bool)
    assert float(exact_kl([p], [p], valid)) == 0.0
    assert float(exact_kl([p], [q], valid)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


class CountingLearner:
    """A learner that only counts; records the staleness of what it is fed."""

    def __init__(self) -> None:
        self.version = 0
        self.staleness: list[int] = []

    def snapshot(self) -> Snapshot:
        return Snapshot(self.version, {}, "")

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

    done = list(improve(learner, EchoRollouts(), queries, steps=7, max_staleness=limit))
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
