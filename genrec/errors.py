"""The one error that means: the input is wrong, not the program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong input, where possible detected before any work starts.

    The message says what the program got, what it wanted, and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist: says the nearest one, and all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return InputError(f"unknown {kind} {name!r}; the nearest is {near!r}; wanted: one of {', '.join(names)}")
