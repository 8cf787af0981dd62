"""What judges found: scores of each system, paired differences, and whether the judge can be trusted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genrec.errors import InputError
from genrec.evaluation.comparisons import corrected
from genrec.evaluation.intervals import MIN_QUERIES, Difference, intervals, paired
from genrec.evaluation.judge.agreement import agreement
from genrec.evaluation.judge.questions import CRITERIA, HIGHEST, LOWEST
from genrec.metrics import FloatArray

RESAMPLES = 1000
SCORE = "score"
"""The mean of an answer's criteria."""


@dataclass(frozen=True)
class Judged:
    """One judgement: ``systems`` and ``scores`` by letter; the letters in the order in which the judge read them."""

    judge: int
    turn: int
    query: int
    systems: Mapping[str, Sequence[str]]
    scores: Mapping[str, Mapping[str, int]]


@dataclass
class Spent:
    """Replies that were no judgement and questions without one, by reason, and tokens; ``price``: of all tokens."""

    asked: int = 0
    failures: dict[str, int] = field(default_factory=dict[str, int])
    tokens_in: int = 0
    tokens_out: int = 0
    price: float = 0.0


def summarise_judgements(judged: Sequence[Judged], systems: Sequence[str], spent: Spent, seed: int) -> dict[str, Any]:
    """The content of ``judge.json``: the figures of the first judge over its passes, and the agreements.

    Raises:
        InputError: fewer judged users than an interval needs.
    """
    first = [one for one in judged if one.judge == 0]
    values = {name: _mean_scores(first, name) for name in systems}
    queries = sorted(set.intersection(*(set(found) for found in values.values()))) if values else []
    if len(queries) < MIN_QUERIES:
        raise InputError(
            f"got judgements of {len(queries)} users, wanted at least {MIN_QUERIES}; replies that failed: "
            f"{spent.failures or 'none'}; look at judgements.jsonl, or try another model"
        )
    score_Q = {name: np.array([found[query][SCORE] for query in queries]) for name, found in values.items()}
    return {
        "queries": len(queries),
        "systems": {name: _row(first, name, values[name], queries, seed) for name in systems},
        "paired": _differences(score_Q, systems[0], seed),
        "yardsticks": _difference(score_Q, "target", "random", seed),
        "passes": _agreement(judged, (0, 0), (0, 1)),
        "judges": _agreement(judged, (0, 0), (1, 0)),
        "positions": _positions(first),
        "spent": {**vars(spent), "judged": len(judged)},
    }


def _mean_scores(judged: Sequence[Judged], system: str) -> dict[int, dict[str, float]]:
    """By query the criteria of a system's answer, and their mean, over passes."""
    found: dict[int, list[Mapping[str, int]]] = defaultdict(list)
    for one in judged:
        for letter, names in one.systems.items():
            if system in names:
                found[one.query].append(one.scores[letter])
    means = {
        query: {name: float(np.mean([score[name] for score in scores])) for name in CRITERIA}
        for query, scores in found.items()
    }
    return {query: {SCORE: float(np.mean(list(row.values()))), **row} for query, row in means.items()}


def _row(
    judged: Sequence[Judged], system: str, found: Mapping[int, Mapping[str, float]], queries: Sequence[int], seed: int
) -> dict[str, Any]:
    """Means with intervals, and the histogram of the single scores 1 … 5."""
    values = {name: np.array([found[query][name] for query in queries]) for name in (SCORE, *CRITERIA)}
    single = [
        score
        for one in judged
        for letter, names in one.systems.items()
        if system in names
        for score in one.scores[letter].values()
    ]
    counts = np.bincount(single, minlength=HIGHEST + 1)[LOWEST:]
    means = {name: float(column_Q.mean()) for name, column_Q in values.items()}
    return {"means": means, "ci95": intervals(values, RESAMPLES, seed), "histogram": counts.tolist()}


