"""Conversations with a trained policy: one of each task that it learned, about what it was not trained on.

The user's messages are written from the templates about test queries (or items); the assistant's are the policy's own,
also where a later message refers to them. Per task there is a transcript, and over ``CONVERSATIONS`` the share of
answers that ended, the share that hold an item exactly where the template's answer does, and the share whose first item
is the template's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.compare import Comparison
from benchmarks.harness import chosen_variants
from cluster.artifacts import Artifact
from cluster.pipeline import run_stage
from cluster.stages.sft import make_chat_format, make_example_builder
from cluster.train import RunSpec
from genrec.config import Config
from genrec.data.tables import read_items
from genrec.errors import InputError
from genrec.policy.chat import generate
from genrec.policy.chat.templates import Item, Message, Parts

DIRECTORY = "chat"
NEEDS = ("prepare", "assign")
CONVERSATIONS = 20
"""Per task, spread evenly over its rows."""
MAX_TOKENS = 400
SHARES = ("ended", "item_where_wanted", "item_as_wanted")


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train the policy of the config, unless it exists, and talk to it.

    Raises:
        InputError: no task of ``learning.tasks`` is a conversation, or ``bench.variants`` names another task.
    """
    learned = [name for name in config.learning.tasks.chosen if name != "next_item"]
    chosen = chosen_variants(config, learned)
    if not learned:
        raise InputError("bench chat talks about what a policy learned; give learning.tasks weights")
    policy = run_stage(config, "sft", artifacts).path
    data, catalog = artifacts["prepare"].path, artifacts["assign"].path
    evaluation = _ChatEvaluation(RunSpec(config, data, catalog, policy, start=policy))
    found = {task: evaluation.talk(task) for task in chosen}
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
        self._titles = [title or "" for title in read_items(spec.data)["title"].to_pylist()]
        languages = spec.config.learning.instruction.languages[:1]
        self._builder = make_example_builder(spec, self._catalog, "test", languages)

    def talk(self, task: str) -> TaskConversations:
        """``CONVERSATIONS`` about rows of ``task``, or fewer where it has fewer rows."""
        rows = self._builder.rows(task)
        compared: list[tuple[bool, bool, bool | None]] = []
        shown: list[tuple[str, str]] = []
        for number, place in enumerate(np.linspace(0, len(rows) - 1, min(CONVERSATIONS, len(rows))).astype(int)):
            template = self._builder.build(task, int(rows[place]), np.random.default_rng(number))
            said = self._converse(template, compared)
            if number == 0:
                shown = [(message.role, self._shown(message.parts)) for message in said]
        ended, where, right = (list(column) for column in zip(*compared, strict=True))
        with_item = [one for one in right if one is not None]
        shares = {"ended": float(np.mean(ended)), "item_where_wanted": float(np.mean(where))}
        if with_item:
            shares["item_as_wanted"] = float(np.mean(with_item))
        return TaskConversations(len(compared), shares, shown)

    def _converse(self, template: Sequence[Message], compared: list[tuple[bool, bool, bool | None]]) -> list[Message]:
        """The template's conversation with the policy's own answers; adds how each compares to ``compared``."""
        said: list[Message] = []
        for message in template:
            if message.role == "assistant":
                written = self._write(said)
                compared.append(compare_answer(written, message.parts))
                said.append(Message("assistant", tuple(written.parts)))
            else:
                said.append(message)
        return said

    def _write(self, said: Sequence[Message]) -> generate.GeneratedReply:
        sampling = generate.Sampling(max_tokens=MAX_TOKENS)
        return generate.generate_reply(self._policy, self._format, self._catalog.trie, said, sampling)

    def _shown(self, parts: Parts) -> str:
        return generate.format_parts(parts, self._catalog.codes_NL, self._catalog.level_sizes, self._titles)


def compare_answer(written: generate.GeneratedReply, wanted: Parts) -> tuple[bool, bool, bool | None]:
    """Whether an answer ended, holds an item where one is wanted, and the wanted one first (None: none is wanted)."""
    items, wanted_items = ([part.row for part in parts if isinstance(part, Item)] for parts in (written.parts, wanted))
    first = items[:1] == wanted_items[:1] if wanted_items else None
    return written.ended, bool(items) == bool(wanted_items), first


def _page(found: Mapping[str, TaskConversations]) -> str:
    lines = [f"| task | answers | {' | '.join(SHARES)} |", f"| --- |{' ---: |' * (len(SHARES) + 1)}"]
    for task, one in found.items():
        cells = [f"{one.shares[name]:.2f}" if name in one.shares else "–" for name in SHARES]
        lines.append(f"| {task} | {one.answers} | {' | '.join(cells)} |")
    for task, one in found.items():
        lines += ["", f"**{task}**", ""]
        lines += [f"- {role}: {' '.join(text.split())}" for role, text in one.shown if role != "system"]
    return "\n".join(lines) + "\n"
