"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable


def wait_until(is_so: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Return once ``is_so()``, which is asked many times a second; what it raises goes on to the test."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"it is not so after {limit_s:g} s"
        time.sleep(0.02)
