"""The API key, and how often a client may ask."""

from __future__ import annotations

import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable

KEY_VARIABLE = "GENREC_API_KEY"
KEY_HEADER = "x-api-key"
FEWEST_CHARACTERS = 16


def api_key() -> bytes | None:
    """The key of the environment variable ``GENREC_API_KEY``; None where there is none, or one of fewer than 16 bytes.

    Without a key nothing can be changed.
    """
    key = os.environ.get(KEY_VARIABLE, "").encode()
    return key if len(key) >= FEWEST_CHARACTERS else None


def is_key(given: bytes, key: bytes | None) -> bool:
    """Whether ``given`` is the key; the time of the comparison does not tell how much of it is right."""
    return key is not None and hmac.compare_digest(given, key)


class RateLimit:
    """A token bucket per client: ``per_s`` requests per second on average, and two seconds' worth at once.

    Args:
        per_s: 0 is no limit.
        clients: buckets kept; the one that was used least recently goes first.
        clock: seconds.
    """

    def __init__(self, per_s: float, clients: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._clients, self._clock = per_s, clients, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str) -> float:
        """0 where the client may ask now, which is counted; else the seconds until it may."""
        if not self._per_s:
            return 0.0
        now, most = self._clock(), max(1.0, 2 * self._per_s)
        tokens, then = self._buckets.pop(client, (most, now))
        tokens = min(most, tokens + (now - then) * self._per_s)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - allowed, now)
        while len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._per_s
