"""Clients on the loopback: as fast as they can, or at a rate; a failed request is tried once more, as clients do."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class HttpReply:
    """An answer: its status (0: none at all), its JSON, when it was due by ``time.monotonic()``, and its seconds."""

    status: int
    content: Mapping[str, Any]
    due: float
    seconds: float
    retried: bool = False


class LoadClient:
    """One connection to a service, kept open. Not to be shared among threads."""

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(address)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._prefix, self._headers = parts.path, {"content-type": "application/json", **(headers or {})}

    def ask(self, method: str, path: str, body: object = None, due: float | None = None) -> HttpReply:
        """The answer; after an error of the service or the network the request is tried once more."""
        due = time.monotonic() if due is None else due
        status, content = self._try(method, path, body)
        retried = status == 0 or status >= 500
        if retried:
            status, content = self._try(method, path, body)
        return HttpReply(status, content, due, time.monotonic() - due, retried)

    def _try(self, method: str, path: str, body: object) -> tuple[int, Mapping[str, Any]]:
        try:
            self._connection.request(method, self._prefix + path, json.dumps(body) if body else None, self._headers)
            answer = self._connection.getresponse()
            text = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else {"text": text.decode(errors="replace")}
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0, {}


@dataclass
class Load:
    """Clients that ask for recommendations until ``seconds`` are over or ``requests`` were made.

    ``rate``: requests per second of all together, evenly spaced, each timed from the moment when it was due, so that a
    slow service does not slow its clients down; None: each client asks again at once.
    """

    address: str
    bodies: Sequence[Mapping[str, Any]]
    clients: int = 8
    rate: float | None = None
    seconds: float = float("inf")
    requests: float = float("inf")
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> LoadResult:
        """All answers, in the order in which they came."""
        began, numbers, replies = time.monotonic(), itertools.count(), list[HttpReply]()
        with ThreadPoolExecutor(self.clients) as pool:
            list(pool.map(lambda _: self._client(began, numbers, replies), range(self.clients)))
        return LoadResult(replies, time.monotonic() - began)

    def _client(self, began: float, numbers: Iterator[int], replies: list[HttpReply]) -> None:
        client = LoadClient(self.address)
        while not self.stop.is_set() and (number := next(numbers)) < self.requests:
            due = time.monotonic() if self.rate is None else began + number / self.rate
            if due > began + self.seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            replies.append(client.ask("POST", "/v1/recommend", self.bodies[number % len(self.bodies)], due))


@dataclass(frozen=True)
class LoadResult:
    """What clients were answered, and the seconds that it took."""

    replies: list[HttpReply]
    seconds: float

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return len(self.replies) / self.seconds

    @property
    def failed(self) -> int:
        """Requests without an answer after one more try."""
        return sum(reply.status != 200 for reply in self.replies)

    def count(self, is_one: Callable[[Mapping[str, Any]], bool]) -> int:
        """The number of answers of which ``is_one``."""
        return sum(reply.status == 200 and is_one(reply.content) for reply in self.replies)

    def quantile_ms(self, share: float) -> float:
        """Milliseconds within which ``share`` of the answers came."""
        return float(np.quantile([reply.seconds for reply in self.replies], share)) * 1000
