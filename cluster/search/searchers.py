"""From the config's words to Ray Tune's: the space, the searcher that proposes values, the scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from cluster.search.trial import SCORE
from genrec.config import Config, Dimension
from genrec.config.search_space import dimensions, own_values
from genrec.errors import InputError

PACKAGES = {"optuna": ("optuna", "search"), "pb2": ("sklearn", "search")}
"""What a searcher needs: the package, and the extra of this project that installs it."""


def require_searcher(config: Config) -> None:
    """Refuse a searcher whose package is missing, before any work.

    Raises:
        InputError: names the package and the extra.
    """
    package, extra = PACKAGES.get(config.tune.searcher, ("", ""))
    if package and find_spec(package) is None:
        raise InputError(
            f"tune.searcher={config.tune.searcher} needs {package}, which is not installed: "
            f"pip install 'genrec[{extra}]', or take tune.searcher=random"
        )


def param_space(config: Config) -> dict[str, Any]:
    """The space in Ray Tune's domains; empty where the searcher brings its own."""
    if config.tune.searcher == "optuna":
        return {}
    return {key: _domain(one, as_grid=config.tune.searcher == "grid") for key, one in dimensions(config).items()}


def make_searcher(config: Config) -> Any:
    """The searcher; it begins with the config's own values, where they lie in the space, except on a grid."""
    tune, first = config.tune, _first_points(config)
    if tune.searcher == "optuna":
        return _optuna(config, first)
    from ray.tune.search import BasicVariantGenerator

    grid = tune.searcher == "grid"
    return BasicVariantGenerator(
        random_state=config.seed,
        points_to_evaluate=None if grid else first or None,
        max_concurrent=tune.max_concurrent,
    )


def make_scheduler(config: Config) -> Any:
    """The scheduler, which sees a trial's score at every validation, by the step; None: first in, first out."""
    tune = config.tune
    distance = max(1, tune.steps // tune.validations)
    by_step: dict[str, Any] = {"time_attr": "step", "metric": SCORE, "mode": "max"}
    if tune.scheduler == "asha":
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            **by_step,
            max_t=tune.steps + 1,
            grace_period=distance,
            reduction_factor=tune.reduction,
            stop_last_trials=True,
        )
    if tune.scheduler == "median":
        from ray.tune.schedulers import MedianStoppingRule

        return MedianStoppingRule(**by_step, grace_period=distance, min_samples_required=2)
    if tune.searcher == "pb2":
        from ray.tune.schedulers.pb2 import PB2

        bounds: dict[str, Any] = {key: [one.low, one.high] for key, one in dimensions(config).items()}
        return PB2(**by_step, perturbation_interval=distance, hyperparam_bounds=bounds, quantile_fraction=0.25)
    return None


def samples(config: Config) -> int:
    """How many trials to ask for: a grid is asked for once."""
    return 1 if config.tune.searcher == "grid" else config.tune.trials


def objective(config: Config) -> tuple[str | list[str], str | list[str]]:
    """Metric and mode: the score; several objectives by their names."""
    names: list[str] = list(config.tune.objectives)
    if len(names) == 1:
        return SCORE, "max"
    return names, ["max"] * len(names)


def _first_points(config: Config) -> list[dict[str, Any]]:
    own, space = own_values(config), dimensions(config)
    return [own] if all(one.holds(own[key]) for key, one in space.items()) else []


def _domain(one: Dimension, *, as_grid: bool) -> Any:
    from ray import tune

    if as_grid:
        return tune.grid_search(list(one.counted()))
    if one.low is None or one.high is None:
        return tune.choice(list(one.values))
    if one.kind == "int":
        return tune.randint(int(one.low), int(one.high) + 1)
    return (tune.loguniform if one.kind == "loguniform" else tune.uniform)(one.low, one.high)


def _optuna(config: Config, first: list[dict[str, Any]]) -> Any:
    """TPE (Bergstra et al. 2011) for one objective, NSGA-II (Deb et al. 2002) for several."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    several = len(config.tune.objectives) > 1
    population = max(2, min(20, config.tune.trials // 2))
    sampler = (
        optuna.samplers.NSGAIISampler(population_size=population, seed=config.seed)
        if several
        else optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=max(3, min(10, config.tune.trials // 3)))
    )
    metric, mode = objective(config)
    space = {key: _distribution(one) for key, one in dimensions(config).items()}
    return OptunaSearch(space, metric=metric, mode=mode, sampler=sampler, points_to_evaluate=first or None)


def _distribution(one: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.low is None or one.high is None:
        return CategoricalDistribution(list(one.values))
    if one.kind == "int":
        return IntDistribution(int(one.low), int(one.high))
    return FloatDistribution(one.low, one.high, log=one.kind == "loguniform")


def name_of(values: Mapping[str, Any]) -> str:
    """A trial's values in a name that the dashboard can show: last parts of the keys, three digits, no separators."""
    return ",".join(f"{key.rsplit('.', 1)[-1]}={_short(value)}" for key, value in sorted(values.items()))


def _short(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return "".join(sign if sign.isalnum() or sign in ".-+_" else "_" for sign in text)
