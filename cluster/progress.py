"""What people see while a run works: log records as lines, as a live bar in a terminal, and in a file per stage.

A training worker's records come to the driver by file: its own output comes through Ray mixed with the logs of Ray's
actors, and only while the driver that started it lives.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from genrec.errors import printable
from genrec.progress import EXTRA, LiveTable, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

OWN_LOGGERS = ("genrec", "cluster", "workflows", "benchmarks")
"""Loggers whose records are shown and kept; those of libraries are not."""

STAGE_LOG = "stage.log"
WORKER_LOG = "worker.jsonl"
STAGE = "stage"
"""The attribute of a record that names the stage it speaks of, where that is not the one at work."""

_stages: list[str] = []
"""The stages at work in this process, the inner one last."""


class _PlainFormatter(logging.Formatter):
    """Control characters are written as escapes: what a message quotes cannot steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _StageFormatter(_PlainFormatter):
    """``[stage] message``, with the level before what is more than information."""

    def format(self, record: logging.LogRecord) -> str:
        stage = getattr(record, STAGE, None) or (_stages[-1] if _stages else None)
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return f"[{stage}] {level}{super().format(record)}" if stage else f"{level}{super().format(record)}"


class _Patient(logging.Handler):
    """A log that cannot be written, on a full disk or a closed terminal, ends no run."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit the record, or lose it."""
        with suppress(OSError):
            return bool(super().handle(record))
        return False

    def handleError(self, record: logging.LogRecord) -> None:
        """Show errors of the program, not of the disk."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class LineHandler(_Patient, logging.StreamHandler[TextIO]):
    """Every record as a line: for files, pipes and CI. Characters that the stream cannot write are replaced."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(sys.stdout if stream is None else stream)
        self.setFormatter(_StageFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line; where the stream's encoding lacks a character, ``?`` stands for it."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(self.format(record).encode(encoding, "replace").decode(encoding) + self.terminator)
        self.flush()


class BarHandler(_Patient):
    """Progress as a live bar in a terminal: done of total, rate, time left and figures; the rest as lines."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        super().__init__()
        self.setFormatter(_StageFormatter())
        self._console = console or Console(highlight=False, markup=False, soft_wrap=True)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}  {task.fields[left]}{task.fields[figures]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._shown: str | None = None
        self._table: Live | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Move the bar for a ``Progress``, draw a ``LiveTable`` anew; print anything else above them."""
        progress = getattr(record, EXTRA, None)
        if isinstance(progress, LiveTable):
            self._draw(progress)
        elif self._table is not None and isinstance(progress, Progress):
            return  # A table of runs is on the screen: the bar of one of them would push it away.
        elif not isinstance(progress, Progress):
            self._console.print(self.format(record))
        elif progress.done >= progress.total:
            self.end()
            self._console.print(self.format(record))
        else:
            self._move(progress)

    def end(self) -> None:
        """Take the bar away; the last table stays."""
        if self._table is not None:
            self._table.stop()
            self._table = None
        if self._shown is not None:
            self._bars.stop()
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._shown = None

    def close(self) -> None:
        """Take the bar away, and the handler with it."""
        self.end()
        super().close()

    def _draw(self, table: LiveTable) -> None:
        from rich.live import Live

        if self._table is None:
            self.end()
            self._table = Live(console=self._console, auto_refresh=False)
            self._table.start()
        self._table.update(_drawn(table, self._console.height), refresh=True)
        if table.ended:
            self.end()

    def _move(self, progress: Progress) -> None:
        title = " ".join(part for part in (*_stages[-1:], progress.task or f"{progress.unit}s") if part)
        fields: dict[str, Any] = {
            "rate": _rate(progress),
            "left": f"about {_duration(progress.seconds_left)} left",
            "figures": "".join(f"  {name} {value:.4f}" for name, value in progress.figures.items()),
        }
        if title != self._shown:
            self.end()
            self._bars.add_task(title, total=progress.total, completed=progress.done, **fields)
            self._bars.start()
            self._shown = title
        else:
            self._bars.update(self._bars.task_ids[0], completed=progress.done, total=progress.total, **fields)


def show_in_terminal(level: int = logging.INFO) -> None:
    """Show this process's records on standard output: bars in a terminal, lines elsewhere; once."""
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level)
    if not any(isinstance(handler, LineHandler | BarHandler) for handler in logging.getLogger(OWN_LOGGERS[0]).handlers):
        _attach(BarHandler() if sys.stdout.isatty() else LineHandler())


