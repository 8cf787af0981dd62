"""What a search decides: which trials are on the front, which of them are best, and whether one beat the config."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from genrec.evaluation.intervals import over_runs
from genrec.evaluation.search_record import (
    DefaultRecord,
    FinalistRecord,
    MeanDifference,
    Metrics,
    SeedRun,
    TrialRecord,
    WinnerRecord,
)
from genrec.metrics import FloatArray

ENDED = ("finished", "stopped")
"""The status of trials that may be chosen: they have a version that was kept and validated."""

NO_WINNER = "no weights beat the default"
NOT_JUDGED = (
    "no winner is declared: no trial was run again with fresh seeds (tune.finalists is 0, or no trial holds the "
    "constraints)"
)


def pareto_front(points_TM: FloatArray) -> list[bool]:
    """For each of T points, whether no other is as large in all M objectives and larger in one, (T, M)."""
    as_good_TT = (points_TM[None] >= points_TM[:, None]).all(-1)
    better_TT = (points_TM[None] > points_TM[:, None]).any(-1)
    dominated_T = np.any(as_good_TT & better_TT, axis=-1)
    return np.logical_not(dominated_T).tolist()


def with_front(trials: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """The trials, with ``on_front`` for those that are feasible and not dominated by another feasible one."""
    chosen = [place for place, one in enumerate(trials) if _may_win(one, objectives)]
    points_TM = np.array([[trials[place].metrics[name] for name in objectives] for place in chosen], dtype=np.float64)
    front = dict(zip(chosen, pareto_front(points_TM.reshape(len(chosen), len(objectives))), strict=True))
    return [one.placed(on_front=front.get(place, False)) for place, one in enumerate(trials)]


def best_first(
    trials: Sequence[TrialRecord], objectives: Sequence[str], rule: Literal["first", "knee"] = "first"
) -> list[TrialRecord]:
    """The feasible trials that ended, best first: those of the front by ``rule``, then the others by the same.

    ``first`` orders by the first objective; trials that are equal in it, having kept the SFT policy, by how they ended
    (``last``). ``knee`` orders by the distance √Σ_m (1 - u_m)² from the best point, u_m being objective m scaled to
    [0, 1] over the front.
    """
    chosen = [one for one in trials if _may_win(one, objectives)]
    if rule == "first" or len(objectives) == 1 or not chosen:
        return sorted(chosen, key=lambda one: (not one.on_front, *_falling(one, objectives[0])))
    values_TM = np.array([[one.metrics[name] for name in objectives] for one in chosen], dtype=np.float64)
    front_TM = values_TM[[one.on_front for one in chosen]]
    low_M, high_M = front_TM.min(0), front_TM.max(0)
    scaled_TM = (values_TM - low_M) / np.where(high_M > low_M, high_M - low_M, 1.0)
    away_T = np.sqrt(((1 - scaled_TM) ** 2).sum(-1))
    order = sorted(range(len(chosen)), key=lambda place: (not chosen[place].on_front, away_T[place]))
    return [chosen[place] for place in order]


def finalist(
    trial: TrialRecord, runs: Sequence[SeedRun], default: DefaultRecord, sft: Metrics, metric: str, finalists: int
) -> FinalistRecord:
    """A trial's runs with fresh seeds, compared with those of the config's own values and with the SFT policy.

    Args:
        finalists: how many are compared: their intervals hold together.
    """
    own = {run.seed: run.metrics.get(metric) for run in default.seeds}
    base = dict.fromkeys(own, sft.get(metric))
    return FinalistRecord(
        trial=trial.id,
        values=trial.values,
        seeds=list(runs),
        difference=_difference(runs, own, metric, finalists),
        difference_from_sft=_difference(runs, base, metric, finalists),
    )


def declare_winner(finalists: Sequence[FinalistRecord], metric: str) -> WinnerRecord:
    """The finalist that beats the config's own values by most, of those whose whole interval lies above zero.

    One that left the constraints in half of its runs or more cannot win.
    """
    if not finalists:
        return WinnerRecord(trial=None, verdict=NOT_JUDGED)
    able = [one for one in finalists if sum(run.feasible for run in one.seeds) * 2 > len(one.seeds)]
    beats = [one for one in able if (one.difference.low or 0.0) > 0]
    best = max(able or finalists, key=lambda one: _or_least(one.difference.mean))
    if not beats:
        return WinnerRecord(trial=None, verdict=f"{NO_WINNER}: {_compared(best, metric)}")
    best = max(beats, key=lambda one: _or_least(one.difference.mean))
    return WinnerRecord(trial=best.trial, verdict=f"trial {best.trial} beats the config: {_compared(best, metric)}")


def _compared(one: FinalistRecord, metric: str) -> str:
    found, runs = one.difference, len(one.seeds)
    if found.mean is None or found.low is None or found.high is None:
        return f"trial {one.trial} has too few runs that ended with equal seeds ({runs} were begun)"
    failed = sum(run.error is not None for run in one.seeds)
    left = sum(not run.feasible and run.error is None for run in one.seeds)
    outside = f"; {left} of its runs left the constraints" if left else ""
    outside += f"; {failed} of its runs failed" if failed else ""
    return (
        f"{metric} of trial {one.trial} minus the config's own is {found.mean:+.4f} "
        f"[{found.low:+.4f}, {found.high:+.4f}] over {found.pairs or runs} seeds on validation{outside}"
    )


def _difference(
    runs: Sequence[SeedRun], others: Mapping[int, float | None], metric: str, finalists: int
) -> MeanDifference:
    pairs = [(run.metrics.get(metric), others.get(run.seed)) for run in runs]
    found = [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
    if len(found) < 2:
        return MeanDifference(mean=found[0] if found else None, low=None, high=None, pairs=len(found))
    return MeanDifference(**over_runs(found, 1 - 0.05 / max(1, finalists)), pairs=len(found))


def _may_win(one: TrialRecord, objectives: Sequence[str]) -> bool:
    return one.feasible and one.status in ENDED and all(one.metrics.get(name) is not None for name in objectives)


def _falling(one: TrialRecord, metric: str) -> tuple[float, float]:
    return -_or_least(one.metrics.get(metric)), -_or_least(one.metrics.get("last"))


def _or_least(value: float | None) -> float:
    return -math.inf if value is None else value
