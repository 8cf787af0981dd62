"""Percentile bootstrap over queries (Efron & Tibshirani 1993, chapter 13), its paired form, and t intervals over runs.

The resamples depend on the seed and the number of queries alone, so two rankings of the same queries have the same
resamples: their difference is a paired comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from genrec.errors import InputError
from genrec.metrics import FloatArray

DRAWS_AT_ONCE = 4_000_000
"""Indices drawn per block, which bounds memory."""

MIN_QUERIES = 6
"""Fewer queries have no interval: even if all of them agree, a sign test has p = 2 · 2^-5 > 0.05."""


class Difference(TypedDict):
    """A paired difference: its mean, its 95% interval, and the share of resamples above zero."""

    difference: float
    low: float
    high: float
    share_above_zero: float


class Estimate(TypedDict):
    """A mean over runs and its 95% interval; one run has none."""

    mean: float
    low: float | None
    high: float | None


def over_runs(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of a metric over n runs (seeds), with Student's t interval: mean ± t(0.975, n - 1) · s / √n.

    For a paired comparison pass the differences of runs with equal seeds. Another ``confidence`` than 0.95 has another
    quantile of t.

    Raises:
        InputError: there is no run.
    """
    if not values:
        raise InputError("got no runs to average, wanted at least one")
    mean, runs = float(np.mean(values)), len(values)
    if runs == 1:
        return Estimate(mean=mean, low=None, high=None)
    half = float(stdtrit(runs - 1, (1 + confidence) / 2)) * float(np.std(values, ddof=1)) / runs**0.5
    return Estimate(mean=mean, low=mean - half, high=mean + half)


def resampled_means(values_QM: FloatArray, resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of the M columns over ``resamples`` draws of Q queries with replacement, (resamples, M).

    Raises:
        InputError: there is no query.
    """
    queries = len(values_QM)
    if queries == 0:
        raise InputError("got no queries to resample, wanted at least one: is the test split empty? check data.split")
    values_QM = np.ascontiguousarray(values_QM, dtype=np.float64)
    counts_BQ = _draws(queries, resamples, seed)
    block = max(1, DRAWS_AT_ONCE // queries)
    means_BM = np.empty((resamples, values_QM.shape[1]))
    for start in range(0, resamples, block):
        rows = slice(start, start + block)
        means_BM[rows] = counts_BQ[rows].astype(np.float64) @ values_QM / queries
    return means_BM


@lru_cache(maxsize=1)
def _draws(queries: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """How often each resample has each query, (resamples, Q); kept, since all rankings of the queries share them."""
    rng = np.random.default_rng(seed)
    counts_BQ = np.empty((resamples, queries), np.uint8)  # A query of many is drawn about once, and of few at most Q.
    block = max(1, DRAWS_AT_ONCE // queries)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        draws = rng.integers(0, queries, (size, queries))
        draws += np.arange(size)[:, None] * queries
        counts_BQ[start : start + size] = np.bincount(draws.ravel(), minlength=size * queries).reshape(size, queries)
    return counts_BQ


def intervals(values: Mapping[str, FloatArray], resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """95% percentile interval of each metric's mean, from its values per query (Q,); empty if ``resamples`` is 0, or if
    there are fewer than ``MIN_QUERIES``.
    """
    if resamples == 0 or not values or _too_few(values):
        return {}
    means_BM = resampled_means(np.stack(list(values.values()), axis=1), resamples, seed)
    low_M, high_M = np.percentile(means_BM, (2.5, 97.5), axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(values, low_M, high_M, strict=True)}


def paired(
    first: Mapping[str, FloatArray], second: Mapping[str, FloatArray], resamples: int, seed: int
) -> dict[str, Difference]:
    """``first - second`` on the same queries in the same order, for each metric that both have.

    Values are per query, (Q,). The result is empty if ``resamples`` is 0, or if there are fewer than ``MIN_QUERIES``.

    Raises:
        InputError: the numbers of queries differ.
    """
    names = [name for name in first if name in second]
    if resamples == 0 or not names:
        return {}
    for name in names:
        if first[name].shape != second[name].shape:
            raise InputError(
                f"{name}: {first[name].shape[0]} and {second[name].shape[0]} queries cannot be paired; "
                "evaluate both rankings on the same queries"
            )
    if _too_few(first):
        return {}
    difference_QM = np.stack([first[name] - second[name] for name in names], axis=1)
    means_BM = resampled_means(difference_QM, resamples, seed)
    low_M, high_M = np.percentile(means_BM, (2.5, 97.5), axis=0)
    return {
        name: Difference(
            difference=float(difference_QM[:, column].mean()),
            low=float(low_M[column]),
            high=float(high_M[column]),
            share_above_zero=float((means_BM[:, column] > 0).mean()),
        )
        for column, name in enumerate(names)
    }


def _too_few(values: Mapping[str, FloatArray]) -> bool:
    return 0 < len(next(iter(values.values()))) < MIN_QUERIES
