"""A real browser: Debian's chromium, driven through its chromedriver by the WebDriver protocol (W3C)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.helpers.harness import LOOPBACK, WAIT_S, free_port

MISSING = [tool for tool in ("chromium", "chromedriver") if not shutil.which(tool)]
CALL_S = 60  # a page of 5,000 connections on a busy machine
POLL_S = 0.04
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, by the protocol
KEYS = {"enter": "\ue007", "escape": "\ue00c", "tab": "\ue004", "space": " "}
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root may not use the sandbox
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-site-isolation-trials",  # one process for all pages
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE *.localhost",
    "--lang=en-GB",
)


class BrowserError(Exception):
    """The browser could not do what it was asked."""


class Browser:
    """One window of chromium; `close` ends it and its driver."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        with (folder / "chromedriver.log").open("wb") as log:
            self._driver = subprocess.Popen(
                ["chromedriver", f"--port={self._port}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # with a process group of its own, in which chromium is too
            )
        self._session = ""
        try:
            self._wait_driver()
            self._start(folder)
        except BaseException:
            self.close()
            raise

    def _wait_driver(self) -> None:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                self._call("GET", "/status")
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(POLL_S)

    def _start(self, folder: Path) -> None:
        options = {"args": [*FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1360,900"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": 30_000, "pageLoad": 30_000, "implicit": 0},
        }
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"

    def close(self) -> None:
        """End chromium and its driver, at once: asked to end, chromium may take a minute."""
        os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait(WAIT_S)

    # ---- pages ---------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Load a page, even if only the part behind # differs from the present one."""
        is_same = self.run("return location.href.split('#')[0] === arguments[0].split('#')[0]", url)
        self._do("POST", "/url", {"url": url})
        if is_same:
            self._do("POST", "/refresh", {})

    def leave(self) -> None:
        """Leave the page for one of the same site, the driver's own, which needs no new process."""
        self._do("POST", "/url", {"url": f"http://{LOOPBACK}:{self._port}/status"})

    def run(self, script: str, *args: Any) -> Any:
        """Run the body of a function in the page and return its value; it may be a promise."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(args)})

    def wait(self, condition: str, *args: Any, timeout_s: float = WAIT_S) -> Any:
        """Wait until an expression in the page is true, and return its value."""
        end = time.monotonic() + timeout_s
        while not (value := self.run(f"return {condition}", *args)):
            if time.monotonic() > end:
                text = self.run("return document.body.innerText.slice(0, 2000)")
                raise AssertionError(f"in {timeout_s:.0f} s it did not come true: {condition} {args}\n{text}")
            time.sleep(POLL_S)
        return value

    def wait_text(self, selector: str, text: str) -> None:
        """Wait until an element that is seen has this in its text."""
        seen = "[...document.querySelectorAll(arguments[0])].some(e => e.checkVisibility() && {})"
        self.wait(seen.format("e.textContent.includes(arguments[1])"), selector, text)

    def text(self, selector: str) -> str:
        """Return the text that is seen of the first such element."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def click(self, selector: str) -> None:
        """Press the mouse on the first such element, which has to come into sight."""
        self._until_done(lambda: self._do("POST", f"/element/{self._find(selector)}/click", {}))

    def type(self, selector: str, text: str) -> None:
        """Type into a field, behind what is in it."""
        self._until_done(lambda: self._do("POST", f"/element/{self._find(selector)}/value", {"text": text}))

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        codes = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": code} for code in codes for kind in ("keyDown", "keyUp")]
        self._do("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def point_away(self) -> None:
        """Move the mouse to the corner of the page, where nothing reacts to it."""
        move = {"type": "pointerMove", "x": 0, "y": 0, "duration": 0}
        self._do("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})

    def _find(self, selector: str) -> str:
        found = self._do("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    @staticmethod
    def _until_done(act: Callable[[], object]) -> None:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                act()
                return
            except BrowserError:
                if time.monotonic() > end:
                    raise
                time.sleep(POLL_S)

    # ---- surroundings --------------------------------------------------------------------------------------

    def resize(self, width: int, height: int, *, scale: float = 1) -> None:
        """Make the page's area this large, as on a phone if it is narrow."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", **metrics)

    def prefer(self, **features: str) -> None:
        """Have the system prefer something: `color_scheme="dark"`."""
        named = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": each} for name, each in features.items()
        ]
        self._devtools("Emulation.setEmulatedMedia", features=named)

    def cookies(self) -> list[dict[str, Any]]:
        """Return the page's cookies, also those that no script may see."""
        found: list[dict[str, Any]] = self._do("GET", "/cookie")
        return found

    def reset(self) -> None:
        """Leave the page, and forget all that it has kept and all that was set."""
        self.run("try { localStorage.clear() } catch {}")
        self.leave()
        self._devtools("Network.clearBrowserCookies")
        self._devtools("Emulation.setEmulatedMedia", features=[])
        self.resize(1360, 900)
        self.point_away()
        self.complaints()

    def complaints(self) -> list[str]:
        """Return what the browser complained of since the last call: errors, breaches of the policy."""
        entries = self._do("POST", "/se/log", {"type": "browser"})
        grave = [entry for entry in entries if entry["level"] in {"WARNING", "SEVERE"}]
        return [
            entry["message"] for entry in grave if entry["source"] != "network"
        ]  # statuses and lost streams

    def screenshot(self) -> bytes:
        """Return a picture of the page's area, as PNG."""
        return base64.b64decode(self._do("GET", "/screenshot"))

    def _devtools(self, method: str, **params: Any) -> Any:
        return self._do("POST", "/goog/cdp/execute", {"cmd": method, "params": params})

    # ---- the protocol --------------------------------------------------------------------------------------

    def _do(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._call(method, self._session + path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = HTTPConnection(LOOPBACK, self._port, timeout=CALL_S)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            value = json.loads(answer.read())["value"]
        finally:
            connection.close()
        if answer.status != 200:
            raise BrowserError(f"{method} {path}: {value['error']}: {value['message'].splitlines()[0]}")
        return value
