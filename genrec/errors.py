"""The one error that means: the input is wrong, not the program."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that steer a terminal or the direction of writing; line ends and tabs are not among them."""


def printable(text: str) -> str:
    """``text`` with its control characters written as escapes, so that an id in a message cannot steer a terminal."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class InputError(ValueError):
    """Wrong input, where possible detected before any work starts.

    The message says what the program got, what it wanted, and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class MachineError(InputError):
    """Something around the work is missing, the input may be good: what was done stays, for the same command."""


def packed_error(error: InputError) -> str:
    """``error`` as text, from which another process makes it again with ``unpacked_error``."""
    return json.dumps({"of_machine": isinstance(error, MachineError), "message": str(error)})


def unpacked_error(text: str) -> InputError:
    """The error that ``packed_error`` was told, as an ``InputError`` or as a ``MachineError``."""
    told = json.loads(text)
    return MachineError(told["message"]) if told["of_machine"] else InputError(told["message"])


class BeingWrittenError(MachineError):
    """Another process is making what this one was to make; once it ends there is nothing left to do."""


@contextmanager
def dropping_what_is_refused(drop: Callable[[], object]) -> Generator[None]:
    """Call ``drop`` where the work is refused for its input; after a ``MachineError`` what was done stays."""
    try:
        yield
    except MachineError:
        raise
    except InputError:
        drop()
        raise


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist: says the nearest one, and all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return InputError(f"unknown {kind} {name!r}; the nearest is {near!r}; wanted: one of {', '.join(names)}")
