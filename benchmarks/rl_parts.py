"""The parts of reinforcement learning that ``benchmarks.rl_quality`` compares: what each changes in the config."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

from genrec.config import Config, load_config, packaged_file
from genrec.config.section import Section
from genrec.errors import InputError


def _listwise() -> dict[str, Any]:
    """What ``configs/listwise.yaml`` sets, by dotted key."""
    settings = yaml.safe_load(packaged_file("listwise.yaml").read_text(encoding="utf-8"))
    rl, rewards = settings["learning"]["rl"], settings["rewards"]
    return {f"learning.rl.{name}": value for name, value in rl.items()} | {
        f"rewards.{name}": value for name, value in rewards.items()
    }


FIXED: Mapping[str, Any] = _listwise()
"""A list-wise loss over the SFT policy's own beams, of which the target alone is right, held to it by its KL."""

GRPO: Mapping[str, Any] = {"learning.rl.groups": "fresh", "learning.rl.objective": "grpo"}

SERVED: Mapping[str, Any] = {
    **GRPO,
    "learning.rl.served": True,
    "learning.rl.candidate_weight": "probability",
    "learning.rl.advantage": "group_mean",
}
"""Rewards of what is served. Candidates weigh what they are served with, and no standard deviation is divided by: else
a hit that the prior found would be taught as much as one that it missed."""

PARTS: Mapping[str, Mapping[str, Any]] = {
    "config": {},
    "grpo": GRPO,
    "listwise": FIXED,
    "lambdarank": {**FIXED, "learning.rl.objective": "lambdarank"},
    "recast": {**FIXED, "learning.rl.objective": "recast", "learning.rl.sft": 0.2},
    "crossfit": {**FIXED, "learning.rl.groups": "crossfit"},
    "fresh_listwise": {**FIXED, "learning.rl.groups": "fresh"},
    "sibling": {**GRPO, "learning.rl.advantage": "sibling"},
    "probability": {**GRPO, "learning.rl.candidate_weight": "probability"},
    "target": {"learning.rl.add_target": True},
    "gate": {"learning.rl.gate": "rank"},
    "hints": {"learning.rl.groups": "fresh", "learning.rl.hint": 0.5},
}
"""What each part changes, by name; ``config`` is the config as it stands."""

SERVED_PARTS: Mapping[str, Mapping[str, Any]] = {
    "served": SERVED,
    "served_listwise": {**FIXED, "learning.rl.served": True},
}
"""Parts that learn from what is served; ``bench.variants`` must name them, since all rows are then scored as served."""

RECIPES = ("v0a", "v0b", "v1", "v2", "v3", "v4")
"""The files of ``configs/versions`` whose rewards and objectives are parts, too."""

START = ("learning.rl.", "rewards")
"""What a part may change: with other keys a row would begin from another SFT policy than the others."""


def known_parts(config: Config) -> dict[str, Mapping[str, Any]]:
    """What each part changes, by name, those of ``bench.parts`` included."""
    return {**PARTS, **SERVED_PARTS, **{name: _rewards_of(name) for name in RECIPES}, **config.bench.parts}


def _rewards_of(recipe: str) -> dict[str, Any]:
    """The rewards of a recipe, with the objective and the advantages that they are for."""
    own = load_config([f"versions/{recipe}"])
    rl = {f"learning.rl.{name}": getattr(own.learning.rl, name) for name in ("objective", "advantage")}
    return {"learning.rl.groups": "fresh", **rl, "rewards": own.rewards}


def rows_of(config: Config) -> dict[str, Config]:
    """The config of each row: of ``bench.variants``, or of all parts but ``SERVED_PARTS``.

    Raises:
        InputError: a name that is no part, or a key that a part may not change.
    """
    known = known_parts(config)
    rows = list(config.bench.variants or [name for name in known if name not in SERVED_PARTS])
    if wrong := [name for name in config.bench.parts if name == "sft" or "+" in name]:
        raise InputError(f"bench.parts names {wrong}; wanted: names without +, and not sft, which is the first row")
    if unknown := [name for row in rows for name in row.split("+") if name not in known]:
        raise InputError(f"bench.variants names {unknown}; wanted: some of {list(known)}, alone or joined by +")
    return {row: changed(config, _changes(known, row)) for row in rows}


def overruled(config: Config, row: str) -> dict[str, tuple[Any, Any]]:
    """The keys that the config sets and the parts of ``row`` set otherwise, with the config's value and theirs.

    Theirs counts. A key at its default is not set; one of ``bench.grid`` has the grid's values in every row.
    """
    changes, default = _changes(known_parts(config), row), Config()
    set_by_config = {key: given for key in changes if (given := _set_at(config, key)) != _set_at(default, key)}
    return {
        key: (given, changes[key])
        for key, given in set_by_config.items()
        if given != changes[key] and key not in config.bench.grid
    }


def _set_at(config: Config, key: str) -> Any:
    """The value at a key; None for a section, and for a name that no field has."""
    with suppress(KeyError):
        value = config.value_at(key)
        return None if isinstance(value, Section) else value
    return None


def _changes(known: Mapping[str, Mapping[str, Any]], row: str) -> dict[str, Any]:
    """What the parts of a row change, the later ones over the earlier."""
    return dict(change for name in row.split("+") for change in known[name].items())


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with other values.

    Raises:
        InputError: a key that a part may not change, that does not exist, or values that do not fit together.
    """
    if wrong := [key for key in changes if not key.startswith(START)]:
        raise InputError(f"bench.parts and bench.grid change keys of {' and '.join(START)} alone; got {wrong[0]}")
    return config.replace(dict(changes))
