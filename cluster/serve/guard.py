"""What every request passes first and last: its id, the API key, limits, a time limit, one log line, no stack trace.

It is an ASGI middleware of its own, so that a body that is too large is refused while it arrives.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass, field
from random import getrandbits

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.serve.locks import KEY_HEADER, KEY_VARIABLE, RateLimit, is_key
from cluster.serve.service_metrics import METRICS
from genrec.config import Serve

LOG = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CHANGES = ("/v1/items", "/v1/reload")
"""Paths whose POST and DELETE change what is served."""
OPEN = ("/healthz", "/readyz")
"""Paths that never ask for a key, and are never limited: who watches the service has none."""
SLOW_S = 600.0
"""Time limit of inserts and reloads, which load models."""

FAULT = "an error of the service; its log has more under this request id"

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that are counted by their names: a client may make up as many others as it likes."""

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


class Refusal(HTTPException):
    """A request that ends here, with an HTTP status and the reason in words.

    FastAPI lets this type through where a body is read, and turns others into its own.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, reason, headers)


@dataclass
class _Passage:
    """One request on its way: what is known of it, and whether its answer has begun."""

    scope: Scope
    send: Send
    id: str
    status: int = 500
    began: float = field(default_factory=time.perf_counter)
    answered: bool = False

    async def reply(self, message: Message) -> None:
        """Pass a message to the client; the first one gets the request's id and the safety headers."""
        if message["type"] == "http.response.start":
            self.answered, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in {**HEADERS, REQUEST_ID: self.id}.items():
                headers[name] = value
        await self.send(message)

    async def refuse(self, refusal: Refusal, receive: Receive) -> None:
        """Answer an error as JSON, unless an answer has begun."""
        if self.answered:
            return
        content = {"error": refusal.detail, "request_id": self.id}
        await JSONResponse(content, refusal.status_code, refusal.headers)(self.scope, receive, self.reply)


class RequestGuard:
    """The middleware.

    Args:
        app: what answers.
        limits: ``serve`` of the config.
        key: the API key; None: nothing can be changed.
    """

    def __init__(self, app: ASGIApp, limits: Serve, key: bytes | None) -> None:
        self._app, self._limits, self._key = app, limits, key
        self._rate = RateLimit(limits.rate_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        passage = _Passage(scope, send, given if GIVEN_ID.fullmatch(given) else f"{getrandbits(128):032x}")
        scope.setdefault("state", {})["request_id"] = passage.id
        METRICS.in_flight.inc()
        try:
            await self._pass(passage, receive)
        finally:
            METRICS.in_flight.dec()
            self._record(passage)

    async def _pass(self, passage: _Passage, receive: Receive) -> None:
        scope = passage.scope
        try:
            self._check(scope)
            async with asyncio.timeout(SLOW_S if _is_change(scope) else self._limits.timeout_s):
                await self._app(scope, self._limited(receive), passage.reply)
        except Refusal as refusal:
            await passage.refuse(refusal, receive)
        except TimeoutError:
            await passage.refuse(
                Refusal(504, f"no answer within {self._limits.timeout_s:g} s (serve.timeout_s)"), receive
            )
        except Exception:
            LOG.exception("request %s failed", passage.id)
            await passage.refuse(Refusal(500, FAULT), receive)

    def _check(self, scope: Scope) -> None:
        """Raise ``Refusal`` for a request without the key, too often, or with too long a body by its own account."""
        if _path(scope) in OPEN:
            return
        headers, client = Headers(scope=scope), (scope.get("client") or ("",))[0]
        if wait_s := self._rate.wait_s(client):
            seconds = str(int(wait_s) + 1)
            raise Refusal(429, f"too many requests (serve.rate_per_s); wait {seconds} s", {"retry-after": seconds})
        if _is_change(scope) or self._limits.key_for_reads:
            self._check_key(headers.get(KEY_HEADER, "").encode("latin-1"))
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.max_body_kb * 1024:
            raise self._too_long()

    def _check_key(self, given: bytes) -> None:
        if self._key is None:
            raise Refusal(
                403, f"the service has no API key: set {KEY_VARIABLE} (16 characters or more) where it starts"
            )
        if not is_key(given, self._key):
            raise Refusal(401, f"wanted the API key in the header {KEY_HEADER}", {"www-authenticate": "ApiKey"})

    def _limited(self, receive: Receive) -> Receive:
        """``receive``, which refuses a body once it is too long."""
        left = self._limits.max_body_kb * 1024

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_long()
            return message

        return counted

    def _too_long(self) -> Refusal:
        return Refusal(413, f"wanted a body of at most {self._limits.max_body_kb} KiB (serve.max_body_kb)")

    def _record(self, passage: _Passage) -> None:
        """Count the request and log one line, without ids or titles of items or users."""
        scope, seconds = passage.scope, time.perf_counter() - passage.began
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        METRICS.requests.labels(route, method, str(passage.status)).inc()
        METRICS.request_s.labels(route).observe(seconds)
        LOG.info("%s %s %s %d %.1f ms", passage.id, scope["method"], route, passage.status, 1000 * seconds)


def _is_change(scope: Scope) -> bool:
    return scope["method"] not in ("GET", "HEAD", "OPTIONS") and _path(scope).startswith(CHANGES)


def _path(scope: Scope) -> str:
    """The path below the prefix that the application is deployed at."""
    return scope["path"].removeprefix(scope.get("root_path", ""))
