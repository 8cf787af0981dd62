"""Conversations with a trained policy: of each task that it learned, on what it was not trained on.

The user's turns are written from the templates about test queries (or items); the assistant's are the policy's own,
also those that it looks back on. Beside the transcripts, per task and of ``CONVERSATIONS``: the share of answers that
came to an end, of those that hold an item exactly where the templates' answer does, and whose first item is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.compare import Comparison
from cluster.artifacts import Artifact
from cluster.stages import instruction, steps
from cluster.train import RunSpec
from genrec.config import Config
from genrec.errors import InputError

CONVERSATIONS = 20
"""Per task, spread evenly over its rows."""

MAX_TOKENS = 400


def run(config: Config, data: Artifact, catalog: Artifact) -> Comparison:
    """Train the policy of the config, unless it exists, and talk to it.

    Raises:
        InputError: no task of ``learning.tasks`` is a conversation, or an unknown one in ``bench.variants``.
    """
    chosen = [name for name in config.learning.tasks.chosen if name != "next_item"]
    if unknown := [name for name in config.bench.variants if name not in chosen]:
        raise InputError(f"bench.variants names {unknown}; the conversations of learning.tasks are {chosen}")
    if not chosen:
        raise InputError("bench chat talks about what a policy learned; give learning.tasks weights")
    policy = steps.sft(config, data, catalog)
    partner = _ChatEvaluation(RunSpec(config, data.path, catalog.path, policy.path, start=policy.path))
    found = {task: partner.talk(task) for task in config.bench.variants or chosen}
    comparison = Comparison("chat", text=_page(found))
    comparison.figures = {
        f"{task}.{name}": value for task, one in found.items() for name, value in one["shares"].items()
    }
    return comparison


class _ChatEvaluation:
    """The user's side of the conversations, and what is counted of the other's."""

    def __init__(self, job: RunSpec) -> None:
        import torch

        from genrec.data.tables import read_items

        torch.set_num_threads(job.config.compute.threads)
        self._policy, prompts, self._catalog = job.build()
        self._form = instruction.chat_format(job, prompts, self._catalog)
        self._titles = [title or "" for title in read_items(job.data)["title"].to_pylist()]
        languages = job.config.learning.instruction.languages[:1]
        self._builder = instruction.make_example_builder(job, self._catalog, "test", languages)

    def talk(self, task: str) -> dict[str, Any]:
        """The first conversation as lines of (role, text), and the shares over all."""
        import numpy as np

        from genrec.policy.chat import generate

        rows = self._builder.rows(task)
        sampling = generate.Sampling(max_tokens=MAX_TOKENS)
        counted: list[tuple[bool, bool, bool | None]] = []
        shown: list[tuple[str, str]] = []
        for number, place in enumerate(np.linspace(0, len(rows) - 1, min(CONVERSATIONS, len(rows))).astype(int)):
            said: list[Any] = []
            for message in self._builder.build(task, int(rows[place]), np.random.default_rng(number)):
                if message.role == "assistant":
                    written = generate.generate_reply(self._policy, self._form, self._catalog.trie, said, sampling)
                    counted.append(_counted(written, message.parts))
                    message = type(message)("assistant", tuple(written.parts))
                said.append(message)
                if number == 0:
                    shown.append((message.role, self._shown(message.parts)))
        ended, where, right = (list(column) for column in zip(*counted, strict=True))
        judged = [one for one in right if one is not None]
        shares = {"ended": float(np.mean(ended)), "item_where_wanted": float(np.mean(where))}
        if judged:
            shares["item_as_wanted"] = float(np.mean(judged))
        return {"answers": len(counted), "shares": shares, "shown": shown}

    def _shown(self, parts: Any) -> str:
        from genrec.policy.chat import generate

        return generate.format_parts(parts, self._catalog.codes_NL, self._catalog.level_sizes, self._titles)


def _counted(written: Any, wanted: Any) -> tuple[bool, bool, bool | None]:
    """Whether an answer ended, holds an item where one is wanted, and (None: none is wanted) the wanted one first."""
    from genrec.policy.chat.templates import Item

    ours, theirs = ([part.row for part in parts if isinstance(part, Item)] for parts in (written.parts, wanted))
    return written.ended, bool(ours) == bool(theirs), ours[:1] == theirs[:1] if theirs else None


def _page(found: Mapping[str, Mapping[str, Any]]) -> str:
    names = ("ended", "item_where_wanted", "item_as_wanted")
    lines = [f"| task | answers | {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) + 1)}"]
    for task, one in found.items():
        cells = [f"{one['shares'][name]:.2f}" if name in one["shares"] else "–" for name in names]
        lines.append(f"| {task} | {one['answers']} | {' | '.join(cells)} |")
    for task, one in found.items():
        lines += ["", f"**{task}**", ""]
        lines += [f"- {role}: {' '.join(text.split())}" for role, text in one["shown"] if role != "system"]
    return "\n".join(lines) + "\n"
