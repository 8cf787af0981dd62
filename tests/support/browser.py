"""A headless Chromium that tests open pages in, driven over its DevTools protocol.

Where there is none, ``BROWSER`` is None, and the tests that want one are skipped with ``NO_BROWSER`` as the reason.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NO_BROWSER = "no Chromium or Chrome is installed: the pages were not opened in a browser"
KEYS = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "Tab": 9}


class Tab:
    """One page, open in the browser; ``errors`` holds what its console complained about."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._numbers = loop, socket, itertools.count(1)
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Load a file, ``width`` pixels wide, in light or dark mode, and wait until its scripts have run."""
        self.errors.clear()
        self.requests.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._call("Page.navigate", {"url": page.absolute().as_uri()})
        deadline = time.monotonic() + 20
        loaded = f"document.readyState === 'complete' && location.href === '{page.absolute().as_uri()}'"
        while not self.js(loaded):
            assert time.monotonic() < deadline, f"{page} was not loaded within 20 s"
            time.sleep(0.02)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", {"type": "keyDown", **about, **text})
        self._call("Input.dispatchKeyEvent", {"type": "keyUp", **about})

    def _call(self, method: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._loop.run_until_complete(self._answer(method, options or {}))

    async def _answer(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": options})
        while True:
            message = await self._socket.receive_json(timeout=20)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message.get("method"), message.get("params", {}))

    def _hear(self, event: str | None, about: Mapping[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(str(about["args"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])


@contextmanager
def browser_tab(profile: Path) -> Iterator[Tab]:
    """A tab of a fresh browser, whose profile lies in ``profile``; the browser ends with it."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen([BROWSER, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    try:
        session, socket = loop.run_until_complete(_connect(_port(profile)))
        yield Tab(loop, socket)
        loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(20)
        loop.close()


def _port(profile: Path) -> str:
    file, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < deadline, "the browser did not start within 60 s"
        time.sleep(0.05)
    return file.read_text().splitlines()[0]


async def _connect(port: str) -> tuple[ClientSession, ClientWebSocketResponse]:
    session = ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        first = next(one for one in await answer.json() if one["type"] == "page")
    return session, await session.ws_connect(first["webSocketDebuggerUrl"], max_msg_size=0)
