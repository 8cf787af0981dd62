"""The words of the instruction tasks: YAML files, one per language, several phrasings per task.

A phrasing is a set of lines with ``{fields}``; ``TASKS`` says which lines a task has and what they may and must hold.
A message is filled with *parts*: text, and items, which become semantic IDs when the message is encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import yaml

from genrec.errors import InputError


@dataclass(frozen=True, slots=True)
class Item:
    """An item (row) inside a message: its semantic ID between span markers."""

    row: int


Parts = tuple[str | Item, ...]
"""What a message says, in order, such as ``("After ", Item(3), ", what?")``."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    parts: Parts


@dataclass(frozen=True)
class TaskTemplate:
    """What a task's phrasings look like.

    ``source``: what a row of it is. ``lines``: the names of the lines. ``needs``: per line, or ``*`` for all of them
    together, fields of which one must occur.
    """

    source: Literal["queries", "items"]
    lines: tuple[str, ...]
    needs: Mapping[str, tuple[str, ...]]


PAIR = ("user", "assistant")
SEEN = ("history", "titled", "titles")
TARGET = {"user": SEEN, "assistant": ("target",)}
FIELDS = {
    "queries": frozenset(
        [
            "history",
            "titled",
            "titles",
            "target",
            "target_title",
            "category",
            "interests",
            "categories",
            "brands",
            "reason",
        ]
    ),
    "items": frozenset(["sid", "title", "category", "path", "brand", "description", "partial", "document"]),
}
TASKS = {
    "sequence_prediction": TaskTemplate("queries", PAIR, TARGET),
    "category_analysis": TaskTemplate("queries", PAIR, {"user": SEEN, "assistant": ("interests",)}),
    "category_based_recommendation": TaskTemplate("queries", PAIR, TARGET | {"*": ("category",)}),
    "multi_turn_dialogue_category": TaskTemplate(
        "queries",
        (*PAIR, "ask", "recommend", "more", "other"),
        {"user": SEEN, "assistant": ("interests",), "ask": ("category",), "recommend": ("target",)},
    ),
    "multi_turn_dialogue_sequence": TaskTemplate("queries", (*PAIR, "more", "other"), TARGET),
    "preference_analysis": TaskTemplate("queries", PAIR, {"user": SEEN, "assistant": ("categories", "brands")}),
    "recommendation_reasoning": TaskTemplate("queries", PAIR, TARGET | {"*": ("reason",)}),
    "semantic_anchoring": TaskTemplate("items", PAIR, {"*": ("sid",)}),
    "attribute_mapping": TaskTemplate("items", PAIR, {"user": ("sid",), "assistant": ("title", "category")}),
    "semantic_recovery": TaskTemplate("items", PAIR, {"user": ("partial",), "assistant": ("sid",)}),
    "document_to_id": TaskTemplate("items", PAIR, {"user": ("document",), "assistant": ("sid",)}),
    "id_to_document": TaskTemplate("items", PAIR, {"user": ("sid",), "assistant": ("document",)}),
}
PHRASES = {
    "separator": (),
    "titled": ("sid", "title"),
    "counted": ("name", "count"),
    "path": (),
    "sentences": (),
    "same_category": ("category", "other"),
    "same_brand": ("brand", "other"),
    "same_words": ("words", "other"),
    "nothing_shared": (),
    "teacher": ("titles", "target_title"),
}
"""The short texts that fields are made of, and the fields that each must hold."""


@dataclass(frozen=True)
class Phrasing:
    """One wording of a task: its lines by name."""

    lines: Mapping[str, str]

    @cached_property
    def fields(self) -> frozenset[str]:
        """All fields of all lines."""
        return frozenset(name for line in self.lines.values() for name in fields_of(line))


@dataclass(frozen=True)
class Language:
    """The templates of one language."""

    name: str
    system: tuple[str, ...]
    phrases: Mapping[str, str]
    tasks: Mapping[str, tuple[Phrasing, ...]]


def load_language(name: str) -> Language:
    """Read the templates of a packaged language, or of a YAML file of the same form.

    Raises:
        InputError: no such language or file, or a template that lacks a task, a line or a field, or has an unknown one.
    """
    found = resources.files("genrec.policy.chat") / "languages" / f"{name}.yaml"
    file = found if found.is_file() else Path(name)
    try:
        text = file.read_text(encoding="utf-8")
        content: Any = yaml.safe_load(text)
        system, phrases, tasks = (content[part] for part in ("system", "phrases", "tasks"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(
            f"learning.instruction.languages: {name!r} is neither a packaged language (en, zh) nor a readable YAML "
            f"file with system, phrases and tasks: {error!r}"
        ) from error
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise InputError(f"{name}: unknown tasks {unknown}; the tasks are {sorted(TASKS)}")
    for key, needed in PHRASES.items():
        _check_line(f"{name}: phrases.{key}", phrases.get(key), frozenset(needed), [(one,) for one in needed])
    made = {task: tuple(_phrasing(f"{name}: {task}", task, one) for one in tasks[task]) for task in tasks}
    return Language(name, tuple(system), phrases, made)


def _phrasing(where: str, name: str, lines: Any) -> Phrasing:
    task = TASKS[name]
    if not isinstance(lines, dict) or set(lines) != set(task.lines):
        came = sorted(lines) if isinstance(lines, dict) else lines
        raise InputError(f"{where}: a phrasing needs the lines {list(task.lines)}, this one has {came!r}")
    for line, text in lines.items():
        needs = [task.needs[line]] if line in task.needs else []
        _check_line(f"{where}.{line}", text, FIELDS[task.source], needs)
    whole = " ".join(lines.values())
    _check_line(where, whole, FIELDS[task.source], [task.needs["*"]] if "*" in task.needs else [])
    return Phrasing(lines)


def _check_line(where: str, text: object, known: frozenset[str], needs: Sequence[tuple[str, ...]]) -> None:
    if not isinstance(text, str):
        raise InputError(f"{where} is {text!r}; a text was expected")
    try:
        used = fields_of(text)
    except ValueError as error:
        raise InputError(f"{where} has unbalanced braces ({error}): {text!r}") from error
    if unknown := sorted(used - known):
        raise InputError(f"{where} uses the fields {unknown}, it may use {sorted(known)}: {text!r}")
    for any_of in needs:
        if not used & set(any_of):
            wanted = " or ".join(f"{{{name}}}" for name in any_of)
            raise InputError(f"{where} lacks the field {wanted}: {text!r}")


def fields_of(text: str) -> set[str]:
    """Names of the ``{fields}`` in a template; ValueError when its braces do not pair."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def fill(text: str, fields: Mapping[str, Parts]) -> Parts:
    """``text`` with each ``{field}`` replaced by its parts."""
    parts: list[str | Item] = []
    for literal, name, _, _ in Formatter().parse(text):
        if literal:
            parts.append(literal)
        if name is not None:
            parts += fields[name]
    return tuple(parts)


def join(pieces: Sequence[Parts], separator: str) -> Parts:
    """All parts of all pieces, with the separator between pieces."""
    parts: list[str | Item] = []
    for number, piece in enumerate(pieces):
        parts += ([separator] if number else []) + list(piece)
    return tuple(parts)
