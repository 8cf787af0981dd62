"""Mixtures of tasks side by side: does the next item gain or lose by what else the policy learns (the seesaw)?

All rows have the config's steps (``learning.sft.max_steps``), so a task that joins takes its share from the others;
``next_item_x3`` has three times the steps, which is what the same money buys without other tasks. The other tasks are
those with a weight in ``learning.tasks``, or all nine. ``bench.variants`` chooses rows, ``bench.seeds`` says how many
policies each gets. See ``benchmarks.compare`` for what is kept; the page and all figures lie beside it as ``<name>.md``
and ``<name>.json``, written again after every policy.
"""

from __future__ import annotations

from typing import Any

from benchmarks.compare import Comparison, Variant, compare_variants
from cluster.artifacts import Artifact
from genrec.config import Config, Learning, Tasks
from genrec.errors import InputError

PLACE = "tasks"
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


def run(config: Config, data: Artifact, catalog: Artifact) -> Comparison:
    """Train and score the chosen rows.

    Raises:
        InputError: a row of ``bench.variants`` that does not exist, or a config without a number of steps.
    """
    known = mixtures(config.learning)
    if unknown := [name for name in config.bench.variants if name not in known]:
        raise InputError(f"bench.variants names {unknown}; the rows are {list(known)}")
    if not config.learning.sft.max_steps:
        raise InputError("bench tasks compares mixtures at equal steps; set learning.sft.max_steps=NUMBER")
    rows = {
        name: Variant(config.model_copy(update={"learning": known[name]}), catalog)
        for name in config.bench.variants or known
    }
    return compare_variants(PLACE, "tasks", config, data, rows)


def mixtures(learning: Learning) -> dict[str, Learning]:
    """The learning section of each row, by name: every task alike, the next item three times, and it alone."""
    others = tuple(name for name in learning.tasks.chosen if name != NEXT) or OTHERS
    long = {"max_steps": 3 * learning.sft.max_steps, "epochs": 3 * learning.sft.epochs}
    rows: dict[str, tuple[int, tuple[str, ...], dict[str, Any]]] = {
        "next_item": (1, (), {}),
        "next_item_x3": (1, (), long),
        "all": (1, others, {}),
        "all_next_item_x3": (3, others, {}),
    }
    return {name: _mixed(learning, *row) for name, row in rows.items()}


def _mixed(learning: Learning, times: int, others: tuple[str, ...], steps: dict[str, Any]) -> Learning:
    chosen = {NEXT: {"weight": times, "repeat": times}} | {name: {"weight": 1.0} for name in others}
    sft = learning.sft.model_copy(update={"example_format": "tasks", **steps})
    return learning.model_copy(update={"tasks": Tasks.model_validate(chosen), "sft": sft})
