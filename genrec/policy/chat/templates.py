"""Templates of the instruction tasks: one YAML file per language, several templates per task.

A template is a set of named lines with ``{fields}``; ``task_schema.TASKS`` says which lines a task has, and which
fields each line may and must contain. A filled line is a sequence of *parts*: text, and items, which become semantic
IDs when the message is encoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any, Literal, get_args

import yaml

from genrec.errors import InputError
from genrec.policy.chat.task_schema import FIELDS, PHRASES, TASKS, AnyOf

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


def language_content(name: str) -> str:
    """What stands for a language in a stage's key: the SHA-256 of its templates.

    Raises:
        InputError: there is no such language or file.
    """
    return hashlib.sha256(_read(name)).hexdigest()


def load_language(name: str) -> Language:
    """The templates of a packaged language (``en``, ``zh``), or of a YAML file in the same format.

    Raises:
        InputError: no such language or file, an unknown task, or a template with missing or unknown lines or fields.
    """
    try:
        content: Any = yaml.safe_load(_read(name).decode())
        system, phrases, tasks = (content[part] for part in ("system", "phrases", "tasks"))
        known, phrases = set(tasks), dict(phrases)
        phrasings: dict[str, list[Any]] = {task: list(tasks[task]) for task in tasks}
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(name, error) from error
    if not isinstance(system, list) or not system or not all(isinstance(one, str) for one in system):
        raise InputError(f"{name}: system is {system!r}, wanted a list of texts")
    if unknown := sorted(known - set(TASKS)):
        raise InputError(f"{name}: unknown tasks {unknown}; the tasks are {sorted(TASKS)}")
    for key, needed in PHRASES.items():
        _check_line(f"{name}: phrases.{key}", phrases.get(key), frozenset(needed), [(one,) for one in needed])
    templates = {task: tuple(_template(f"{name}: {task}", task, one) for one in phrasings[task]) for task in phrasings}
    return Language(name, tuple(system), phrases, templates)


def _read(name: str) -> bytes:
    """The packaged file of a language, or the user's."""
    found = resources.files("genrec.policy.chat") / "languages" / f"{name}.yaml"
    try:
        return (found if found.is_file() else Path(name)).read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(
        f"learning.instruction.languages: {name!r} is neither a packaged language (en, zh) nor a readable YAML "
        f"file with system, phrases and tasks: {error!r}"
    )


def _template(where: str, name: str, lines: object) -> Template:
    task = TASKS[name]
    if not isinstance(lines, dict) or set(lines) != set(task.lines):
        got = sorted(lines) if isinstance(lines, dict) else lines
        raise InputError(f"{where}: a template has the lines {got!r}, wanted {list(task.lines)}")
    for line, text in lines.items():
        _check_line(f"{where}.{line}", text, FIELDS[task.source], task.needs.get(line, ()))
    _check_line(where, " ".join(lines.values()), FIELDS[task.source], task.needs.get("*", ()))
    said = [name for _, name, _, _ in Formatter().parse(lines[task.lines[-1]]) if name in task.order]
    if said and list(dict.fromkeys(said)) != list(task.order):
        wanted = " before ".join(f"{{{field}}}" for field in task.order)
        raise InputError(f"{where}.assistant wants {wanted}: {lines['assistant']!r}")
    return Template(lines)


def _check_line(where: str, text: object, known: frozenset[str], needs: Sequence[AnyOf]) -> None:
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
        parts += [literal, *(fields[name] if name is not None else ())]
    return _merged(parts)


def join(pieces: Sequence[Parts], separator: str) -> Parts:
    """All parts of all pieces, with the separator between pieces."""
    parts: list[str | Item] = []
    for index, piece in enumerate(pieces):
        parts += ([separator] if index else []) + list(piece)
    return _merged(parts)


def _merged(parts: Sequence[str | Item]) -> Parts:
    """The same with one text between items: a tokenizer then sees words with the spaces before them."""
    merged: list[str | Item] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)
