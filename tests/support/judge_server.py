"""A judge in a thread: a server that scores by the words of the titles, or says what a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GRADES = {"great": 5, "good": 4, "poor": 2, "bad": 1}


def fair_reply(request: dict[str, Any]) -> str:
    """Scores by the first word of each answer's first title, in the form that is asked for."""
    shown = json.loads(request["messages"][1]["content"])["recommenders"]
    grades = {letter: GRADES.get(titles[0].split()[0], 3) for letter, titles in shown.items()}
    return json.dumps({letter: dict.fromkeys(("fit", "coherence", "appeal"), one) for letter, one in grades.items()})


class JudgeServer(ThreadingHTTPServer):
    """``reply``: from a request to the text of the answer, or to the status of an error."""

    def __init__(self, reply: Callable[[dict[str, Any]], str | int] = fair_reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.requests, self.lock = reply, list[dict[str, Any]](), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
            found = self.server.reply(request)
        if isinstance(found, int):
            self.send_response(found)
            self.send_header("Retry-After", "0")
            body = b"{}"
        else:
            self.send_response(200)
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            body = json.dumps({"choices": [{"message": {"content": found}}], "usage": usage}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def judging(reply: Callable[[dict[str, Any]], str | int] = fair_reply) -> Iterator[JudgeServer]:
    """The server, for as long as the block runs."""
    server = JudgeServer(reply)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
