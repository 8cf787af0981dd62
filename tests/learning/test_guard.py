"""The guard on validation metrics that are known."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genrec.config import Rl, load_config
from genrec.errors import InputError
from genrec.learning.checkpoints import TrainingState
from genrec.learning.rl.guard import Guard, significant_drop
from genrec.types import Snapshot


class FakeValidator:
    """A validator with given values for every version."""

    def __init__(self, values: Mapping[int, Mapping[str, Tensor]], is_synchronous: bool) -> None:
        self.values, self.is_synchronous = values, is_synchronous

    def submit(self, snapshot: Snapshot) -> int:
        return snapshot.version

    def collect(self, ticket: int) -> Mapping[str, Tensor]:
        return self.values[ticket]


def hits(*found: int) -> Tensor:
    values_Q = torch.zeros(100, dtype=torch.float64)
    values_Q[list(found)] = 1
    return values_Q


def snapshot(version: int) -> Snapshot:
    return Snapshot(version, {"w": torch.tensor([float(version)])})


def test_a_drop_is_significant_only_beyond_its_noise_and_the_allowed_share() -> None:
    base = hits(*range(40))
    assert significant_drop(hits(*range(38)), base, noise=2, share=0) == 0
    assert significant_drop(hits(*range(30)), base, noise=2, share=0) == pytest.approx(0.1)
    assert significant_drop(hits(*range(30)), base, noise=2, share=0.3) == 0
    assert significant_drop(hits(*range(60)), base, noise=0, share=0) == 0
    shuffled = hits(*range(70, 100), *range(9))
    assert significant_drop(shuffled, base, noise=2, share=0) == 0, "one hit fewer of forty, but most hits changed"


def test_queries_that_a_metric_does_not_cover_are_left_out() -> None:
    base, fallen = hits(*range(40)), hits(*range(20))
    covered = torch.arange(100) >= 40
    nan = torch.nan
    assert significant_drop(fallen.masked_fill(~covered, nan), base.masked_fill(~covered, nan), noise=2, share=0) == 0
    assert significant_drop(fallen.masked_fill(covered, nan), base.masked_fill(covered, nan), noise=2, share=0) > 0.4


@pytest.mark.parametrize("metric", ["ndcg@10", "hr@50", "tail_hr@50"])
@pytest.mark.parametrize("is_synchronous", [True, False])
def test_the_best_is_kept_and_a_significant_drop_removes_the_later_updates(metric: str, is_synchronous: bool) -> None:
    level = {name: hits(*range(40)) for name in ("ndcg@10", "hr@50", "tail_hr@50")}
    better = level | {"ndcg@10": hits(*range(45))}
    fallen = better | {metric: hits(*range(20))}
    state = TrainingState()
    guard = Guard(FakeValidator({0: level, 2: better, 4: fallen}, is_synchronous), Rl(guard_drop=0.0), state)
    for version in range(6):
        state.step = version
        state.curve.append({"step": float(version)})
        if version % 2 == 0 and not state.stopped:
            guard.collect()
            guard.submit(snapshot(version))
        if state.stopped:
            break
    guard.collect()
    assert metric in state.stopped and "back to version 2" in state.stopped
    assert state.step == 4 and [record["step"] for record in state.curve] == [0, 1, 2, 3, 4]
    assert state.best_step == 2 and float(state.best["w"]) == 2


def test_a_resumed_guard_compares_with_the_values_of_the_first_version(tmp_path: Path) -> None:
    values = {0: {"ndcg@10": hits(*range(40))}, 1: {"ndcg@10": hits(*range(20))}}
    state = TrainingState(curve=[{"step": 0.0}])
    first = Guard(FakeValidator(values, is_synchronous=True), Rl(), state)
    first.submit(snapshot(0))
    assert first.is_validated(0) and not first.is_validated(1)
    first.write(tmp_path)
    state.curve.append({"step": 1.0})
    again = Guard(FakeValidator(values, is_synchronous=True), Rl(), state)
    again.read(tmp_path)
    again.submit(snapshot(1))
    assert "ndcg@10" in state.stopped


def kept_by(settings: Rl, *versions: Mapping[str, Tensor]) -> TrainingState:
    """The state after versions 0, 1, … with these values."""
    state = TrainingState()
    guard = Guard(FakeValidator(dict(enumerate(versions)), is_synchronous=True), settings, state)
    for version in range(len(versions)):
        state.step = version
        state.curve.append({"step": float(version)})
        guard.submit(snapshot(version))
        if state.stopped:
            break
    return state


def test_the_goal_chooses_among_the_versions_that_keep_what_they_must() -> None:
    start = {"ndcg@10": hits(*range(50)), "categories@10": torch.full((100,), 3.0), "hr@50": hits(*range(60))}
    wider = start | {"categories@10": torch.full((100,), 4.0)}
    dearer = {**start, "categories@10": torch.full((100,), 5.0), "ndcg@10": hits(*range(48))}
    settings = Rl.model_validate({"guard": {"goal": "categories@10", "keep": {"ndcg@10": 0.01}}})
    state = kept_by(settings, start, wider, dearer, wider | {"hr@50": hits()})
    assert not state.stopped, "within the noise, and hr@50 is not among what is kept"
    assert state.best_step == 1 and state.best_score == 4 and state.best_metric == "categories@10"
    assert kept_by(settings.replace({"guard.keep": {"ndcg@10": 0.05}}), start, wider, dearer).best_step == 2
    fallen = kept_by(settings, start, wider, dearer | {"ndcg@10": hits(*range(20))}, wider)
    assert "ndcg@10 fell" in fallen.stopped and fallen.step == 2 and fallen.best_step == 1


def test_a_goal_alone_leaves_the_usual_metrics_guarded() -> None:
    start = {name: hits(*range(50)) for name in ("ndcg@10", "hr@50", "value@10")}
    better = start | {"value@10": hits(*range(70)), "ndcg@10": hits(*range(49))}
    settings = Rl.model_validate({"guard": {"goal": "value@10"}})
    assert kept_by(settings, start, better).best_step == 1
    assert "hr@50" in kept_by(settings, start, better | {"hr@50": hits(1)}).stopped


def test_metrics_that_do_not_exist_are_refused() -> None:
    for guard in ("{goal: category@10}", "{keep: {ndcg@5: 0.1}}", "{goal: ndcg@10/}", "{keep: {ndcg@10: -1}}"):
        with pytest.raises(InputError, match=r"choose from ndcg@10|a share from 0 to 1"):
            load_config([], [f"learning.rl.guard={guard}"])
    assert load_config([], ["learning.rl.guard={goal: ndcg@10/buy}"]).learning.rl.guard.metrics == ("ndcg@10/buy",)
