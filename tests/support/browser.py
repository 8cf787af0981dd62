"""A real browser without a window, driven over the pipe of its debugging protocol.

Commands and answers are JSON, each ended by a null byte, on the browser's file descriptors 3 and 4.
https://chromedevtools.github.io/devtools-protocol/

Where there is none, ``BROWSER`` is None, and the tests that want one are skipped with ``NO_BROWSER`` as the reason.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NO_BROWSER = "no Chromium or Chrome is installed: the pages were not opened in a browser"

KEYS = {"Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
TEXTS = {"Enter": "\r", " ": " "}
"""What a key writes."""


class Page:
    """A tab of the browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._count, self._session = to_browser, from_browser, b"", 0, ""
        self.errors: list[str] = []
        """What the page threw, and what its console complained about."""
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; AssertionError where the browser refuses it or does not answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._hear(answer)

    def open(self, url: str) -> None:
        """Load an address."""
        self.send("Page.navigate", url=url)

    def open_file(self, file: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Load a file in a window of that width, in light or dark mode, and wait until its scripts have run."""
        url = file.absolute().as_uri()
        self.window(width, 900, dark=dark)
        self.errors.clear()
        self.requests.clear()
        self.open(url)
        self.wait(f"document.readyState === 'complete' && location.href === '{url}'", 20)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript; a promise is waited for."""
        told = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, script: str, seconds: float = 10.0) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never came true: {script}; errors: {self.errors}"
            time.sleep(0.03)
        return value

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press and release a key."""
        shared = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=TEXTS.get(key, ""), **shared)
        self.send("Input.dispatchKeyEvent", type="keyUp", **shared)

    def window(self, width: int, height: int, *, dark: bool = False) -> None:
        """Size in CSS pixels, and the colours that the user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path) -> None:
        """The page as a PNG file, down to its end."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], 30)
            part = os.read(self._from, 2**16) if ready else b""
            assert part, "the browser does not answer"
            self._rest += part
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def _hear(self, event: dict[str, Any]) -> None:
        told, method = event.get("params", {}), event.get("method")
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        if (
            method == "Runtime.exceptionThrown"
            or (method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"))
            or (method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"))
        ):
            self.errors.append(json.dumps(told)[:500])


@contextmanager
def browser() -> Generator[Page]:
    """A page of a new browser with an empty profile, which ends with the block."""
    assert BROWSER is not None
    command_in, command_out = os.pipe()
    answer_in, answer_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
        script = f'exec "$0" {flags} --user-data-dir="$1" about:blank 3<&{command_in} 4>&{answer_out}'
        started = subprocess.Popen(
            ["bash", "-c", script, BROWSER, profile],
            pass_fds=(command_in, answer_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_in)
        os.close(answer_out)
        try:
            yield Page(command_out, answer_in)
        finally:
            started.terminate()
            started.wait(10)
            os.close(command_out)
            os.close(answer_in)
