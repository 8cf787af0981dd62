"""Conversations with a trained policy: one of each task that it learned, about what it was not trained on.

The user's messages are written from the templates about test queries (or items); the assistant's are the policy's own,
also where a later message refers to them. Per task there is a transcript, and the shares that
``benchmarks.chat_measures`` describes over ``CONVERSATIONS``.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.chat_measures import (
    MEASURES,
    agreement,
    answer_measures,
    existing,
    feedback_measures,
    items_of,
    list_measures,
)
from benchmarks.compare import Comparison
from benchmarks.harness import chosen_variants
from cluster.artifacts import Artifact
from cluster.pipeline import run_stage
from cluster.progress import STAGE
from cluster.task_mixtures import make_chat_format, make_example_builder
from cluster.train import RunSpec
from genrec.config import Config
from genrec.data.readers import read_items
from genrec.errors import InputError
from genrec.policy.chat import generate
from genrec.policy.chat.task_schema import TASKS
from genrec.policy.chat.templates import Message, Parts, fill, load_language

LOG = logging.getLogger(__name__)

DIRECTORY = "chat"
NEEDS = ("prepare", "assign")
CONVERSATIONS = 20
"""Per task, spread evenly over its rows."""
MAX_TOKENS = 400
REWORDED = ("sequence_prediction", "multi_turn_dialogue_sequence", "recommendation_reasoning", "semantic_recovery")
"""The tasks whose first request has one right item, however it is worded."""
FEEDBACK = "multi_turn_dialogue_sequence"


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train the policy of the config, unless it exists, and talk to it.

    Raises:
        InputError: no task of ``learning.tasks`` is a conversation, or ``bench.variants`` names another task.
    """
    learned = [name for name in config.learning.tasks.chosen if name in TASKS and not TASKS[name].is_passage]
    chosen = chosen_variants(config, learned)
    if not learned:
        raise InputError("bench chat talks about what a policy learned; give learning.tasks weights")
    policy = run_stage(config, "sft", artifacts).path
    data, catalog = artifacts["prepare"].path, artifacts["assign"].path
    evaluation = _ChatEvaluation(RunSpec(config, data, catalog, policy, start=policy))
    found: dict[str, TaskConversations] = {}
    for number, task in enumerate(chosen, start=1):
        began = time.monotonic()
        found[task] = evaluation.talk(task)
        about = (number, len(chosen), task, found[task].answers, time.monotonic() - began)
        LOG.info("%d/%d %s: %d answers in %.0f s", *about, extra={STAGE: DIRECTORY})
    comparison = Comparison(DIRECTORY, text=_page(found))
    comparison.figures = {f"{task}.{name}": value for task, one in found.items() for name, value in one.shares.items()}
    return comparison


@dataclass(frozen=True)
class TaskConversations:
    """The conversations of one task: the number of answers, the shares over them, and the first one as (role, text)."""

    answers: int
    shares: Mapping[str, float]
    shown: Sequence[tuple[str, str]]


class _ChatEvaluation:
    """Plays the user, and compares the assistant's answers with those of the templates."""

    def __init__(self, spec: RunSpec) -> None:
        torch.set_num_threads(spec.config.compute.threads)
        self._policy, prompts, self._catalog = spec.build()
        self._format = make_chat_format(spec.config, prompts, self._catalog)
        self._titles = [" ".join(title.split()) for title in read_items(spec.data)["title"].to_pylist()]
        languages = spec.config.learning.instruction.languages[:1]
        self._titled = load_language(languages[0]).phrases["titled"]
        self._builder = make_example_builder(spec, self._catalog, "test", languages)

    def talk(self, task: str) -> TaskConversations:
        """``CONVERSATIONS`` about rows of ``task``, or fewer where it has fewer rows."""
        rows = self._builder.rows(task)
        values: dict[str, list[float]] = defaultdict(list)
        shown: list[tuple[str, str]] = []
        for number, place in enumerate(np.linspace(0, len(rows) - 1, min(CONVERSATIONS, len(rows))).astype(int)):
            row = int(rows[place])
            template = self._builder.build(task, row, np.random.default_rng(number))
            said = self._converse(template, values)
            if task == FEEDBACK:
                self._compare_feedback(said, template, values)
            if task in REWORDED:
                self._compare_wordings(task, row, number, values)
            if number == 0:
                shown = [(message.role, self._shown(message.parts)) for message in said]
        shares = {name: float(np.mean(values[name])) for name in MEASURES if values[name]}
        return TaskConversations(len(values["ended"]), shares, shown)

    def _converse(self, template: Sequence[Message], values: dict[str, list[float]]) -> list[Message]:
        """The template's conversation with the policy's own answers; adds how each compares to ``values``."""
        said: list[Message] = []
        for message in template:
            if message.role != "assistant":
                said.append(message)
                continue
            written = self._write(said)
            _extend(values, {name: [value] for name, value in answer_measures(written, message.parts).items()})
            if len(items_of(message.parts)) > 1:
                found = list_measures(written.parts, message.parts, self._builder.category, self._title)
                _extend(values, found | {"existing": existing(self._write(said, constrained=False))})
            said.append(Message("assistant", tuple(written.parts)))
        return said

    def _compare_feedback(
        self, said: Sequence[Message], template: Sequence[Message], values: dict[str, list[float]]
    ) -> None:
        own, wanted = ([one.parts for one in messages if one.role == "assistant"] for messages in (said, template))
        for at in range(len(own) - 1):
            pair = (own[at], own[at + 1]), (wanted[at], wanted[at + 1])
            found = feedback_measures(*pair, self._builder.category)
            _extend(values, {name: [value] for name, value in found.items()})

    def _compare_wordings(self, task: str, row: int, seed: int, values: dict[str, list[float]]) -> None:
        first: list[int | None] = []
        for wording in self._builder.wordings(task, row, seed):
            first.append(next(iter(items_of(self._write(wording[:2], most_items=1).parts)), None))
        values["agreement"] += agreement(first)

    def _write(
        self, said: Sequence[Message], *, constrained: bool = True, most_items: int | None = None
    ) -> generate.GeneratedReply:
        sampling, trie = generate.Sampling(max_tokens=MAX_TOKENS), self._catalog.trie
        return generate.generate_reply(
            self._policy, self._format, trie, said, sampling, constrained=constrained, most_items=most_items
        )

    def _title(self, item: int) -> str:
        """What the template writes after the semantic ID of an item."""
        return "".join(map(str, fill(self._titled, {"sid": (), "title": (self._titles[item],)})))

    def _shown(self, parts: Parts) -> str:
        catalog, style = self._catalog, self._format.sids.style
        return generate.format_parts(parts, catalog.codes_NL, catalog.level_sizes, self._titles, style)


def _extend(values: dict[str, list[float]], found: Mapping[str, Sequence[float]]) -> None:
    for name, more in found.items():
        values[name] += more


def _page(found: Mapping[str, TaskConversations]) -> str:
    lines = [f"| task | answers | {' | '.join(MEASURES)} |", f"| --- |{' ---: |' * (len(MEASURES) + 1)}"]
    for task, one in found.items():
        cells = [f"{one.shares[name]:.2f}" if name in one.shares else "–" for name in MEASURES]
        lines.append(f"| {task} | {one.answers} | {' | '.join(cells)} |")
    lines += ["", *(f"- `{name}`: {text}" for name, text in MEASURES.items())]
    for task, one in found.items():
        lines += ["", f"**{task}**", ""]
        lines += [f"- {role}: {' '.join(text.split())}" for role, text in one.shown if role != "system"]
    return "\n".join(lines) + "\n"
