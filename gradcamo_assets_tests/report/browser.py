"""A page in headless Chromium, by the DevTools protocol over a pipe: https://chromedevtools.github.io/devtools-protocol.

No driver is needed, and nothing listens on a port.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic --remote-debugging-pipe"
)
_KEYS = {"Enter": (13, "\r"), " ": (32, " "), "Tab": (9, ""), "ArrowRight": (39, ""), "ArrowDown": (40, "")}


class Page:
    """One tab. ``problems``: what the console, the page and the network had to say against it."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers, self._read, self._number = commands, answers, b"", 0
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
        raise AssertionError(f"Chromium does not answer {method}")

    def _messages(self, seconds: float = 60) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            while b"\0" in self._read:
                first, _, self._read = self._read.partition(b"\0")
                message = json.loads(first)
                self._note(message)
                yield message
            if select.select([self._answers], [], [], left)[0]:
                self._read += os.read(self._answers, 1 << 16)

    def _note(self, message: dict[str, Any]) -> None:
        said = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(said["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                self.problems.append(str(said["args"]))
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                self.problems.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
            case "Network.requestWillBeSent" if not said["request"]["url"].startswith(("data:", "file:", "about:")):
                self.problems.append(f"asks for {said['request']['url']}")

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.as_uri())
        for message in self._messages():
            if message.get("method") == "Page.loadEventFired":
                return
        raise AssertionError("the page does not load")

    def ask(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as from a keyboard."""
        code, text = _KEYS[key]
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """A click of the mouse on the middle of an element."""
        x, y = self.ask(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f"return [r.x + r.width / 2, r.y + r.height / 2] }})(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A page of a Chromium of its own, whose profile is in ``folder``."""
    assert CHROMIUM
    (its_read, commands), (answers, its_write) = os.pipe(), os.pipe()

    def hand_over() -> None:  # Chromium reads from 3 and writes to 4.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_read, its_write)]
        for number, end in enumerate(ends, start=3):
            os.dup2(end, number)

    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS.split(), f"--user-data-dir={folder}"], preexec_fn=hand_over, pass_fds=(3, 4),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_read)
    os.close(its_write)
    try:
        yield Page(commands, answers)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        os.close(commands)
        os.close(answers)