@contextmanager
def stage_log(stage: str, directory: Path) -> Generator[None]:
    """Meanwhile, records belong to ``stage``, and ``directory/stage.log`` keeps them with time and level."""
    handler = _StageFile(directory / STAGE_LOG, encoding="utf-8", delay=True)
    handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _stages.append(stage)
    _attach(handler)
    try:
        yield
    finally:
        _detach(handler)
        _stages.pop()
        for own in logging.getLogger(OWN_LOGGERS[0]).handlers:
            if isinstance(own, BarHandler):
                own.end()


@contextmanager
def log_to_file(directory: Path) -> Generator[None]:
    """In a training worker: records, and what is printed, go to ``directory/worker.jsonl``."""
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    handler = _JsonLines(directory / WORKER_LOG)
    _attach(handler)
    try:
        with redirect_stdout(_Printed()):
            yield
    finally:
        _detach(handler)


@contextmanager
def tail_log(directory: Path, interval_s: float = 0.5) -> Generator[None]:
    """In the driver: handle the records that are added to ``directory/worker.jsonl`` meanwhile like its own."""
    path, stop = directory / WORKER_LOG, threading.Event()
    path.touch()
    with path.open(encoding="utf-8") as file:
        file.seek(0, 2)

        def follow() -> None:
            while not stop.wait(interval_s):
                _handle_lines(file)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            _handle_lines(file)


class _StageFile(_Patient, logging.FileHandler):
    """``stage.log``."""


class _JsonLines(_Patient):
    """A record per line; the file is opened for each, so that it may be written by several processes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        progress = getattr(record, EXTRA, None)
        line: dict[str, Any] = {
            "name": record.name,
            "level": record.levelno,
            "levelname": record.levelname,
            "message": record.getMessage(),
        }
        if isinstance(progress, Progress):
            line[EXTRA] = asdict(progress)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class _Printed:
    """Standard output of a worker: each line becomes a record."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        """Log the lines that ``text`` completes."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                logging.getLogger("cluster").info("%s", line)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back but an unfinished line."""


def _handle_lines(file: TextIO) -> None:
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return
        try:
            told = json.loads(line)
        except json.JSONDecodeError:  # A worker was killed, or the disk was full, within the line before it.
            continue
        _handle(told)


def _handle(line: Mapping[str, Any]) -> None:
    fields = {"name": line["name"], "levelno": line["level"], "levelname": line["levelname"]}
    record = logging.makeLogRecord({**fields, "msg": line["message"]})
    if EXTRA in line:
        setattr(record, EXTRA, Progress(**line[EXTRA]))
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _attach(handler: logging.Handler) -> None:
    for name in OWN_LOGGERS:
        logging.getLogger(name).addHandler(handler)


def _detach(handler: logging.Handler) -> None:
    for name in OWN_LOGGERS:
        logging.getLogger(name).removeHandler(handler)
    with suppress(OSError):
        handler.close()


def _drawn(table: LiveTable, height: int) -> Table:
    """The table for a terminal of ``height`` lines: what does not fit is left out from the end, and counted."""
    from rich.table import Table
    from rich.text import Text

    room = len(table.rows) if table.ended else max(1, height - 6)
    left_out = len(table.rows) - room
    caption = f"{table.caption}, {left_out} more rows" if left_out > 0 else table.caption
    drawn = Table(title=Text(printable(table.title)), caption=Text(printable(caption)), title_justify="left", box=None)
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(printable(column)), justify="left" if number == 0 else "right", overflow="ellipsis")
    for row in table.rows[:room]:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    return drawn


def _rate(progress: Progress) -> str:
    left = progress.total - progress.done
    return f"{left / progress.seconds_left:.2g} {progress.unit}s/s" if progress.seconds_left > 0 else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
