"""How much each searched config key matters for the metric of a search."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.evaluation.search_record import DimensionRecord, SearchRecord, TrialRecord

LEAST_TRIALS = 4
"""Fewer trials say nothing about what matters."""

FANOVA = (
    "fANOVA (Hutter, Hoos and Leyton-Brown 2014), by Optuna: the share of the metric's variance that each key explains"
)
RANK = (
    "the absolute rank correlation (Spearman) of each key with the metric; for keys without an order, the correlation "
    "ratio of the metric's ranks. With Optuna and scikit-learn installed it would be fANOVA"
)


@dataclass(frozen=True)
class Importance:
    """``shares``: importance by key, the largest first, from 0 to 1; ``method``: how it was measured, in words."""

    method: str = ""
    shares: dict[str, float] = field(default_factory=dict[str, float])
    trials: int = 0


def importance(record: SearchRecord) -> Importance:
    """The importance of every searched key for ``record.metric``; empty where fewer than four trials have a figure.

    Trials that the scheduler stopped count with the figure that they had.
    """
    trials = [trial for trial in record.trials if _figure(trial, record.metric) is not None]
    keys = [key for key in record.space if len({_written(trial.values.get(key)) for trial in trials}) > 1]
    trials = [trial for trial in trials if all(key in trial.values for key in keys)]
    figures_T = np.array([_figure(trial, record.metric) for trial in trials], dtype=np.float64)
    if len(trials) < LEAST_TRIALS or not keys or np.ptp(figures_T) == 0:
        return Importance(trials=len(trials))
    if find_spec("optuna") and find_spec("sklearn"):
        return Importance(FANOVA, _sorted(_fanova(record, keys, trials)), len(trials))
    found = {key: rank_importance([trial.values[key] for trial in trials], figures_T) for key in keys}
    return Importance(RANK, _sorted(found), len(trials))


def rank_importance(values: Sequence[Any], figures_T: NDArray[np.float64]) -> float:
    """How well the T values of a key order the figures (T,): 0 not at all, 1 fully.

    Numbers: the absolute value of Spearman's ρ. Others: the correlation ratio η of the figures' ranks, the root of the
    share of their variance that lies between the values.
    """
    from scipy.stats import rankdata, spearmanr

    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        found: Any = spearmanr(np.array(values, dtype=np.float64), figures_T)
        return abs(float(found.statistic))
    ranks_T, names = rankdata(figures_T), np.array([_written(value) for value in values])
    between: float = sum(
        (names == name).sum() * (ranks_T[names == name].mean() - ranks_T.mean()) ** 2 for name in set(names)
    )
    return math.sqrt(between / max(float(((ranks_T - ranks_T.mean()) ** 2).sum()), 1e-12))


def _fanova(record: SearchRecord, keys: Sequence[str], trials: Sequence[TrialRecord]) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = {key: _distribution(record.space[key], [trial.values[key] for trial in trials]) for key in keys}
    study = optuna.create_study(direction="maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial in trials:
            values = {key: _parameter(record.space[key], trial.values[key]) for key in keys}
            figure = _figure(trial, record.metric)
            study.add_trial(optuna.create_trial(params=values, distributions=spaces, value=figure))
        return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=list(keys))


def _distribution(dimension: DimensionRecord, seen: Sequence[Any]) -> Any:
    """The dimension as Optuna knows it, widened to the values ``seen``: the config's own may lie outside."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.low is None or dimension.high is None:
        return CategoricalDistribution(sorted({_written(value) for value in (*(dimension.values or ()), *seen)}))
    low, high = min([dimension.low, *seen]), max([dimension.high, *seen])
    if dimension.kind == "int":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(float(low), float(high), log=dimension.kind == "loguniform" and low > 0)


def _parameter(dimension: DimensionRecord, value: Any) -> Any:
    return _written(value) if dimension.low is None or dimension.high is None else value


def _written(value: object) -> str:
    return str(value)


def _figure(trial: TrialRecord, metric: str) -> float | None:
    value = trial.metrics.get(metric) if trial.status in ("finished", "stopped") else None
    return value if value is not None and math.isfinite(value) else None


def _sorted(shares: dict[str, float]) -> dict[str, float]:
    known = {key: float(share) if math.isfinite(share) else 0.0 for key, share in shares.items()}
    return dict(sorted(known.items(), key=lambda one: -one[1]))
