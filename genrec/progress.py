"""How far a long piece of work has come, as a log record: a terminal may draw it as a bar, a file keeps the line."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

EXTRA = "progress"
"""The attribute of a ``logging.LogRecord`` that holds its ``Progress`` or its ``LiveTable``."""


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of work, about how long the rest takes, and the figures that matter now.

    ``task`` says what is done where the stage does several things.

    ``Progress("step", 30, 266, 235.0, {"loss": 6.3961})``: step 30 of 266, 235 seconds left.
    """

    unit: str
    done: int
    total: int
    seconds_left: float
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    task: str = ""

    def __str__(self) -> str:
        shown = "".join(f"  {name} {value:.4f}" for name, value in self.figures.items())
        task = f"{self.task}: " if self.task else ""
        left = f"  about {self.seconds_left:.0f} s left" if self.done < self.total else ""
        return f"{task}{self.unit} {self.done}/{self.total}{shown}{left}"


@dataclass(frozen=True)
class LiveTable:
    """The state of several runs at once, a row each; a terminal draws it in place of the one before.

    ``caption`` stands below the rows. ``ended``: this is the last one.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    ended: bool = False


def log_table(logger: logging.Logger, line: str, table: LiveTable) -> None:
    """Log ``line``, which says what changed, at level INFO; a terminal shows the whole ``table`` instead."""
    logger.info("%s", line, extra={EXTRA: table})


def log_progress(logger: logging.Logger, progress: Progress) -> None:
    """Log ``progress`` at level INFO; handlers find the object itself under ``record.progress``."""
    logger.info("%s", progress, extra={EXTRA: progress})
