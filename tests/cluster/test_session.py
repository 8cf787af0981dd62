"""Joining a cluster: every way that fails is one message, soon."""

import socket
from collections.abc import Iterator

import pytest
import ray

from cluster import session
from cluster.session import connect, require_ray_at
from genrec.config import load_config
from genrec.errors import InputError


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_where_nothing_or_something_else_answers_is_refused(silent_port: int) -> None:
    for port in (silent_port, 1):
        with pytest.raises(InputError, match=rf"no Ray cluster answers at 127.0.0.1:{port} .*wanted: HOST:6379"):
            require_ray_at(f"127.0.0.1:{port}", timeout_s=0.2)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head", "head:port", "ray://head", ""])
def test_an_address_of_another_form_is_refused_at_once(address: str) -> None:
    with pytest.raises(InputError, match="wanted: HOST:6379"):
        require_ray_at(address)


@pytest.mark.parametrize("source", ["config", "variable"])
def test_the_address_comes_from_the_config_or_the_environment(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.os, "environ", {"RAY_ADDRESS": "http://x"} if source == "variable" else {})
    with pytest.raises(InputError, match="http://x"):
        connect(load_config([], ["compute.address=http://x"] if source == "config" else []))


@pytest.mark.parametrize(
    "error",
    [OSError("AF_UNIX path length"), RuntimeError("no port is free"), ValueError("odd"), Exception("timed out")],
)
@pytest.mark.parametrize(("address", "message"), [("local", "Ray could not start"), ("auto", "could not join the Ray")])
def test_a_ray_that_cannot_start_or_be_joined_is_one_message(
    error: Exception, address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise error

    ended: list[bool] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(InputError, match=rf"{message}.*{error}; wanted") as refused:
        connect(load_config([], [f"compute.address={address}"]))
    assert ended, "what was started is ended"
    assert ("RAY_AUTH_MODE=token" in str(refused.value)) == (address != "local")
