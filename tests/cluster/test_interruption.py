"""Ctrl-C and SIGTERM end a run with one line, its exit code, and none of its processes left."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from cluster import interruption

START = """
import ctypes, subprocess, signal, sys, time
from cluster.interruption import end_on_signals
end_on_signals(grace_s=0.3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
"""

WORK = {
    "python": "time.sleep(600)",
    "native code that hides every handler": "libc = ctypes.CDLL(None)\nwhile True: libc.usleep(600000)",
    "a library with a handler of its own": "for n in (2, 15): signal.signal(n, lambda *_: None)\ntime.sleep(600)",
    "clean-up that hangs": "try: time.sleep(600)\nfinally: time.sleep(600)",
}


def test_the_handlers_are_taken_back_from_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        interruption.take_handlers_back()
        assert signal.getsignal(signal.SIGTERM) == before, "nothing is taken that was not handled"
        monkeypatch.setattr(interruption, "_handled", [signal.SIGTERM])
        interruption.take_handlers_back()
        assert signal.getsignal(signal.SIGTERM) is interruption._raise_interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def runs(pid: int) -> bool:
    """Whether the process is there, and no zombie that its new parent takes away at any moment."""
    return any(one.pid == pid and interruption.is_alive(one) for one in psutil.process_iter())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_a_signal_ends_any_work_with_one_line_and_leaves_no_process(work: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START + work], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    start = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=5)
    assert time.monotonic() - start < 5
    lines = [line for line in errors.splitlines() if line.startswith("interrupted")]
    assert process.returncode == 128 + number and len(lines) == 1
    assert not runs(child)


def test_work_that_has_no_end_of_its_own_ends_with_its_own_line() -> None:
    ready = "from cluster.interruption import end_with_line\nend_with_line('the service has ended')\n"
    process = subprocess.Popen(
        [sys.executable, "-c", ready + START + WORK["python"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=5)
    assert (process.returncode, errors) == (128 + signal.SIGTERM, "the service has ended\n")
