"""Builds the example of a task about a row: a query (history and target), an item, or a window of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np

from genrec.config import Instruction
from genrec.errors import InputError
from genrec.learning.tasks.category_lists import CategoryLists
from genrec.learning.tasks.history_fields import HistoryFields
from genrec.learning.tasks.item_fields import ItemFields
from genrec.learning.tasks.windows import sliding_windows
from genrec.policy.chat.task_schema import LIST, TASKS
from genrec.policy.chat.templates import Language, Message, Parts, Template, fill

T = TypeVar("T")
Line = tuple[str, Mapping[str, Parts]]
"""The name of a template's line, and the fields that it is filled with."""

CATEGORY_REQUEST = "category_based_recommendation"
CATEGORY_DIALOGUE, SEQUENCE_DIALOGUE = "multi_turn_dialogue_category", "multi_turn_dialogue_sequence"
TAUGHT = {"recommendation_reasoning": "reason", "preference_analysis": "taste"}
"""The tasks whose text a teacher may write, and the field that it becomes."""


class ExampleBuilder:
    """Builds examples from item fields, train queries and templates.

    Args:
        histories: items (rows) of each query, oldest first; queries with none are left out.
        targets: the next item of each query.
        sequences: of whole users, for tasks over windows; None takes ``histories``.
        absent: items without a SID in the trie; no example is about them.
        taught: a teacher's text by (task, query row, language).
    """

    def __init__(
        self,
        item_fields: ItemFields,
        languages: Sequence[Language],
        settings: Instruction,
        histories: Sequence[Sequence[int]],
        targets: Sequence[int],
        *,
        sequences: Sequence[Sequence[int]] | None = None,
        absent: Sequence[int] = (),
        taught: Mapping[tuple[str, int, str], str] | None = None,
    ) -> None:
        self._items, self._languages, self._settings = item_fields, languages, settings
        self._histories, self._targets = histories, targets
        self._sequences = histories if sequences is None else sequences
        self._absent, self._taught = frozenset(absent), taught or {}
        self._fields = HistoryFields(item_fields, settings)
        counts_N = np.bincount(np.asarray(targets, dtype=np.int64), minlength=len(item_fields))
        self._lists = CategoryLists(item_fields, counts_N, self._absent)

    def rows(self, task: str) -> np.ndarray:
        """The rows that have every field of at least one template in every language.

        Raises:
            InputError: a language has no template of this task, or no row has the fields.
        """
        if without := [language.name for language in self._languages if not language.tasks.get(task)]:
            raise InputError(f"the languages {without} have no template of {task}; add one, or set its weight to 0")
        fits: dict[frozenset[str], bool] = {}
        found: list[int] = []
        total = len(self._items) if TASKS[task].source == "items" else len(self._about(task))
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
                f"none of the {total} {TASKS[task].source} has the fields of learning.tasks.{task} (of "
                f"{', '.join(needs)}); give the items titles and categories, or set its weight to 0"
            )
        return np.array(found)

    def lengths(self, task: str, rows_R: np.ndarray) -> np.ndarray:
        """Items of history in the examples about ``rows_R``, (R,); 0 for those about an item."""
        if TASKS[task].source == "items":
            return np.zeros(len(rows_R), dtype=np.int64)
        source = self._about(task)
        return np.array([len(source[row]) for row in rows_R], dtype=np.int64)

    def build(self, task: str, row: int, rng: np.random.Generator) -> list[Message]:
        """The conversation about ``row``; the language and the template are drawn from ``rng``.

        A passage is one message of the assistant.
        """
        language = _drawn(self._languages, rng)
        phrasing = _drawn(self._templates(task, row, language), rng)
        return self._written(task, row, language, phrasing, rng)

    def wordings(self, task: str, row: int, seed: int) -> list[list[Message]]:
        """The conversation about ``row`` in each template of the first language that fits; all else is equal."""
        language = self._languages[0]
        return [
            self._written(task, row, language, phrasing, np.random.default_rng(seed))
            for phrasing in self._templates(task, row, language)
        ]

    def category(self, item: int) -> str:
        """The finest category of an item, or ''."""
        return self._items.category(item)

    def _written(
        self, task: str, row: int, language: Language, phrasing: Template, rng: np.random.Generator
    ) -> list[Message]:
        system = Message("system", (_drawn(language.system, rng),))
        lines = self._lines(task, row, language, rng)
        said = [fill(phrasing.lines[line], fields) for line, fields in lines]
        if TASKS[task].is_passage:
            return [Message("assistant", said[0])]
        turns = [Message("assistant" if number % 2 else "user", parts) for number, parts in enumerate(said)]
        return [system, *turns]

    def _templates(self, task: str, row: int, language: Language) -> list[Template]:
        return _fitting(language.tasks[task], self._has(task, row) or frozenset())

    @cached_property
    def _windows(self) -> list[Sequence[int]]:
        return sliding_windows(self._sequences, self._settings.window, self._settings.stride)

    def _about(self, task: str) -> Sequence[Sequence[int]]:
        """The items chosen, per row of a task over queries or windows."""
        return self._windows if TASKS[task].source == "windows" else self._histories

    def _has(self, task: str, row: int) -> frozenset[str] | None:
        """Names of the fields of a row; None if the row cannot be an example of the task."""
        source = TASKS[task].source
        if source == "items":
            return None if row in self._absent else self._items.has(row)
        if source == "windows":
            return self._fields.has_about_history(self._windows[row])
        context, steps = self._split(task, row)
        if not context or not steps:
            return None
        has = self._fields.has_about_history(context)
        has |= frozenset.intersection(*(self._fields.has_about_next(step) for step in steps))
        return has | set(LIST) if task in (CATEGORY_REQUEST, CATEGORY_DIALOGUE) else has

    def _split(self, task: str, row: int) -> tuple[Sequence[int], list[int]]:
        """The history when a conversation begins, and the items that it leads to; none if it cannot be held."""
        history, target = self._histories[row], self._targets[row]
        if not history or target in self._absent:
            return [], []
        if task == SEQUENCE_DIALOGUE:
            return self._next_steps([*history, target])
        if task == CATEGORY_DIALOGUE:
            return history, self._types([*history, target])
        listed = task != CATEGORY_REQUEST or self._lists.has(target, self._settings.list_items)
        return history, [target] if listed else []

    def _next_steps(self, events: Sequence[int]) -> tuple[Sequence[int], list[int]]:
        """The user's last distinct items with a category, ``turns`` of them and at least two, and what came before."""
        places: list[int] = []
        for place in range(len(events) - 1, 0, -1):
            new = events[place] not in [events[later] for later in places]
            if new and self._items.category(events[place]) and events[place] not in self._absent:
                places.insert(0, place)
            if len(places) == self._settings.turns:
                break
        return (events[: places[0]], [events[place] for place in places]) if len(places) > 1 else ([], [])

    def _types(self, events: Sequence[int]) -> list[int]:
        """The user's last items of different categories, ``turns`` of them and at least two, that lists can show."""
        found: dict[str, int] = {}
        for item in reversed(events):
            if len(found) < self._settings.turns and self._lists.has(item, self._settings.dialogue_items):
                found.setdefault(self._items.category(item), item)
        return list(found.values())[::-1] if len(found) > 1 else []

    def _lines(self, task: str, row: int, language: Language, rng: np.random.Generator) -> list[Line]:
        """The lines of a conversation in their order, the user's first."""
        if TASKS[task].source == "items":
            fields = self._items.about(row, language)
            return [(line, fields) for line in TASKS[task].lines]
        if TASKS[task].source == "windows":
            fields = self._fields.about_history(self._windows[row], language, rng)
            return [("user", fields), ("assistant", fields)]
        context, steps = self._split(task, row)
        before = self._fields.about_history(context, language, rng)
        turns = [before | self._about_step(task, row, context, step, language, rng) for step in steps]
        lines: list[Line] = [("user", turns[0]), ("assistant", turns[0])]
        for earlier, later, fields in zip(steps, steps[1:], turns[1:], strict=False):
            lines += [(self._feedback(task, earlier, later), fields), ("assistant", fields)]
        return lines

    def _about_step(
        self, task: str, row: int, context: Sequence[int], step: int, language: Language, rng: np.random.Generator
    ) -> dict[str, Parts]:
        fields = self._fields.about_next(context, step, language)
        if task in (CATEGORY_REQUEST, CATEGORY_DIALOGUE):
            count = self._settings.list_items if task == CATEGORY_REQUEST else self._settings.dialogue_items
            fields |= self._lists.fields(self._lists.draw(step, count, rng), language)
        if text := self._taught.get((task, row, language.name)):
            fields[TAUGHT[task]] = (text,)
        return fields

    def _feedback(self, task: str, earlier: int, later: int) -> str:
        """The line between two answers: a user who stays in a category liked the item, one who leaves it did not."""
        if task == CATEGORY_DIALOGUE:
            return "other"
        return "like" if self._items.category(earlier) == self._items.category(later) else "dislike"


def _fitting(phrasings: Sequence[Template], has: frozenset[str]) -> list[Template]:
    return [phrasing for phrasing in phrasings if phrasing.fields <= has]


def _drawn(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]
