"""What a search does to a config: the keys that ``tune.space`` means, a trial's config, the space's corners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import BaseModel

from genrec.config.learning import Rewards
from genrec.config.root import Config
from genrec.config.tune import Dimension, Scalar
from genrec.errors import InputError

CORNERS = 256
"""Corners of a space that are all checked; of a larger one those that differ from the config in one key, and two."""


def key_of(name: str, rewards: Rewards) -> str:
    """The dotted key of the config that ``name`` of ``tune.space`` stands for: a reward's own name is enough."""
    if name in rewards.custom:
        return f"rewards.custom.{name}"
    return f"rewards.{name}" if name in rewards.weights() else name


def dimensions(config: Config) -> dict[str, Dimension]:
    """``tune.space`` by dotted keys of the config."""
    return {key_of(name, config.rewards): one for name, one in config.tune.space.items()}


def own_values(config: Config) -> dict[str, Any]:
    """The config's own values of the keys that are searched."""
    return {key: _value(config, key) for key in dimensions(config)}


def trial_config(config: Config, values: Mapping[str, Scalar], seed: int | None = None) -> Config:
    """The config of a trial: its ``values``, ``tune.steps`` updates, ``tune.validations`` of them validated.

    Raises:
        InputError: the values make no valid config.
    """
    tune = config.tune
    changes: dict[str, Any] = {
        "learning.rl.steps": tune.steps,
        "learning.rl.eval_every": max(1, tune.steps // tune.validations),
        "seed": config.seed if seed is None else seed,
    }
    return config.replace({**changes, **values})


def require_valid_corners(config: Config) -> None:
    """Refuse a space that holds values with which there is no valid config, before any trial starts.

    Raises:
        InputError: one of the space's corners is no valid config; says which, and why.
    """
    for values in corners(dimensions(config)):
        try:
            trial_config(config, values)
        except InputError as error:
            given = " ".join(f"{key}={value}" for key, value in values.items())
            reason = str(error).removeprefix("invalid config:").strip()
            raise InputError(
                f"tune.space holds a trial that is no valid config: {given}: {reason}; narrow the range, or leave "
                "the value out"
            ) from None


def corners(space: Mapping[str, Dimension]) -> Iterator[dict[str, Scalar]]:
    """Every combination of the dimensions' extreme values; of more than ``CORNERS`` those of one key, the lowest and
    the highest of all keys.
    """
    ends = {key: one.ends() for key, one in space.items()}
    count = 1
    for values in ends.values():
        count *= len(values)
    if count <= CORNERS:
        yield from (dict(zip(ends, values, strict=True)) for values in product(*ends.values()))
        return
    yield from ({key: value} for key, values in ends.items() for value in values)
    yield {key: values[0] for key, values in ends.items()}
    yield {key: values[-1] for key, values in ends.items()}


def nested(values: Mapping[str, Scalar]) -> dict[str, Any]:
    """Values by dotted keys as nested sections: ``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return found


def remakes_earlier_stages(keys: Sequence[str]) -> bool:
    """Whether a change of one of ``keys`` changes what comes before GRPO: the SIDs or the SFT policy."""
    return not all(key.startswith(("rewards.", "learning.rl.")) for key in keys)


def _value(config: BaseModel, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found
