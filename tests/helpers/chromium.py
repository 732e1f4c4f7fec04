"""A headless Chromium, driven through its debugging pipe: pages are used as a person would, and looked at."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)


def find() -> str:
    named = os.environ.get("BROWSER") or "chromium"
    found = shutil.which(named)
    assert found, f"no browser {named!r}: make test-browser finds one, or BROWSER=/path/to/one"
    return found


@contextmanager
def page(profile: Path, *options: str) -> Iterator[Page]:
    """One page in a browser of its own, blank."""
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()

    def place_pipes() -> None:  # the browser reads from 3 and writes to 4
        for number, target in ((os.dup(to_browser), 3), (os.dup(from_browser), 4)):
            os.dup2(number, target)

    command = [find(), *OPTIONS, f"--user-data-dir={profile}", *options, "about:blank"]
    process = subprocess.Popen(command, preexec_fn=place_pipes, close_fds=False, stderr=subprocess.DEVNULL)
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Page(read, write)
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)


class Page:
    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._held = b""
        self._number = 0
        self._session = ""
        self._loaded: set[str] = set()  # documents, by the identifier of their loader
        self.said: list[str] = []  # by the console, and as errors
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next(60)
            if found.get("id") == self._number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]

    def _next(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._held:
            assert select.select([self._read], [], [], seconds)[0], "the browser says nothing"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser is gone"
            self._held += data
        line, _, self._held = self._held.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        if found.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(found["params"]["exceptionDetails"].get("exception", {}).get("description")))
        if found.get("method") == "Log.entryAdded" and found["params"]["entry"]["level"] == "error":
            self.said.append(found["params"]["entry"]["text"])
        if found.get("method") == "Page.lifecycleEvent" and found["params"]["name"] == "load":
            self._loaded.add(found["params"]["loaderId"])
        return found

    def size(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Returns when the document and what it names are loaded: before that, `document.body` may be null."""
        found = self.call("Page.navigate", url=url)
        assert "errorText" not in found, f"{url}: {found['errorText']}"
        while found["loaderId"] not in self._loaded:
            self._next(60)

    def value(self, script: str) -> Any:
        """Of an expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> Any:
        """Until the expression is true."""
        until = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < until, f"never: {script}; {self.said}"
            time.sleep(0.05)
        return found

    def click(self, selector: str) -> None:
        """In the middle of what is seen of it, with the mouse."""
        place = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Files in a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