def _differences(score_Q: Mapping[str, FloatArray], own: str, seed: int) -> dict[str, Any]:
    """The first system's score minus that of each other, corrected for their number."""
    others = [name for name in score_Q if name != own]
    tests = corrected({name: score_Q[own] - score_Q[name] for name in others})
    return {name: {**_difference(score_Q, own, name, seed), **tests[name]} for name in others}


def _difference(score_Q: Mapping[str, FloatArray], own: str, other: str, seed: int) -> Difference:
    return paired({SCORE: score_Q[own]}, {SCORE: score_Q[other]}, RESAMPLES, seed)[SCORE]


def _agreement(judged: Sequence[Judged], one: tuple[int, int], other: tuple[int, int]) -> dict[str, Any] | None:
    """Agreement of two series (judge, pass) on the answers that both scored, and on which of two is better."""
    series = [_by_answer(judged, key) for key in (one, other)]
    common = sorted(set(series[0]) & set(series[1]))
    first_S, second_S = (np.array([found[key] for key in common], dtype=np.int64) for found in series)
    found = agreement(first_S, second_S)
    return None if found is None else {**found, "same_preference": _same_preference(judged, one, other)}


def _by_answer(judged: Sequence[Judged], series: tuple[int, int]) -> dict[tuple[int, str, str], int]:
    """Scores by query, answer (the first system that gave it) and criterion."""
    return {
        (one.query, min(names), criterion): one.scores[letter][criterion]
        for one in judged
        if (one.judge, one.turn) == series
        for letter, names in one.systems.items()
        for criterion in CRITERIA
    }


def _same_preference(judged: Sequence[Judged], one: tuple[int, int], other: tuple[int, int]) -> float | None:
    """Of the pairs of a user's answers of which both series prefer one: the share in which it is the same."""
    totals = [_totals(judged, key) for key in (one, other)]
    same = []
    for query in set(totals[0]) & set(totals[1]):
        first, second = totals[0][query], totals[1][query]
        names = sorted(set(first) & set(second))
        signs = [
            (np.sign(first[a] - first[b]) * np.sign(second[a] - second[b]))
            for place, a in enumerate(names)
            for b in names[place + 1 :]
        ]
        same += [sign > 0 for sign in signs if sign]
    return float(np.mean(same)) if same else None


def _totals(judged: Sequence[Judged], series: tuple[int, int]) -> dict[int, dict[str, int]]:
    return {
        one.query: {min(names): sum(one.scores[letter].values()) for letter, names in one.systems.items()}
        for one in judged
        if (one.judge, one.turn) == series
    }


def _positions(judged: Sequence[Judged]) -> dict[str, float]:
    """The mean score by the place in which an answer was read: the order is drawn, so they should be equal."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        for letter, scores in one.scores.items():
            found[letter].append(float(np.mean(list(scores.values()))))
    return {letter: float(np.mean(scores)) for letter, scores in sorted(found.items())}


def judge_verdict(found: Mapping[str, Any], own: str, shown: Mapping[str, str]) -> str:
    """One sentence: can the judge be trusted, and where does the first system stand?"""
    truth = found["yardsticks"]
    if truth["low"] <= 0:
        return (
            "This judge does not score what users chose above random items "
            f"({truth['difference']:+.2f}, 95% interval {truth['low']:+.2f} to {truth['high']:+.2f}): "
            "its scores say nothing."
        )
    rivals = {name: row for name, row in found["paired"].items() if name not in ("target", "random")}
    score = found["systems"][own]["means"][SCORE]
    if not rivals:
        return f"The judge gives {shown.get(own, own)} {score:.2f} of 5."
    best = min(rivals, key=lambda name: rivals[name]["difference"])
    row, rival = rivals[best], shown.get(best, best)
    sure = row["p_holm"] < 0.05
    word = "is level with" if not sure else "is ahead of" if row["difference"] > 0 else "is behind"
    return (
        f"For this judge {shown.get(own, own)}, {score:.2f} of 5, {word} {rival}, its strongest rival "
        f"({row['difference']:+.2f}, 95% interval {row['low']:+.2f} to {row['high']:+.2f})."
    )
