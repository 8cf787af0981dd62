"""Builds the conversation of a task about a row: a query (history and target) or an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from genrec.config import Instruction
from genrec.errors import InputError
from genrec.learning.tasks.item_fields import ItemFields
from genrec.policy.chat.templates import TASKS, Language, Message, Parts, Template, fill

T = TypeVar("T")
CATEGORY_DIALOGUE, SEQUENCE_DIALOGUE = "multi_turn_dialogue_category", "multi_turn_dialogue_sequence"


class ExampleBuilder:
    """Builds examples from item fields, train queries and templates.

    Args:
        histories: items (rows) of each query, oldest first; queries with none are left out.
        targets: the next item of each query.
        absent: items without a SID in the trie; no example is about them.
        reasons: a teacher's text by (query row, language).
    """

    def __init__(
        self,
        item_fields: ItemFields,
        languages: Sequence[Language],
        settings: Instruction,
        histories: Sequence[Sequence[int]],
        targets: Sequence[int],
        *,
        absent: Sequence[int] = (),
        reasons: Mapping[tuple[int, str], str] | None = None,
    ) -> None:
        self._item_fields = item_fields
        self._languages, self._settings = languages, settings
        self._histories, self._targets = histories, targets
        self._absent, self._reasons = frozenset(absent), reasons or {}

    def rows(self, task: str) -> np.ndarray:
        """The rows that have every field of at least one template in every language.

        Raises:
            InputError: a language has no template of this task, or no row has the fields.
        """
        if without := [language.name for language in self._languages if not language.tasks.get(task)]:
            raise InputError(f"the languages {without} have no template of {task}; add one, or set its weight to 0")
        fits: dict[frozenset[str], bool] = {}
        found: list[int] = []
        source = TASKS[task].source
        total = len(self._item_fields) if source == "items" else len(self._histories)
        for row in range(total):
            has = self._has(task, row)
            if has is None:
                continue
            if has not in fits:
                fits[has] = all(_fitting(language.tasks[task], has) for language in self._languages)
            if fits[has]:
                found.append(row)
        if not found:
            needs = sorted({name for phrasing in self._languages[0].tasks[task] for name in phrasing.fields})
            raise InputError(
                f"none of the {total} {source} has the fields of learning.tasks.{task} (of {', '.join(needs)}); "
                "give the items titles and categories, or set its weight to 0"
            )
        return np.array(found)

    def build(self, task: str, row: int, rng: np.random.Generator) -> list[Message]:
        """The conversation about ``row``; the language and the template are drawn from ``rng``."""
        language = _drawn(self._languages, rng)
        phrasing = _drawn(_fitting(language.tasks[task], self._has(task, row) or frozenset()), rng)
        system = Message("system", (_drawn(language.system, rng),))
        if TASKS[task].source == "items":
            fields = self._item_fields.about_item(row, language, rng)
            return [system, *_turns(phrasing, [("user", fields), ("assistant", fields)])]
        return [system, *_turns(phrasing, self._exchanges(task, row, language))]

    def _has(self, task: str, row: int) -> frozenset[str] | None:
        """Names of the fields of a row; None if the row cannot be an example of the task."""
        if TASKS[task].source == "items":
            return None if row in self._absent else self._item_fields.has_about_item(row)
        history, target = self._histories[row], self._targets[row]
        if not history or target in self._absent or (task == SEQUENCE_DIALOGUE and len(history) < 2):
            return None
        context, steps = self._split(task, row)
        return self._item_fields.has_about_query(context, steps[-1])

    def _split(self, task: str, row: int) -> tuple[Sequence[int], list[int]]:
        """The history when a conversation begins, and the items that are recommended in it: the user's next ones."""
        history, target = self._histories[row], self._targets[row]
        if task not in (CATEGORY_DIALOGUE, SEQUENCE_DIALOGUE):
            return history, [target]
        before = min(self._settings.turns, len(history)) - 1
        context, later = history[: len(history) - before], history[len(history) - before :]
        steps = [item for item in later if item not in self._absent]
        if task == CATEGORY_DIALOGUE:
            steps = [item for item in steps if self._item_fields.category(item)]
        return context, [*steps, target]

    def _exchanges(self, task: str, row: int, language: Language) -> list[tuple[str, Mapping[str, Parts]]]:
        context, steps = self._split(task, row)
        reason = self._reasons.get((row, language.name), "")
        turns: list[Mapping[str, Parts]] = [
            self._item_fields.about_query(context, step, language, reason) for step in steps
        ]
        if task == CATEGORY_DIALOGUE:
            lines = [("user", turns[0]), ("assistant", turns[0]), ("ask", turns[0]), ("recommend", turns[0])]
        else:
            lines = [("user", turns[0]), ("assistant", turns[0])]
        answer = "recommend" if task == CATEGORY_DIALOGUE else "assistant"
        for before, step, fields in zip(steps, steps[1:], turns[1:], strict=False):
            same = self._item_fields.category(before) == self._item_fields.category(step)
            lines += [("more" if same else "other", fields), (answer, fields)]
        return lines


def _turns(phrasing: Template, lines: Sequence[tuple[str, Mapping[str, Parts]]]) -> list[Message]:
    return [
        Message("assistant" if number % 2 else "user", fill(phrasing.lines[line], fields))
        for number, (line, fields) in enumerate(lines)
    ]


def _fitting(phrasings: Sequence[Template], has: frozenset[str]) -> list[Template]:
    return [phrasing for phrasing in phrasings if phrasing.fields <= has]


def _drawn(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]
