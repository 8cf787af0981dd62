"""A client of OpenAI-compatible chat servers: patient, within bounds, and never in the clear.

The key comes from the environment variable that the config names; it is sent to the server, and written nowhere.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from socket import gaierror
from typing import IO, Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from genrec.config import ChatServer
from genrec.errors import InputError

LARGEST_ANSWER = 2**20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
PASSING = (408, 425, 429)
"""Codes of HTTP below 500 after which a second try may help."""
REFUSING = (401, 403, 404, 405)
"""Codes of HTTP that every question would get."""


@dataclass(frozen=True)
class ServerReply:
    """What a server said, and the tokens that it counted in the question and in its words; 0 where it says none."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


class NoReply(InputError):
    """A server gave no reply; ``is_final`` if it would give none to any other question either.

    ``empty``: one without words, such as of a model that was cut off while it thought: its tokens are to be paid.
    """

    def __init__(self, message: str, is_final: bool, empty: ServerReply | None = None) -> None:
        super().__init__(message)
        self.is_final, self.empty = is_final, empty


class _WithoutWords(ValueError):
    def __init__(self, reply: ServerReply) -> None:
        super().__init__("an empty answer")
        self.reply = reply


def chat(
    settings: ChatServer, messages: Sequence[Mapping[str, str]], given_up: threading.Event, *, who: str
) -> ServerReply:
    """One reply to ``messages``, after as many tries as ``settings.retries`` allow.

    Args:
        given_up: set when nobody waits for the reply any more: then there is no further try.
        who: the server in messages, such as "the teacher".

    Raises:
        NoReply: the server cannot be reached, or answers with an error or in another form.
    """
    key = os.environ.get(settings.key_variable)
    url = f"{str(settings.url).rstrip('/')}/chat/completions"
    request = _request(url, settings, messages, key)
    for attempt in range(settings.retries + 1):
        try:
            with OPENER.open(request, timeout=settings.timeout_s) as response:
                return _reply(json.loads(_bounded(response)))
        except (OSError, HTTPException, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            if attempt < settings.retries and _is_passing(error) and not given_up.wait(_pause_s(error, attempt)):
                continue
            have = "set" if key else "not set"
            raise NoReply(
                f"{who} at {url} gave no answer: {error!r}; wanted: an OpenAI-compatible server with the model "
                f"{settings.model!r} (the key variable {settings.key_variable} is {have})",
                _is_final(error),
                error.reply if isinstance(error, _WithoutWords) else None,
            ) from None
    raise AssertionError("the last attempt returns or raises")


def _request(url: str, settings: ChatServer, messages: Sequence[Mapping[str, str]], key: str | None) -> Request:
    body = {
        "model": settings.model,
        "messages": list(messages),
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
    }
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return Request(url, json.dumps(body).encode(), headers)


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would carry the key to another server."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Follow none: the redirect becomes an ``HTTPError``."""


OPENER = build_opener(_NoRedirects)


def _is_passing(error: Exception) -> bool:
    """Whether a second try may help: too many requests, a server in trouble, a timeout, a lost connection."""
    if isinstance(error, HTTPError):
        return error.code in PASSING or error.code >= 500
    return isinstance(error, OSError | HTTPException) and not _nobody_there(error)


def _is_final(error: Exception) -> bool:
    """Whether no question would be answered: nobody is there, or the server knows no such key, path or model.

    400 is not final: some servers refuse single questions with it.
    """
    return _nobody_there(error) or (isinstance(error, HTTPError) and (error.code < 400 or error.code in REFUSING))


def _nobody_there(error: Exception) -> bool:
    cause = error.reason if isinstance(error, URLError) else error
    return isinstance(cause, ConnectionRefusedError | gaierror)


def _pause_s(error: Exception, attempt: int) -> float:
    """Seconds before the next try: what the server asks for, else 0.5, 1, 2, …, with jitter; ``LONGEST_PAUSE_S``."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, HTTPError) else ""
    wait_s = float(asked) if asked.isdecimal() else FIRST_PAUSE_S * 2**attempt * random.uniform(1.0, 1.5)
    return min(wait_s, LONGEST_PAUSE_S)


def _bounded(response: BinaryIO) -> bytes:
    content = response.read(LARGEST_ANSWER + 1)
    if len(content) > LARGEST_ANSWER:
        raise ValueError(f"an answer of more than {LARGEST_ANSWER} bytes")
    return content


def _reply(response: Mapping[str, Any]) -> ServerReply:
    text = str(response["choices"][0]["message"]["content"] or "").strip()
    usage = response.get("usage")
    counted = usage if isinstance(usage, dict) else {}
    reply = ServerReply(text, _count(counted.get("prompt_tokens")), _count(counted.get("completion_tokens")))
    if not text:
        raise _WithoutWords(reply)
    return reply


def _count(value: object) -> int:
    """A number of tokens, 0 for what is none."""
    return value if isinstance(value, int) and value > 0 else 0
