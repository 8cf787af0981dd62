"""The HTTP service of untrained runs, without Ray."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fastapi.testclient import TestClient

from cluster.serve.http_app import make_app
from cluster.serve.runs_file import RunsFile, Split
from cluster.serve.service import HttpService
from genrec.config import Serve
from genrec.inference.run_place import RunPlace

KEY = "a key of the tests alone"
HEADERS = {"x-api-key": KEY}


def make_service(
    storage: Path, *runs: str, share: float = 0.0, deployment: str = "one", **settings: object
) -> HttpService:
    """The service of runs of ``storage``, such as ``alone`` of ``support.served``; no answer of it is late by default.

    On a busy machine an answer may take longer than ``serve.deadline_ms`` of a real service.
    """
    places = [RunPlace.find(storage / "runs" / run) for run in runs]
    shared = RunsFile(str(storage), deployment)
    return HttpService(places, Split(share), Serve.model_validate({"deadline_ms": 20_000, **settings}), shared)


@contextmanager
def client_of(service: HttpService) -> Generator[TestClient]:
    """A client of the service's application; it raises no error of the service, as a network would not."""
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client
