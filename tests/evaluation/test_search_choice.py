"""Fronts, rules and winners on trials whose answer is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.errors import InputError
from genrec.evaluation.search_choice import best_first, declare_winner, finalist, pareto_front, with_front
from genrec.evaluation.search_record import (
    FILE,
    BudgetRecord,
    DefaultRecord,
    DimensionRecord,
    SearchRecord,
    SeedRun,
    TrialRecord,
)


def trial(name: str, ndcg: float | None, hits: float = 0.0, **fields: Any) -> TrialRecord:
    metrics = {"ndcg@10": ndcg, "hr@50": hits, "last": fields.pop("last", ndcg)}
    common: dict[str, Any] = {"status": "finished", "feasible": True, **fields}
    return TrialRecord(id=name, name=name, values={"rewards.hit": 1.0}, seed=0, metrics=metrics, **common)


def runs(*values: float, feasible: bool = True) -> list[SeedRun]:
    return [
        SeedRun(seed=seed, metrics={"ndcg@10": value}, feasible=feasible) for seed, value in enumerate(values, start=1)
    ]


def test_the_front_holds_what_nothing_dominates() -> None:
    points = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.4, 0.4], [0.5, 0.5]])
    assert pareto_front(points) == [True, True, True, False, True]
    assert pareto_front(np.zeros((0, 2))) == []


def test_a_trial_outside_a_constraint_or_that_failed_is_neither_on_the_front_nor_best() -> None:
    trials = [
        trial("good", 0.2),
        trial("outside", 0.9, feasible=False),
        trial("failed", 0.8, status="failed"),
        trial("nan", None),
    ]
    placed = with_front(trials, ["ndcg@10"])
    assert [one.on_front for one in placed] == [True, False, False, False]
    assert [one.id for one in best_first(placed, ["ndcg@10"])] == ["good"]


def test_trials_that_kept_the_sft_policy_are_ordered_by_how_they_ended() -> None:
    placed = with_front([trial("worse", 0.2, last=0.1), trial("harmless", 0.2, last=0.19)], ["ndcg@10"])
    assert [one.id for one in best_first(placed, ["ndcg@10"])] == ["harmless", "worse"]


def test_a_rule_picks_from_the_front_of_two_objectives() -> None:
    both = ["ndcg@10", "hr@50"]
    placed = with_front([trial("ndcg", 1.0, 0.0), trial("hits", 0.0, 1.0), trial("both", 0.8, 0.8)], both)
    assert all(one.on_front for one in placed)
    assert best_first(placed, both, "first")[0].id == "ndcg"
    assert best_first(placed, both, "knee")[0].id == "both"


def test_a_winner_beats_the_config_by_more_than_the_paired_interval() -> None:
    default = DefaultRecord(seeds=runs(0.10, 0.14, 0.12))
    clear = finalist(trial("clear", 0.2), runs(0.12, 0.161, 0.139), default, {"ndcg@10": 0.1}, "ndcg@10", 1)
    assert clear.difference.mean == pytest.approx(0.02, abs=1e-3), "the seeds' common noise cancels"
    assert declare_winner([clear], "ndcg@10").trial == "clear"
    noisy = finalist(trial("noisy", 0.2), runs(0.20, 0.10, 0.12), default, {"ndcg@10": 0.1}, "ndcg@10", 1)
    found = declare_winner([noisy], "ndcg@10")
    assert found.trial is None and found.verdict.startswith("no weights beat the default")
    unjudged = declare_winner([], "ndcg@10")
    assert unjudged.trial is None and unjudged.verdict.startswith("no winner is declared")


def test_a_finalist_that_leaves_the_constraints_cannot_win() -> None:
    default = DefaultRecord(seeds=runs(0.1, 0.1, 0.1))
    better = finalist(trial("a", 0.2), runs(0.2, 0.21, 0.2, feasible=False), default, {}, "ndcg@10", 1)
    found = declare_winner([better], "ndcg@10")
    assert found.trial is None and "left the constraints" in found.verdict


def test_intervals_of_several_finalists_hold_together() -> None:
    default = DefaultRecord(seeds=runs(0.1, 0.1, 0.1))
    alone, among = (
        finalist(trial("a", 0.2), runs(0.11, 0.12, 0.13), default, {}, "ndcg@10", count).difference for count in (1, 4)
    )
    assert alone.low is not None and among.low is not None and among.low < alone.low


def test_finalists_whose_runs_failed_are_reported_without_a_winner() -> None:
    failed = [SeedRun(seed=1, error="lost"), SeedRun(seed=2, error="lost")]
    one = finalist(trial("a", 0.2), failed, DefaultRecord(seeds=runs(0.1, 0.1)), {}, "ndcg@10", 1)
    assert declare_winner([one], "ndcg@10").trial is None
    assert declare_winner([], "ndcg@10").trial is None


def test_a_record_reads_back_and_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    record = SearchRecord(
        metric="ndcg@10",
        objectives=["ndcg@10"],
        constraints={"hr@50": 0.3},
        space={"rewards.hit": DimensionRecord(kind="uniform", low=0.0, high=1.0)},
        searcher="random",
        scheduler="none",
        trials=[trial("a", 0.2)],
        budget=BudgetRecord(trials=1),
    )
    record.write(tmp_path)
    assert SearchRecord.read(tmp_path) == record
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(InputError, match="no record of a search"):
        SearchRecord.read(tmp_path)


def test_a_knee_of_no_trial_that_holds_the_constraints_is_nothing() -> None:
    both = ["ndcg@10", "hr@50"]
    assert best_first(with_front([trial("a", 0.2, feasible=False)], both), both, "knee") == []


def test_the_verdict_counts_the_seeds_that_were_compared_and_says_which_runs_failed() -> None:
    own = runs(0.120, 0.121, 0.122, 0.123, 0.1)
    own[3] = SeedRun(seed=4, error="killed")
    default = DefaultRecord(seeds=[*runs(0.1, 0.1, 0.1, 0.1), SeedRun(seed=5, error="killed")])
    found = finalist(trial("a", 0.2), own, default, {"ndcg@10": 0.1}, "ndcg@10", 1)
    said = declare_winner([found], "ndcg@10").verdict
    assert found.difference.pairs == 3
    assert "over 3 seeds on validation; 1 of its runs failed" in said and "constraints" not in said
