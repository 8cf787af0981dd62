"""The teacher: asked at the same time, patiently, within bounds, and never in the clear."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import chat_client, teacher
from genrec.config import Config, load_config
from genrec.errors import InputError

TASK = "recommendation_reasoning"
GOOD = json.dumps({"choices": [{"message": {"content": "Because."}}]}).encode()


class Scripted(BaseHTTPRequestHandler):
    """Answers with the server's script, a status and a body per request, and with ``GOOD`` after its end."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.together is not None:  # type: ignore[attr-defined]
            self.server.together.wait(5)  # type: ignore[attr-defined]
        script = self.server.script  # type: ignore[attr-defined]
        status, body = script.pop(0) if script else (200, GOOD)
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.followed = True  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.script, server.together, server.followed = [], None, False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def config_for(server: Any, monkeypatch: pytest.MonkeyPatch, questions: int = 4, **settings: Any) -> Config:
    monkeypatch.setattr(
        teacher, "_questions", lambda *_: [(TASK, row, "en", f"why {row}?") for row in range(questions)]
    )
    monkeypatch.setattr(chat_client, "FIRST_PAUSE_S", 0.001)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    changes = {f"learning.instruction.teacher.{name}": value for name, value in settings.items()}
    return load_config(["versions/v1"]).replace(
        {
            "learning.sft.example_format": "tasks",
            "learning.tasks.recommendation_reasoning.weight": 1.0,
            "learning.instruction.teacher.url": url,
            "learning.instruction.teacher.model": "big",
            **changes,
        }
    )


def test_questions_are_asked_at_the_same_time(server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.together = threading.Barrier(4)
    assert teacher.ask(config_for(server, monkeypatch, concurrency=4), tmp_path, tmp_path) == 4
    assert not server.together.broken, "four requests were there at once"
    assert teacher.read_texts(tmp_path) == {(TASK, row, "en"): "Because." for row in range(4)}


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_in_trouble_is_asked_again(
    status: int, server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.script = [(status, b"later")] * 3
    assert teacher.ask(config_for(server, monkeypatch, concurrency=1), tmp_path, tmp_path) == 4


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, b""), (404, b""), (302, b""), (200, b"{"), (200, b"[]"), (200, b"x" * (chat_client.LARGEST_ANSWER + 1))],
)
def test_an_answer_that_no_retry_mends_is_one_message_and_what_was_answered_is_kept(
    status: int, body: bytes, server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GENREC_TEACHER_KEY", "very-secret")
    server.script = [(200, GOOD), (200, GOOD), (status, body)]
    config = config_for(server, monkeypatch, concurrency=1)
    with pytest.raises(InputError, match=r"gave no answer.*asks only what is not answered yet") as refused:
        teacher.ask(config, tmp_path, tmp_path)
    assert "very-secret" not in str(refused.value)
    assert not server.followed, "a redirect would carry the key to another server"
    answered = len(teacher.read_texts(tmp_path))
    assert answered >= 2
    assert teacher.ask(config, tmp_path, tmp_path) == 4 - answered


@pytest.mark.parametrize(
    "url", ["http://host:8000/v1", "https://user:pw@host/v1", "https://host/v1?key=x", "ftp://host", "https://", "x"]
)
def test_a_url_that_tells_secrets_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"learning\.instruction\.teacher\.url"):
        load_config([], [f"learning.instruction.teacher.url='{url}'", "learning.instruction.teacher.model=big"])
