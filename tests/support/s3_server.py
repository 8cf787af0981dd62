"""A real S3 server in this process (moto), with faults between it and its clients: busy, slow, cut, gone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from genrec.data import object_store

Start = Callable[..., Any]
Fault = Callable[["S3Server", dict[str, Any], Start], "Iterable[bytes] | None"]

BUCKET = "shop"
REGION = "us-east-1"


class S3Server:
    """Listens at a free port of this machine. ``fault`` answers in place of the server, or returns None."""

    def __init__(self) -> None:
        import boto3
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.port = self._server.port
        self.fault: Fault | None = None
        self.requests: list[tuple[str, str]] = []
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name=REGION)

    def url(self, path: str = "genrec", bucket: str = BUCKET) -> str:
        """The URL of a storage in ``bucket``."""
        return f"s3://{bucket}/{path}?endpoint_override=http://127.0.0.1:{self.port}&region={REGION}"

    def names(self, prefix: str = "") -> list[str]:
        """The names of all objects, in order; without those that pyarrow leaves for an empty folder."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        names = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [name for name in names if not name.endswith("/")]

    def close(self) -> None:
        self._server.shutdown()

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Let ``fault`` answer meanwhile."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    def _answer(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        found = self.fault(self, environ, start) if self.fault is not None else None
        return self.app(environ, start) if found is None else found


def refusing(status: str, code: str, *, methods: tuple[str, ...] = ("GET", "PUT", "POST", "HEAD", "DELETE")) -> Fault:
    """Answer requests of ``methods`` with an error of S3, such as ("403 Forbidden", "AccessDenied")."""

    def fault(server: S3Server, environ: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] not in methods:
            return None
        return _error(environ, start, status, code)

    return fault


def busy(every: int = 2) -> Fault:
    """Answer each ``every``-th request with 503 SlowDown."""
    count = [0]

    def fault(server: S3Server, environ: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        count[0] += 1
        return None if count[0] % every else _error(environ, start, "503 Slow Down", "SlowDown")

    return fault


def slow(seconds: float) -> Fault:
    """Answer late."""

    def fault(server: S3Server, environ: dict[str, Any], start: Start) -> None:
        time.sleep(seconds)

    return fault


def cut(times: int, name: str = "") -> Fault:
    """Send half of what is read and then nothing, so many times, where ``name`` is in the path."""
    left = [times]

    def fault(server: S3Server, environ: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] != "GET" or name not in environ["PATH_INFO"] or not left[0]:
            return None
        body = b"".join(server.app(environ, start))
        if len(body) < 2:
            return [body]
        left[0] -= 1

        def half() -> Iterator[bytes]:
            yield body[: len(body) // 2]
            raise ConnectionResetError("cut")

        return half()

    return fault


def _error(environ: dict[str, Any], start: Start, status: str, code: str) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    """One server for the whole session."""
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with one empty bucket and no fault; its clients wait little before they try again."""
    monkeypatch.setattr(object_store, "WAITS_S", (0.01, 0.01, 0.01, 0.01))
    monkeypatch.setattr(object_store, "REQUEST_TRIES", 1)
    s3_process.client.create_bucket(Bucket=BUCKET)
    s3_process.requests.clear()
    yield s3_process
    s3_process.fault = None
    for entry in s3_process.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        s3_process.client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    s3_process.client.delete_bucket(Bucket=BUCKET)
