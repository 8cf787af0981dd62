"""Templates of the instruction tasks: one YAML file per language, several templates per task.

A template is a set of named lines with ``{fields}``; ``TASKS`` says which lines a task has, and which fields each line
may and must contain. A filled line is a sequence of *parts*: text, and items, which become semantic IDs when the
message is encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any, Literal, get_args

import yaml

from genrec.errors import InputError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Item:
    """An item (row) inside a message: its semantic ID between span markers."""

    row: int


Parts = tuple[str | Item, ...]
"""The content of a message, in order, such as ``("After ", Item(3), ", what?")``."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: Parts


@dataclass(frozen=True)
class TaskSchema:
    """The rules for a task's templates.

    ``source``: the kind of row that an example is about. ``lines``: the names of the lines. ``needs``: per line, or
    ``*`` for all lines together, fields of which at least one must occur.
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
    "sequence_prediction": TaskSchema("queries", PAIR, TARGET),
    "category_analysis": TaskSchema("queries", PAIR, {"user": SEEN, "assistant": ("interests",)}),
    "category_based_recommendation": TaskSchema("queries", PAIR, TARGET | {"*": ("category",)}),
    "multi_turn_dialogue_category": TaskSchema(
        "queries",
        (*PAIR, "ask", "recommend", "more", "other"),
        {"user": SEEN, "assistant": ("interests",), "ask": ("category",), "recommend": ("target",)},
    ),
    "multi_turn_dialogue_sequence": TaskSchema("queries", (*PAIR, "more", "other"), TARGET),
    "preference_analysis": TaskSchema("queries", PAIR, {"user": SEEN, "assistant": ("categories", "brands")}),
    "recommendation_reasoning": TaskSchema("queries", PAIR, TARGET | {"*": ("reason",)}),
    "semantic_anchoring": TaskSchema("items", PAIR, {"*": ("sid",)}),
    "attribute_mapping": TaskSchema("items", PAIR, {"user": ("sid",), "assistant": ("title", "category")}),
    "semantic_recovery": TaskSchema("items", PAIR, {"user": ("partial",), "assistant": ("sid",)}),
    "document_to_id": TaskSchema("items", PAIR, {"user": ("document",), "assistant": ("sid",)}),
    "id_to_document": TaskSchema("items", PAIR, {"user": ("sid",), "assistant": ("document",)}),
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
"""The short texts from which fields are made, and the fields that each must contain."""


@dataclass(frozen=True)
class Template:
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
    tasks: Mapping[str, tuple[Template, ...]]


def load_language(name: str) -> Language:
    """The templates of a packaged language (``en``, ``zh``), or of a YAML file in the same format.

    Raises:
        InputError: no such language or file, an unknown task, or a template with missing or unknown lines or fields.
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
    templates = {task: tuple(_template(f"{name}: {task}", task, one) for one in tasks[task]) for task in tasks}
    return Language(name, tuple(system), phrases, templates)


def _template(where: str, name: str, lines: object) -> Template:
    task = TASKS[name]
    if not isinstance(lines, dict) or set(lines) != set(task.lines):
        got = sorted(lines) if isinstance(lines, dict) else lines
        raise InputError(f"{where}: a template has the lines {got!r}, wanted {list(task.lines)}")
    for line, text in lines.items():
        needs = [task.needs[line]] if line in task.needs else []
        _check_line(f"{where}.{line}", text, FIELDS[task.source], needs)
    whole = " ".join(lines.values())
    _check_line(where, whole, FIELDS[task.source], [task.needs["*"]] if "*" in task.needs else [])
    return Template(lines)


def _check_line(where: str, text: object, known: frozenset[str], needs: Sequence[tuple[str, ...]]) -> None:
    if not isinstance(text, str):
        raise InputError(f"{where} is {text!r}, wanted a text")
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
    """Names of the ``{fields}`` in a line; ValueError when its braces are unbalanced."""
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
    for index, piece in enumerate(pieces):
        parts += ([separator] if index else []) + list(piece)
    return tuple(parts)
