"""How far two series of scores of the same answers agree."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from scipy.stats import spearmanr

from genrec.evaluation.judge.questions import HIGHEST, LOWEST
from genrec.metrics import IntArray


class Agreement(TypedDict):
    """Of n scores given twice: equal ones, those at most one apart, quadratic kappa, rank correlation.

    The last two are None where one series is constant: then chance cannot be told from agreement.
    """

    scores: int
    equal: float
    within_one: float
    kappa: float | None
    spearman: float | None


def agreement(first_S: IntArray, second_S: IntArray) -> Agreement | None:
    """Agreement of the scores (S,), 1 to 5; None for no scores."""
    if not len(first_S):
        return None
    apart_S = np.abs(first_S - second_S)
    varies = bool(np.ptp(first_S) and np.ptp(second_S))
    return Agreement(
        scores=len(first_S),
        equal=float((apart_S == 0).mean()),
        within_one=float((apart_S <= 1).mean()),
        kappa=weighted_kappa(first_S, second_S) if varies else None,
        spearman=float(spearmanr(first_S, second_S).statistic) if varies else None,  # pyright: ignore
    )


def weighted_kappa(first_S: IntArray, second_S: IntArray) -> float:
    """Cohen's kappa of scores (S,) with quadratic weights: 1 - Σ w O / Σ w E, w = (i - j)² (Cohen 1968).

    O counts pairs of scores, E the pairs that two judges with the same frequencies, who score at random, would have.
    """
    size = HIGHEST - LOWEST + 1
    pairs_S = (first_S - LOWEST) * size + second_S - LOWEST
    seen_KK = np.bincount(pairs_S, minlength=size * size).reshape(size, size) / len(first_S)
    chance_KK = np.outer(seen_KK.sum(1), seen_KK.sum(0))
    grade_K = np.arange(size)
    weight_KK = (grade_K[:, None] - grade_K[None, :]) ** 2
    return 1.0 - float((weight_KK * seen_KK).sum() / (weight_KK * chance_KK).sum())
