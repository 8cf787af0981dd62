"""Reward terms of users: from installed packages (entry points), or from a Python file named on the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from genrec.errors import InputError
from genrec.learning.rewards.context import Term
from genrec.learning.rewards.terms import TERMS

GROUP = "genrec.rewards"


def load_terms(wanted: Collection[str], file: Path | None = None) -> dict[str, Term]:
    """The built-in terms, those of ``file`` (its mapping ``TERMS``), and the entry points that ``wanted`` names.

    Args:
        wanted: the names in ``rewards.custom``; other entry points are not imported.

    Raises:
        InputError: the file or an entry point cannot be imported, has no ``TERMS`` of functions, or has a name that is
            in use.
    """
    terms = dict(TERMS)
    if file is not None:
        _add(terms, _from_file(file), str(file))
    for entry in entry_points(group=GROUP):
        if entry.name in wanted:
            try:
                found: Any = entry.load()
            except Exception as error:
                raise InputError(f"entry point {entry.value!r} of {GROUP} cannot be loaded: {error!r}") from error
            _add(terms, {entry.name: found}, f"entry point {entry.value!r}")
    return terms


def packages_of(wanted: Collection[str]) -> dict[str, str]:
    """The package and version of each entry point that ``wanted`` names: another version may reward otherwise."""
    found = [entry for entry in entry_points(group=GROUP) if entry.name in wanted]
    return {entry.name: f"{entry.value} {entry.dist.version if entry.dist else ''}".strip() for entry in found}


def _from_file(file: Path) -> dict[str, Any]:
    if not file.is_file() or file.suffix != ".py":
        raise InputError(f"--rewards {file}: no such Python file; wanted a .py file with a mapping TERMS")
    spec: Any = importlib.util.spec_from_file_location(f"genrec_rewards_{file.stem}", file)
    module: Any = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"--rewards {file} cannot be imported: {error!r}") from error
    found = getattr(module, "TERMS", None)
    if not isinstance(found, dict) or not found:
        raise InputError(f"--rewards {file} defines no TERMS; wanted TERMS = {{'name': function, …}}")
    return found


def _add(terms: dict[str, Term], found: dict[str, Any], where: str) -> None:
    for name, term in found.items():
        if not callable(term):
            raise InputError(f"{where}: term {name!r}: got a {type(term).__name__}, wanted a function")
        if name in terms:
            raise InputError(f"{where}: the name {name!r} of a reward term is in use; choose another")
        terms[name] = cast("Term", term)
