"""Ctrl-C and SIGTERM: one line, a moment to clean up, and an end that leaves no process of this run behind.

Ray's libraries put handlers of their own in place of Python's, and a long call of native code delays any handler. So a
thread waits for the signals, by the file descriptor that Python's C handler writes to. Killing is safe: each stage goes
on from what lies in its directory, as after ``kill -9``.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import threading
from contextlib import suppress
from types import FrameType

import psutil

GRACE_S = 2.0
"""Seconds for which the work may clean up; a second signal ends it at once."""

LINE = "interrupted; the same command continues from here"
SHOW_CURSOR = "\r\x1b[K\x1b[?25h"
"""Clears the line and shows the cursor, which a live bar hides."""

_received: list[int] = []
"""The signal that is ending this process, if there is one."""

_line = [LINE]
"""What a signal writes."""

_handled: list[signal.Signals] = []
"""The signals that ``end_on_signals`` took over."""

_announcing = threading.RLock()


def end_on_signals(grace_s: float = GRACE_S) -> None:
    """From now on SIGINT and SIGTERM end this process and all that it started, with exit code 128 + signal.

    To be called in the main thread. A signal that this process was started to ignore, as under ``nohup``, stays so.
    """
    waiting, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            _handled.append(number)
    take_handlers_back()
    atexit.register(end_if_interrupted)
    threading.Thread(target=_wait, args=(waiting, grace_s), daemon=True).start()


def take_handlers_back() -> None:
    """Handle the signals here again, if they were: ``ray.init`` puts one of SIGTERM that writes a native trace."""
    if threading.current_thread() is threading.main_thread():
        for number in _handled:
            signal.signal(number, _raise_interrupt)


def end_with_line(line: str) -> None:
    """From now on a signal writes ``line``: the work before is done, and what goes on has no end of its own."""
    _line[0] = line


def end_if_interrupted() -> None:
    """End this process now if a signal is ending it: called when the work has cleaned up."""
    if _received:
        _end(128 + _received[0])


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    _announce(number)
    raise KeyboardInterrupt


def _wait(signals: socket.socket, grace_s: float) -> None:
    while (number := signals.recv(1)[0]) not in (signal.SIGINT, signal.SIGTERM):
        pass
    _announce(number)
    select.select([signals], [], [], grace_s)
    _end(128 + number)


def handles_signals() -> bool:
    """Whether this process is a command that ``end_on_signals`` may end."""
    return bool(_handled)


def end_now(line: str, code: int) -> None:
    """From any thread: write ``line`` unless it is empty, kill all that this process started, and end with ``code``."""
    with _announcing:
        if not _received:
            _write_last(line)
            _end(code)


def _announce(number: int) -> None:
    """Write the line, once."""
    with _announcing:
        if not _received:
            _received.append(number)
            _write_last(_line[0])


def _write_last(line: str) -> None:
    """Write the line; what libraries write after it goes nowhere."""
    with suppress(OSError):
        os.write(2, f"{SHOW_CURSOR if os.isatty(2) else ''}{line}\n".encode() if line else b"")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _end(code: int) -> None:
    """Kill every descendant, and those that came meanwhile; then end without further ado."""
    while children := [one for one in psutil.Process().children(recursive=True) if is_alive(one)]:
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=0.2)
    os._exit(code)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that ended and that its parent has not noticed does not."""
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
