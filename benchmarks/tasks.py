"""Mixtures of tasks compared: does the next item gain or lose by what else the policy learns?

With ``bench.equal=steps`` all variants train for the same number of steps (``learning.sft.max_steps``), so a task that
is added takes its share from the others; ``next_item_x3`` has three times the steps, for the cost of the other tasks
without them. With ``bench.equal=exposure`` all variants show each train query ``learning.sft.epochs`` times, ``…_x3``
three times as often, and every example counts alike, so a task that is added takes nothing from the next item.

The other tasks are those with a weight in ``learning.tasks``, or all nine. ``bench.variants`` chooses variants,
``bench.seeds`` the number of policies of each. ``benchmarks.compare`` says what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.compare import Comparison, Variant, compare_variants
from benchmarks.harness import chosen_variants
from cluster.artifacts import Artifact
from genrec.config import Config, Learning, Tasks, TaskWeight
from genrec.errors import InputError

DIRECTORY = "tasks"
NEEDS = ("prepare", "assign")
NEXT = "next_item"
OTHERS = (
    "sequence_prediction",
    "category_analysis",
    "category_based_recommendation",
    "multi_turn_dialogue_category",
    "multi_turn_dialogue_sequence",
    "preference_analysis",
    "recommendation_reasoning",
    "semantic_anchoring",
    "semantic_recovery",
)


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train and score the chosen variants.

    Raises:
        InputError: ``bench.variants`` names one that does not exist, or the config has no number of steps.
    """
    exposure = config.bench.equal == "exposure"
    known = mixtures_by_exposure(config.learning) if exposure else mixtures(config.learning)
    names = chosen_variants(config, known)
    if not config.learning.sft.epochs:
        raise InputError("bench tasks shows each variant its examples equally often; set learning.sft.epochs=NUMBER")
    if not exposure and not config.learning.sft.max_steps:
        raise InputError("bench tasks compares mixtures at equal steps; set learning.sft.max_steps=NUMBER")
    chosen = {name: Variant(config.replace(learning=known[name]), artifacts) for name in names}
    return compare_variants(DIRECTORY, "tasks", config, chosen)


def mixtures(learning: Learning) -> dict[str, Learning]:
    """The ``learning`` section of each variant, by name, at equal steps."""
    others = {name: TaskWeight(weight=1.0) for name in _others(learning)}
    long = {"max_steps": 3 * learning.sft.max_steps, "epochs": 3 * learning.sft.epochs}
    found: dict[str, tuple[int, Mapping[str, TaskWeight], dict[str, Any]]] = {
        "next_item": (1, {}, {}),
        "next_item_x3": (1, {}, long),
        "all": (1, others, {}),
        "all_next_item_x3": (3, others, {}),
    }
    return {name: _mixed(learning, *parts) for name, parts in found.items()}


def mixtures_by_exposure(learning: Learning) -> dict[str, Learning]:
    """The ``learning`` section of each variant, by name, at equal exposure of the train queries."""
    learning = learning.replace(instruction=learning.instruction.replace({"balance": "examples"}))
    others = {name: TaskWeight(weight=1.0, repeat=getattr(learning.tasks, name).repeat) for name in _others(learning)}
    parts = {"next_item": (1, {}), "next_item_x3": (3, {}), "all": (1, others), "all_next_item_x3": (3, others)}
    return {name: _mixed(learning, times, more, {"max_steps": 0}) for name, (times, more) in parts.items()}


def _others(learning: Learning) -> tuple[str, ...]:
    return tuple(name for name in learning.tasks.chosen if name != NEXT) or OTHERS


def _mixed(learning: Learning, times: int, others: Mapping[str, TaskWeight], steps: dict[str, Any]) -> Learning:
    tasks = Tasks(next_item=TaskWeight(weight=times, repeat=times), **others)
    return learning.replace(tasks=tasks, sft=learning.sft.replace(steps, example_format="tasks"))
